"""What a list shows of a contribution: a row of plain data, made from its card and remembered, so that a list needs no
card."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from omlab.vocabulary import Kind, SourceKind

if TYPE_CHECKING:
    from omlab.cards import Asset
    from omlab.settings import Settings

#: Version of the form of a row.
FORM = 1
#: Kinds whose rows hold the whole card: it is short, and every start needs some of them.
WHOLE = (Kind.COMMAND, Kind.ENGINE, Kind.EXPORTER)


def row_of(kind: Kind, card: Any) -> dict[str, Any]:
    """The row of a card, JSON-able.

    Beside ``name`` and ``summary`` it has what the kind has of ``modality``, ``task``, ``inputs``, ``precisions`` and
    ``devices``, a text of its ``licence``, and what :func:`state_of_row` needs.
    """
    row: dict[str, Any] = {"kind": kind.value, "name": card.name, "summary": card.summary}
    for field in ("modality", "task", "inputs", "precisions", "devices", "modules"):
        if hasattr(card, field):
            row[field] = [str(word) for word in getattr(card, field)]
    if kind is Kind.MODEL:
        row["files"] = [[file_row(asset) for asset in variant.weights] for variant in card.variants]
        code, weights = card.licence_code.spdx, card.licence_weights.spdx
        row["licence"] = code if code == weights else f"{code}, weights {weights}"
    elif kind is Kind.DATASET:
        files = [[file_row(asset) for asset in card.files]]
        row |= {"files": files, "takes_path": card.takes_path, "obtained": bool(card.obtain)}
        row["licence"] = card.licence.spdx
    elif kind in WHOLE:
        from omlab.cards import as_table

        row["card"] = as_table(card)
    return row


def file_row(asset: Asset) -> dict[str, Any]:
    """What :func:`is_present` needs of an asset, JSON-able; ``path`` is that below a root."""
    from omlab.weights.keys import key_of

    path = f"{key_of(asset)}/{asset.filename}"
    return {"path": path, "index": asset.index, "by_hand": asset.source is SourceKind.BY_HAND}


def state_of_row(row: Mapping[str, Any], settings: Settings) -> str:
    """``here``, ``part`` (some variants), ``pull`` (can be fetched), ``by hand``, ``yours`` (the user's own folders),
    ``none`` (needs none); ``installed`` or ``missing`` for the library of an engine; empty where the question makes no
    sense."""
    if "modules" in row:
        return "installed" if any(find_spec(module) for module in row["modules"]) else "missing"
    if "files" not in row:
        return ""
    if row.get("takes_path"):
        if not row["obtained"]:
            return "yours"
        if any(os.path.isdir(f"{root}/{row['name']}") for root in settings.all_dataset_roots):
            return "here"
        if not any(row["files"]):
            return "by hand"
    if not any(row["files"]):
        return "none"
    here = [all(is_present(file, settings) for file in files) for files in row["files"]]
    if all(here):
        return "here"
    if any(here):
        return "part"
    by_hand = all(any(file["by_hand"] for file in files) for files in row["files"] if files)
    return "by hand" if by_hand else "pull"


def is_present(file: Mapping[str, Any], settings: Settings) -> bool:
    """Is a file of the right name there, and all shards of an index? (Verification happens when it is used.)"""
    for root in (*settings.shared_roots, settings.assets_root):
        path = f"{root}/{file['path']}"
        if os.path.isfile(path):
            if not file["index"]:
                return True
            from pathlib import Path

            from omlab.errors import WeightsError
            from omlab.weights.index import shards_of

            try:
                if all(shard.is_file() for shard in shards_of(Path(path))):
                    return True
            except WeightsError:
                continue  # told when it is used
    return False
