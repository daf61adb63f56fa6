"""Which engine is tried first: what was measured fastest here, else what is expected to be."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from omlab.engines import hardware
from omlab.engines.base import Backend, Refusal, Target
from omlab.errors import EngineError, UnknownName, UsageError
from omlab.files import write_text
from omlab.graphs import Graph
from omlab.vocabulary import Precision

CHOICES = "choices.json"
AUTO = "auto"
DEVICES = ("cpu", "cuda")


@attrs.frozen
class Tried:
    """A way of running that was not taken, and why."""

    backend: str
    precision: str
    device: str
    reason: str

    @property
    def label(self) -> str:
        """``"openvino bfloat16"``."""
        words = [self.backend, self.precision, "" if self.device == "cpu" else self.device]
        return " ".join(word for word in words if word)


@attrs.frozen
class Candidate:
    """A way of running that may be tried."""

    backend: Backend
    target: Target

    @property
    def name(self) -> str:
        """Name of the backend."""
        return self.backend.card.name

    def tried(self, reason: str) -> Tried:
        """This candidate, with the reason for which it is not taken."""
        return Tried(self.name, self.target.precision.value, self.target.device, reason)


@attrs.frozen
class Wish:
    """What the user asks of engines: ``"auto"``, or a name that pins."""

    engine: str = AUTO
    precision: str = AUTO
    device: str = AUTO

    def check(self, names: Sequence[str]) -> None:
        """Raise :class:`UnknownName` or :class:`UsageError` for a word that means nothing here."""
        if self.engine not in (AUTO, *names):
            near = difflib.get_close_matches(self.engine, names, n=3)
            has = ", ".join(sorted(names)) or "none"
            raise UnknownName(
                f"there is no engine '{self.engine}'",
                remedy=f"Did you mean: {', '.join(near)}?" if near else f"The engines are: {has}",
            )
        words = [precision.value for precision in Precision]
        if self.precision not in (AUTO, *words):
            raise UsageError(f"there is no precision '{self.precision}'", remedy=f"They are: auto, {', '.join(words)}")
        if self.device not in (AUTO, *DEVICES):
            raise UsageError(f"there is no device '{self.device}'", remedy=f"They are: auto, {', '.join(DEVICES)}")

    def takes(self, precision: str, device: str) -> bool:
        """Is a precision on a device within the wish?"""
        return self.precision in (AUTO, precision) and self.device in (AUTO, device)

    def __str__(self) -> str:
        pinned = [f"{field.name} {getattr(self, field.name)}" for field in attrs.fields(Wish)]
        return ", ".join(word for word in pinned if not word.endswith(f" {AUTO}")) or "any engine"


def candidates(
    backends: Iterable[Backend], graph: Graph, wish: Wish, remembered: Choice | None = None
) -> tuple[list[Candidate], list[Tried]]:
    """What may run ``graph``, in the order of trying, and what may not with the reasons.

    Raises
    ------
    UnknownName, UsageError
        The wish names an engine, precision or device that does not exist.
    """
    backends = list(backends)
    wish.check([backend.card.name for backend in backends])
    found: list[Candidate] = []
    tried: list[Tried] = []
    for backend in backends:
        if wish.engine not in (AUTO, backend.card.name):
            continue
        name = backend.card.name
        if name not in graph.engines if graph.engines else not backend.general:
            if wish.engine == name:
                others = " or ".join(graph.engines)
                runs = f"it runs on {others}" if others else "it is for another kind of network"
                tried.append(Tried(name, "", "", f"cannot run '{graph.name}', {runs}"))
            continue
        reason = backend.unavailable()
        if reason:
            tried.append(Tried(name, "", "", reason))
            continue
        try:
            targets, refusals = backend.targets(graph), backend.refusals(graph)
        except EngineError as error:
            tried.append(Tried(name, "", "", str(error)))
            continue
        fitting = [target for target in targets if wish.takes(target.precision, target.device)]
        found += [Candidate(backend, target) for target in fitting]
        refused = [_ for _ in refusals if wish.takes(_.precision, _.device)]
        tried += [_refused(name, refusal) for refusal in refused]
        if not fitting and not refused:
            offers = ", ".join(f"{target.precision} on {target.device}" for target in targets) or "nothing"
            tried.append(Tried(name, "", "", f"it offers {offers} here, not {wish}"))
    # A pinned precision or device still leaves the remembered engine first where it fits.
    found.sort(key=lambda c: (remembered is None or not remembered.is_for(c), c.target.rank, c.name))
    return found, tried


def _refused(name: str, refusal: Refusal) -> Tried:
    return Tried(name, refusal.precision.value, refusal.device, refusal.reason)


@attrs.frozen
class Choice:
    """What was measured fastest."""

    backend: str
    precision: str
    device: str
    provider: str
    milliseconds: float

    def is_for(self, candidate: Candidate) -> bool:
        """Is ``candidate`` the one that was chosen?"""
        target = candidate.target
        return (self.backend, self.precision, self.device, self.provider) == (
            candidate.name, target.precision.value, target.device, target.provider,
        )  # fmt: skip


def recall(root: Path, model: str, variant: str, graph: str) -> Choice | None:
    """What was remembered for a graph on this machine."""
    found = _read(root).get(_key(model, variant, graph))
    try:
        return Choice(**found) if found else None
    except TypeError:
        return None  # of another version of omlab


def remember(root: Path, model: str, variant: str, graph: str, choice: Choice) -> None:
    """Remember a choice for a graph on this machine."""
    with _writing(root) as choices:
        choices[_key(model, variant, graph)] = attrs.asdict(choice)


def forget(root: Path, model: str | None = None) -> None:
    """Forget all choices, or those of one model."""
    if not (root / CHOICES).exists():
        return
    with _writing(root) as choices:
        for key in list(choices):
            if model is None or key.startswith(f"{model}/"):
                del choices[key]


def _key(model: str, variant: str, graph: str) -> str:
    return f"{model}/{variant}/{graph}/{hardware.machine_key()}"


def _read(root: Path) -> dict[str, Any]:
    try:
        found = json.loads((root / CHOICES).read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # nothing was measured, or it must be measured again
    return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def _writing(root: Path) -> Iterator[dict[str, Any]]:
    from filelock import FileLock

    (root / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(root / "locks" / f"{CHOICES}.lock"):
        choices = _read(root)
        yield choices
        write_text(root / CHOICES, json.dumps(choices, indent=1, sort_keys=True))
