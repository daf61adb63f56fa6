"""From a candidate to an admitted engine: out of the store, or built, judged and kept."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omlab.engines.base import Engine
from omlab.engines.choice import Candidate
from omlab.engines.origin import Origin, Subject, first_line
from omlab.engines.parity import ParityRecord, compare
from omlab.engines.store import Entry, Key, State, Store
from omlab.errors import EngineError, MissingDependency, OmlabError

#: Nothing that the key of an artefact holds is to blame, so the next run may do better.
_PASSING = (MemoryError, OSError, MissingDependency)
_NO_MEMORY = re.compile(r"bad_alloc|out of memory|alloc\w* (memory|fail)|fail\w* to alloc", re.IGNORECASE)


class NotAdmitted(Exception):
    """A candidate is not taken.

    Parameters
    ----------
    reason : one line.
    remedy : what the reader can do, where there is something.
    """

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class Admission:
    """The way of one graph's candidates through store and parity gate.

    Parameters
    ----------
    threads : for engines on the processor; what this process may use without it.
    """

    def __init__(self, subject: Subject, root: Path, threads: int | None = None) -> None:
        self.subject = subject
        self.store = Store(root)
        self.origin = Origin(subject, self.store)
        self.threads = threads

    def admit(self, candidate: Candidate) -> tuple[Engine, ParityRecord]:
        """An engine that agrees with the reference, and how well.

        Raises
        ------
        NotAdmitted
            It cannot be made, cannot be loaded, or does not agree.
        OmlabError
            What no other candidate would mend: weights that are missing or wrong, a store that cannot be written.
        """
        if candidate.backend.takes_network:
            return self._from_network(candidate)
        key = self.key(candidate)
        self._check_rejection(key)
        entry = self.store.find(key)
        if entry is not None and entry.parity is not None:
            admitted = self._from_store(candidate, entry)
            if admitted is not None:
                return admitted
        with self.store.lock(key):
            self._check_rejection(key)  # another process may just have found out
            entry = self.store.find(key)
            if entry is not None:
                admitted = self._from_store(candidate, entry)
                if admitted is not None:
                    return admitted
                self.store.discard(key)
            return self._build(candidate, key)

    def key(self, candidate: Candidate) -> Key:
        """Key of a candidate's artefact in the store."""
        target, backend = candidate.target, candidate.backend
        return self.subject.key(
            "engine",
            backend=candidate.name,
            version=backend.version(),
            precision=target.precision.value,
            # A named capability is a GPU that is not here: built for it, the artefact is found where it is.
            device="cuda" if target.device.startswith("sm_") else target.device,
            provider=target.provider,
            hardware=backend.hardware(target),
        )

    def onnx(self) -> Path:
        """The ONNX file. Raises :class:`NotAdmitted`."""
        try:
            return self.origin.onnx()
        except EngineError as error:
            raise NotAdmitted(error.message, error.remedy) from error

    def _network(self) -> Any:
        """The torch module; the reference is taken from it first, so that what builds from it cannot change that."""
        try:
            return self.origin.network()
        except EngineError as error:
            raise NotAdmitted(error.message, error.remedy) from error

    def _check_rejection(self, key: Key) -> None:
        rejected = self.store.rejection(key)
        if rejected is None:
            return
        record = _record(rejected.parity)
        if record is not None and record.judged(self.subject.graph).admitted:
            return  # the tolerance has changed since
        raise NotAdmitted(rejected.reason)

    def _from_store(self, candidate: Candidate, entry: Entry) -> tuple[Engine, ParityRecord] | None:
        """The engine of an entry; ``None`` if it must be made again."""
        backend, graph = candidate.backend, self.subject.graph
        record = _record(entry.parity)
        if record is not None:
            record = record.judged(graph)
            if not record.admitted:
                raise NotAdmitted(record.why_not)
        elif entry.state is not State.UNPROVEN:
            return None
        onnx = self.onnx() if backend.needs_onnx(entry.folder) else entry.folder / "absent.onnx"
        try:
            engine = backend.load(graph, onnx, entry.folder, candidate.target, threads=self.threads)
        except Exception as error:  # a backend's code: whatever it raises is that backend's failure
            if candidate.target.device != "cpu" or _passes(error):
                # A GPU that is busy or full says nothing against the artefact.
                raise NotAdmitted(_text(error), getattr(error, "remedy", None)) from error
            return None
        if record is None:
            record = self._judge(engine, candidate, entry.key, entry.seconds)
            self.store.judged(entry, record.as_json())
        return engine, record

    def _build(self, candidate: Candidate, key: Key) -> tuple[Engine, ParityRecord]:
        backend, graph = candidate.backend, self.subject.graph
        network = self._network() if backend.builds_from_network else None
        onnx = self.onnx() if network is None else Path("absent.onnx")
        self.subject.tell(candidate.tried("").label)
        start = time.perf_counter()
        with self.store.making(key) as folder:
            try:
                if network is None:
                    backend.build(graph, onnx, folder, candidate.target)
                else:
                    backend.build_network(graph, network, folder, candidate.target)
            except Exception as error:  # a backend's code: whatever it raises is that backend's failure
                raise self._failed(key, error, time.perf_counter() - start) from error
            seconds = time.perf_counter() - start
            if candidate.target.device != "cpu" and not backend.needs_onnx(folder):
                # Kept before it is loaded: a GPU that is busy or full must not cost another build.
                entry = self.store.keep(key, folder, state=State.UNPROVEN, seconds=seconds)
                admitted = self._from_store(candidate, entry)
                if admitted is None:
                    raise NotAdmitted("what it built cannot be loaded")
                return admitted
            try:
                engine = backend.load(graph, onnx, folder, candidate.target, threads=self.threads)
            except Exception as error:  # a backend's code: whatever it raises is that backend's failure
                lasting = candidate.target.device == "cpu"
                raise self._failed(key, error, time.perf_counter() - start, lasting=lasting) from error
            record = self._judge(engine, candidate, key, seconds)
            entry = self.store.keep(key, folder, state=State.ADMITTED, parity=record.as_json(), seconds=seconds)
        backend.moved(engine, entry.folder)
        return engine, record

    def _judge(self, engine: Engine, candidate: Candidate, key: Key, seconds: float) -> ParityRecord:
        """The record of an admitted engine; one that is not is remembered with its tensors."""
        examples = self._examples()
        try:
            record, tensors = compare(engine, self.subject.graph, examples)
        except Exception as error:  # a backend's code: whatever it raises is that backend's failure
            raise self._failed(key, error, seconds, lasting=candidate.target.device == "cpu") from error
        if not record.admitted:
            self.store.reject(key, record.why_not, parity=record.as_json(), tensors=tensors, seconds=seconds)
            raise NotAdmitted(record.why_not)
        return record

    def _failed(self, key: Key, error: Exception, seconds: float, *, lasting: bool = True) -> NotAdmitted:
        """What to raise for a failure of a backend; remembered where the same would happen again."""
        if lasting and not _passes(error):
            self.store.reject(key, _text(error), seconds=seconds)
        return NotAdmitted(_text(error), getattr(error, "remedy", None))

    def _examples(self) -> Any:
        """The examples, the first of them made now: what goes wrong there is no fault of the engine."""
        import itertools

        examples = self.origin.examples()
        try:
            first = next(examples)
        except EngineError as error:
            raise NotAdmitted(error.message, error.remedy) from error
        return itertools.chain([first], examples)

    def _from_network(self, candidate: Candidate) -> tuple[Engine, ParityRecord]:
        backend, target = candidate.backend, candidate.target
        self.subject.tell(candidate.tried("").label)
        try:
            network = self.subject.network()
            engine = backend.load_network(self.subject.graph, network, target, threads=self.threads)
        except (EngineError, MissingDependency) as error:
            raise NotAdmitted(error.message, error.remedy) from error
        if backend.is_reference(target):
            return engine, ParityRecord(precision=target.precision, is_reference=True)
        examples = self._examples()
        try:
            record, _ = compare(engine, self.subject.graph, examples)
        except EngineError as error:
            raise NotAdmitted(error.message, error.remedy) from error
        if not record.admitted:
            raise NotAdmitted(record.why_not)
        return engine, record


def _record(parity: Mapping[str, Any] | None) -> ParityRecord | None:
    """The record of an entry; ``None`` where there is none, or one that this version cannot read."""
    if parity is None:
        return None
    try:
        return ParityRecord.from_json(parity)
    except (KeyError, TypeError, ValueError):
        return None


def _passes(error: BaseException) -> bool:
    """May the next run do better with the same artefact?"""
    return isinstance(error, _PASSING) or bool(_NO_MEMORY.search(str(error)))


def _text(error: BaseException) -> str:
    if isinstance(error, OmlabError):
        return error.message
    return f"{type(error).__name__}: {first_line(error)}"
