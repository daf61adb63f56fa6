"""Adapt a model to a dataset: the runner over the adapter hook, and the model directory that it leaves."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omlab import __version__, manifest
from omlab.cards import ModelCard, as_table, from_table
from omlab.dataset import BoundDataset
from omlab.errors import OutputError, UsageError
from omlab.files import write_text
from omlab.loading import LoadedModel, options_of
from omlab.plugins import Registry
from omlab.progress import Listener, silent
from omlab.report import jsonable
from omlab.vocabulary import Kind


def adapt(
    base: LoadedModel,
    adapter: str,
    dataset: BoundDataset,
    out: str | Path,
    *,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    registry: Registry,
    listener: Listener = silent,
) -> dict[str, Any]:
    """Adapt ``base`` to ``dataset`` and leave a model directory at ``out``; returns the adapter's report.

    The directory appears whole or not at all.

    Raises
    ------
    UsageError
        The adapter needs a kind of answer that the base does not give, or ``out`` holds other things.
    """
    card = registry.card(Kind.ADAPTER, adapter)
    given = set(base.variant.outputs or base.card.outputs)
    if not given & set(card.base_outputs):
        needs = " or ".join(kind.value for kind in card.base_outputs)
        raise UsageError(
            f"adapter '{adapter}' needs a model that gives {needs}; '{base.card.name}' "
            f"({base.variant.name}) gives {', '.join(sorted(k.value for k in given))}",
            remedy="omlab list models shows others; --variant picks another variant",
        )
    if base.folder is not None:
        raise UsageError(f"{base.folder} is an adapted model itself", remedy="Adapt its base model instead")
    out = Path(out)
    foreign = out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / manifest.NAME).is_file()))
    if foreign:
        raise UsageError(f"{out} exists and is no model directory", remedy="Name another folder with -o")
    behind = registry.load(Kind.ADAPTER, adapter)
    filled = options_of(card, options or {})
    try:
        work = out.absolute().with_name(f".{out.name}.{os.getpid()}")
        work.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be made: {error.strerror}", remedy="Name another folder with -o") from None
    try:
        differs = dict(behind.adapt(base, dataset, work, filled, listener))
        report = dict(differs.pop("report", {}))
        report |= {
            "base": base.card.name,
            "base_variant": base.variant.name,
            "adapter": adapter,
            "dataset": dataset.name,
        }
        report |= {"options": filled, "omlab": __version__, "base_weights_sha256": base.weights_sha256}
        tables = _tables(base, adapter, name or out.name, differs)
        write_text(work / manifest.NAME, _toml(tables))
        write_text(work / "report.json", json.dumps(jsonable(report), indent=2))
        if out.exists():
            shutil.rmtree(out)
        work.replace(out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return jsonable(report)  # type: ignore[no-any-return]


def _tables(base: LoadedModel, adapter: str, name: str, differs: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the new model: the base's card with what the adapter changed."""
    table = as_table(base.card)
    for field in ("plugin", "version", "reported", "options", "prompts", "labels", "upstream"):
        table.pop(field, None)
    clean = "".join(c if c.isalnum() or c in "-_." else "-" for c in name.lower()).strip("-_.") or "adapted"
    table |= {"name": clean, "variants": [{"name": "adapted"}]}
    table |= {key.replace("-", "_"): value for key, value in differs.items()}
    from_table(ModelCard, table)  # an invalid card is the adapter's defect and should fail here, not at the next load
    return {
        "api": manifest.API,
        "model": [table],
        "adapted": {"adapter": adapter, "model": base.card.name, "variant": base.variant.name},
    }


def _toml(tables: Mapping[str, Any]) -> str:
    import tomli_w

    return tomli_w.dumps(tables)
