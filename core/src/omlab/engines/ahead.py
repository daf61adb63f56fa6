"""Build engines ahead of time for GPUs that are not here."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omlab.cards import Variant
from omlab.engines.admission import Admission
from omlab.engines.base import Backend, Target
from omlab.engines.choice import Candidate, Wish
from omlab.engines.origin import Subject
from omlab.engines.store import Entry, State
from omlab.errors import EngineError, UsageError
from omlab.graphs import Graph
from omlab.progress import Listener, silent
from omlab.vocabulary import Precision

if TYPE_CHECKING:
    from omlab.export import Exporter
    from omlab.model import Model


def build_for(
    model: Model,
    variant: Variant,
    graph: Graph,
    *,
    files: Mapping[str, Path],
    weights_digest: str,
    root: Path,
    backends: Iterable[Backend],
    exporter: Callable[[], Exporter | None] | None,
    capabilities: Sequence[str],
    backend: str = "tensorrt",
    precision: str = "float32",
    listener: Listener = silent,
) -> list[Entry]:
    """Build and keep one engine for each compute capability, ``"8.9"`` or ``"sm_89"``; no GPU is needed.

    The parity gate cannot run them here, so they are kept as unproven; it judges each where it is first loaded,
    against the reference that is kept beside it.

    Raises
    ------
    UnknownName, UsageError
        No such engine or precision, or a capability that is none.
    EngineError
        The library is not installed, or cannot build for one of them.
    """
    makers = {one.card.name: one for one in backends}
    Wish(backend, precision).check(list(makers))
    maker = makers[backend]
    reason = maker.unavailable()
    if reason:
        raise EngineError(f"{backend} cannot build: {reason}")
    subject = Subject(
        model=model, variant=variant, graph=graph, files=files, weights_digest=weights_digest, exporter=exporter,
        listener=listener,
    )  # fmt: skip
    admission = Admission(subject, root)
    store = admission.store
    built = []
    for capability in capabilities:
        target = Target(Precision(precision), _device(capability), maker.provider)
        candidate = Candidate(maker, target)
        key = admission.key(candidate)
        with store.lock(key):
            entry = store.find(key)
            if entry is None:
                onnx = admission.origin.onnx()
                subject.tell(candidate.tried("").label)
                start = time.perf_counter()
                with store.making(key) as folder:
                    maker.build(graph, onnx, folder, target)
                    seconds = time.perf_counter() - start
                    entry = store.keep(key, folder, state=State.UNPROVEN, seconds=seconds)
        built.append(entry)
    return built


def _device(capability: str) -> str:
    found = re.fullmatch(r"(?:sm_)?(\d+)\.?(\d)", capability.strip())
    if found is None:
        raise UsageError(f"'{capability}' is no compute capability", remedy="Write it as 8.9 or sm_89")
    return f"sm_{found[1]}{found[2]}"
