"""Run the checks of a plugin, one after another; a failing one ends none of the others."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

from omlab.errors import OmlabError, UnknownName
from omlab.plugins import Registry
from omlab.settings import Settings
from omlab.vocabulary import Kind
from omlab_sdk.contract import calls, cards, evaluators, networks, packaging, sizes
from omlab_sdk.contract.base import Broken, Check, Finding, Skipped, Subject
from omlab_sdk.contract.models import demand_variants, size_of

_MODEL = (Kind.MODEL,)

CHECKS: tuple[Check, ...] = (
    Check("card", "cards are complete", cards.card_complete),
    Check("discovery", "discovery imports nothing, the import is light", cards.discovery_cheap),
    Check("hooks", "an object is behind every card", cards.behind_every_card),
    Check("licence", "licences are named", cards.licence),
    Check("weights", "fetched files are pinned", cards.weights_pinned, (Kind.MODEL, Kind.DATASET)),
    Check("goldens", "golden files agree", networks.goldens, _MODEL, beside=True),
    Check("sizes", "published sizes give the declared shapes", sizes.sizes, _MODEL),
    Check("export", "graphs export to ONNX", networks.export, _MODEL, sized=True),
    Check("engines", "engines agree with the reference", networks.engines, _MODEL, sized=True),
    Check("determinism", "twice the same", networks.deterministic, _MODEL, sized=True),
    Check("end-to-end", "a case from file to files", networks.end_to_end, _MODEL, sized=True),
    Check("geometry", "orientation of the file does not matter", networks.geometry, _MODEL, sized=True),
    Check("bad-inputs", "bad files are refused clearly", networks.bad_inputs, _MODEL, sized=True),
    Check("scores", "an evaluator scores", evaluators.scores, (Kind.EVALUATOR,)),
    Check("calls", "nobody is called", calls.silent),
    Check("wheel", "the wheel builds and installs", packaging.wheel, beside=True),
)


def checks_for(subject: Subject, only: Iterable[str] = ()) -> list[Check]:
    """The checks that are about what the plugin contributes; of these only the named ones, if any are."""
    kinds = {kind for kind, _ in subject.plugin.contributions}
    wanted = set(only)
    return [c for c in CHECKS if (not c.kinds or kinds & set(c.kinds)) and (not wanted or c.name in wanted)]


def subject_of(name: str, work: Path, *, full: bool = False, variants: Iterable[str] = ()) -> Subject:
    """The plugin called ``name``: its entry point, its distribution, one of its contributions, or its folder.

    Parameters
    ----------
    work : scratch folder that its checks share.
    full, variants : at which size networks are checked, and which; see :class:`Subject`.

    Raises
    ------
    UnknownName
        No installed plugin is called so; the remedy names those that are, or why it is broken.
    UsageError
        None of its models has one of ``variants``.
    """
    settings = Settings.from_environment()
    registry = Registry.discover(failures_file=settings.failures_file)
    folder = Path(name).resolve() if (Path(name) / "pyproject.toml").is_file() else None
    for plugin in registry.plugins.values():
        project = _project(plugin.distribution)
        contributed = {n for _, n in plugin.contributions}
        if name in {plugin.name, plugin.distribution} | contributed or (folder and project == folder):
            subject = Subject(plugin, registry, settings, work, project, full, tuple(variants))
            demand_variants(subject)
            return subject
    broken = [b for b in registry.broken if name in {b.plugin, b.distribution}]
    if broken:
        remedy = f"It is broken: {broken[0].reason}. {broken[0].remedy}"
    elif folder:
        remedy = f"Install it first: pip install -e {name}"
    else:
        remedy = f"Installed: {', '.join(sorted(registry.plugins))}"
    raise UnknownName(f"no plugin '{name}' is installed here", remedy=remedy)


def _project(name: str) -> Path | None:
    """Folder of a distribution that is installed editable."""
    try:
        text = distribution(name).read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    origin = json.loads(text) if text else {}
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(origin["url"]).path)).resolve()


def run_check(check: Check, subject: Subject) -> Finding:
    """One check; whatever it raises becomes a finding."""
    start = time.perf_counter()
    try:
        with calls.watched(subject.calls):
            status, detail, remedy = "good", check.code(subject), ""
    except Skipped as reason:
        status, detail, remedy = "skipped", str(reason), ""
    except Broken as error:
        status, detail, remedy = "broken", str(error), error.remedy
    except OmlabError as error:
        status, detail, remedy = "broken", error.message, error.remedy or ""
    except Exception as error:  # a stranger's code: whatever it raises is what we are looking for
        status, detail = "broken", f"{type(error).__name__}: {error}"
        remedy = "omlab check --debug shows where"
    size = size_of(subject) if check.sized and status != "skipped" else ""
    return Finding(check.name, status, detail, remedy, time.perf_counter() - start, size)


def run_checks(subject: Subject, only: Iterable[str] = ()) -> Iterator[Finding]:
    """Findings of the checks of ``subject``, in their order, as they come."""
    checks = checks_for(subject, only)
    with ThreadPoolExecutor(max_workers=2) as beside:
        begun = {check.name: beside.submit(run_check, check, subject) for check in checks if check.beside}
        # What goes on beside the others is told after them, so that nobody waits for it without need.
        for check in sorted(checks, key=lambda one: one.beside):
            yield begun[check.name].result() if check.beside else run_check(check, subject)


def check_plugin(
    name: str, only: Iterable[str] = (), *, full: bool = False, variants: Iterable[str] = ()
) -> Iterator[Finding]:
    """Findings of all checks of the plugin, as they come. Parameters are those of :func:`subject_of`."""
    with tempfile.TemporaryDirectory(prefix="omlab-check-") as folder:
        yield from run_checks(subject_of(name, Path(folder), full=full, variants=variants), only)
