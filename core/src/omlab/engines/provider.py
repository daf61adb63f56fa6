"""The one function that gives an admitted engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab.cards import Variant
from omlab.engines import choice
from omlab.engines.admission import Admission, NotAdmitted
from omlab.engines.base import Backend, Engine
from omlab.engines.choice import AUTO, Candidate, Tried, Wish
from omlab.engines.origin import Subject
from omlab.engines.parity import ParityRecord
from omlab.errors import EngineError
from omlab.graphs import Graph
from omlab.progress import Listener, silent

if TYPE_CHECKING:
    from omlab.export import Exporter
    from omlab.model import Model


@attrs.frozen(eq=False)
class Provided:
    """An engine, why it was admitted, and why the others do not run.

    Attributes
    ----------
    engine : callable from named arrays to named arrays; ``engine.info`` says what it is.
    parity : how it agrees with the float32 torch reference.
    tried : every other way of running, in order, with the reason for which it was not taken.
    """

    engine: Engine
    parity: ParityRecord
    tried: tuple[Tried, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {
            "engine": {**attrs.asdict(self.engine.info), "precision": self.engine.info.precision.value},
            "parity": self.parity.as_json(),
            "tried": [attrs.asdict(tried) for tried in self.tried],
        }


def provide(
    model: Model,
    variant: Variant,
    graph: Graph,
    *,
    files: Mapping[str, Path],
    weights_digest: str,
    root: Path,
    backends: Iterable[Backend],
    exporter: Callable[[], Exporter | None] | None,
    engine: str = AUTO,
    precision: str = AUTO,
    device: str = AUTO,
    threads: int | None = None,
    listener: Listener = silent,
) -> Provided:
    """An admitted engine for ``graph``: from the store, or built and judged now.

    With ``"auto"`` everywhere the engine that :func:`omlab.engines.tune` measured fastest here comes first, then the
    order of :attr:`Target.rank <omlab.engines.base.Target.rank>`; the first that is admitted is taken. Where the
    store has what is needed, neither torch nor the exporter is imported.

    Parameters
    ----------
    files : asset id -> path; may be lazy, it is read only when the network has to be built.
    weights_digest : digest over all of the variant's files.
    root : folder of the engine store.
    backends : what is installed or could be.
    exporter : called when an ONNX file has to be made; gives ``None`` where nothing can.
    engine, precision, device : a name pins; nothing else is taken in its place.
    threads : for engines on the processor; what this process may use without it.

    Raises
    ------
    UnknownName, UsageError
        No such engine, precision or device.
    EngineError
        Nothing that fits was admitted; the message has every reason.
    """
    subject = Subject(
        model=model, variant=variant, graph=graph, files=files, weights_digest=weights_digest, exporter=exporter,
        listener=listener,
    )  # fmt: skip
    wish = Wish(engine, precision, device)
    remembered = choice.recall(root, model.card.name, variant.name, graph.name)
    queue, tried = choice.candidates(backends, graph, wish, remembered)
    admission = Admission(subject, root, threads)
    remedies: list[str] = []
    for place, candidate in enumerate(queue):
        try:
            found, record = admission.admit(candidate)
        except NotAdmitted as error:
            tried.append(candidate.tried(error.reason))
            if error.remedy:
                remedies.append(error.remedy)
            continue
        measured = remembered is not None and remembered.is_for(candidate)
        why = "measured slower here" if measured else "expected to be slower; omlab tune measures"
        tried += [other.tried(f"not needed, {candidate.tried('').label} runs ({why})") for other in queue[place + 1 :]]
        return Provided(found, record, tuple(tried))
    raise refusal(subject, wish, queue, tried, remedies)


def refusal(
    subject: Subject, wish: Wish, queue: list[Candidate], tried: list[Tried], remedies: list[str]
) -> EngineError:
    """The error for a graph that no candidate could run."""
    by_reason: dict[str, list[str]] = {}
    for one in tried:
        by_reason.setdefault(one.reason, []).append(one.label)
    reasons = "; ".join(f"{', '.join(labels)}: {reason}" for reason, labels in by_reason.items())
    asked = "" if str(wish) == str(Wish()) else f" with {wish}"
    if remedies:
        remedy: str | None = remedies[0]
    elif not queue:
        remedy = "Install an engine, say: pip install 'omlab[onnxruntime]'" if wish == Wish() else "Use --engine auto"
    else:
        remedy = "Use --engine auto --precision auto" if wish != Wish() else None
    return EngineError(f"no engine can run {subject.label}{asked}: {reasons or 'none is installed'}", remedy=remedy)
