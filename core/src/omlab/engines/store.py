"""The engine store: what was made for a graph, found again only where everything that it depends on is the same.

Layout below the root::

    <model>/<variant>/<graph>/<kind>-<digest of the key>/   manifest.json, verified.json and the artefact's files
    <model>/<variant>/<graph>/rejected/<the same>/          manifest.json, and the tensors that did not agree
    locks/                                                  one empty file an entry being made
    choices.json                                            what was measured fastest

An entry appears by one rename, so a reader sees all of it or nothing. A reader trusts a file whose size, time of
change and inode are those at which its SHA-256 was last taken (``verified.json``); otherwise it takes the digest
again, once. Hashing a gigabyte at every run would cost more than loading it. A damaged entry is removed by whoever
holds its lock, and made again.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import attrs

from omlab.errors import EngineError
from omlab.files import write_text

MANIFEST = "manifest.json"
VERIFIED = "verified.json"
FORMAT = 1
_OURS = frozenset({MANIFEST, VERIFIED})


class State(StrEnum):
    """What is known of an entry."""

    #: ONNX file or reference: nothing to judge.
    SHARED = "shared"
    ADMITTED = "admitted"
    #: Built for other hardware; the gate judges it where it is first loaded.
    UNPROVEN = "unproven"
    REJECTED = "rejected"


@attrs.frozen(kw_only=True)
class Key:
    """Everything that an artefact depends on. ``kind`` is ``"onnx"``, ``"reference"`` or ``"engine"``."""

    kind: str
    model: str
    variant: str
    graph: str
    weights_digest: str
    graph_digest: str
    shapes: str
    backend: str = ""
    version: str = ""
    precision: str = ""
    device: str = ""
    provider: str = ""
    hardware: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 over all fields."""
        return hashlib.sha256(json.dumps(attrs.asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Name of the entry's folder."""
        words = [self.backend or self.kind, self.precision, self.device, self.digest[:16]]
        return "-".join(_plain(word) for word in words if word)

    def home(self, root: Path) -> Path:
        """Folder of all entries of the graph."""
        return root / _plain(self.model) / _plain(self.variant) / _plain(self.graph)


@attrs.frozen(kw_only=True)
class Entry:
    """One entry, as its manifest says."""

    key: Key
    folder: Path
    state: State
    files: Mapping[str, Mapping[str, Any]]
    parity: Mapping[str, Any] | None = None
    reason: str = ""
    seconds: float = 0.0
    made: str = ""

    @property
    def model(self) -> str:
        return self.key.model

    @property
    def variant(self) -> str:
        return self.key.variant

    @property
    def graph(self) -> str:
        return self.key.graph

    @property
    def backend(self) -> str:
        """Name of the backend; ``"onnx"`` or ``"reference"`` for what all backends share."""
        return self.key.backend or self.key.kind

    @property
    def precision(self) -> str:
        return self.key.precision

    @property
    def device(self) -> str:
        """``"cpu"``, ``"cuda"``, or the compute capability (``"sm_89"``) of the GPUs that it fits."""
        return self.key.hardware.split("-")[0] if self.key.hardware.startswith("sm_") else self.key.device

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(int(file["size"]) for file in self.files.values())

    def as_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {
            **attrs.asdict(self.key), "folder": str(self.folder), "state": self.state.value, "size": self.size,
            "parity": self.parity, "reason": self.reason, "seconds": self.seconds, "made": self.made,
        }  # fmt: skip


class Damaged(Exception):
    """An entry is not what its manifest says."""


class Store:
    """The entries below one root.

    Parameters
    ----------
    root : folder of the store; made when something is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: Key) -> Entry | None:
        """The whole, verified entry of ``key``, or ``None`` where there is none or it is damaged."""
        try:
            return self._open(key.home(self.root) / key.name)
        except Damaged:
            return None

    def rejection(self, key: Key) -> Entry | None:
        """Why ``key`` was not admitted before, if it was not."""
        try:
            return _read(key.home(self.root) / "rejected" / key.name)
        except Damaged:
            return None

    @contextlib.contextmanager
    def lock(self, key: Key) -> Iterator[None]:
        """Hold the right to make the entry of ``key``; waits for another process that has it. What is damaged, or
        was left half-made by a process that died, is removed."""
        from filelock import FileLock

        home = key.home(self.root)
        try:
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            home.mkdir(parents=True, exist_ok=True)
            guard = FileLock(self.root / "locks" / f"{key.digest[:32]}.lock", thread_local=False)
            guard.acquire()
        except OSError as error:
            raise EngineError(
                f"the engine store {self.root} cannot be written: {error.strerror or error}",
                remedy="Set OMLAB_HOME to a folder that can be written",
            ) from error
        try:
            for leftover in home.glob(f".{key.name}.*"):
                shutil.rmtree(leftover, ignore_errors=True)
            folder = home / key.name
            if folder.exists():
                try:
                    self._open(folder)
                except Damaged:
                    _remove(folder)
            yield
        finally:
            guard.release()

    @contextlib.contextmanager
    def making(self, key: Key) -> Iterator[Path]:
        """A folder to make the artefact in, gone afterwards unless it was kept. Only under :meth:`lock`."""
        home = key.home(self.root)
        home.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{key.name}.", dir=home))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(
        self, key: Key, folder: Path, *, state: State, parity: Mapping[str, Any] | None = None, seconds: float = 0.0
    ) -> Entry:
        """Turn a folder of :meth:`making` into the entry of ``key``; a former rejection is forgotten."""
        entry = _write(key, folder, state=state, parity=parity, seconds=seconds)
        final = key.home(self.root) / key.name
        if final.exists():
            _remove(final)
        os.replace(folder, final)
        shutil.rmtree(key.home(self.root) / "rejected" / key.name, ignore_errors=True)
        return attrs.evolve(entry, folder=final)

    def reject(
        self,
        key: Key,
        reason: str,
        *,
        parity: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Any] | None = None,
        seconds: float = 0.0,
    ) -> Entry:
        """Remember that ``key`` is not admitted, with the tensors that did not agree (``tensors.npz``)."""
        home = key.home(self.root) / "rejected"
        home.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{key.name}.", dir=home))
        try:
            if tensors:
                import numpy as np

                np.savez(folder / "tensors.npz", **tensors)
            entry = _write(key, folder, state=State.REJECTED, parity=parity, seconds=seconds, reason=reason)
            final = home / key.name
            if final.exists():
                _remove(final)
            os.replace(folder, final)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        stale = key.home(self.root) / key.name
        if stale.exists():
            _remove(stale)
        return attrs.evolve(entry, folder=final)

    def judged(self, entry: Entry, parity: Mapping[str, Any]) -> Entry:
        """Add the parity record of an entry that was built elsewhere."""
        entry = attrs.evolve(entry, state=State.ADMITTED, parity=parity)
        write_text(entry.folder / MANIFEST, _manifest(entry))
        return entry

    def discard(self, key: Key) -> None:
        """Remove an entry that verified and yet cannot be loaded. Only under :meth:`lock`."""
        folder = key.home(self.root) / key.name
        if folder.exists():
            _remove(folder)

    def _open(self, folder: Path) -> Entry | None:
        if not folder.exists():
            return None
        entry = _read(folder)
        if entry is None:
            raise Damaged(f"{folder} has no {MANIFEST}")
        known = _read_verified(folder)
        stamps: dict[str, list[int]] = {}
        for name, file in entry.files.items():
            path = folder / name
            try:
                stamp = _stamp(path)
            except OSError as error:
                raise Damaged(f"{path} is missing: {error}") from error
            if stamp[0] != file["size"]:
                raise Damaged(f"{path} has {stamp[0]} bytes, {file['size']} were written")
            if known.get(name) != stamp and _sha256(path) != file["sha256"]:
                raise Damaged(f"{path} is not what was written")
            stamps[name] = stamp
        if stamps != known:
            # A store that cannot be written is verified again by every process; that is its owner's choice.
            with contextlib.suppress(OSError):
                write_text(folder / VERIFIED, json.dumps(stamps))
        return entry


def entries(root: Path) -> list[Entry]:
    """Everything in the store that can be read, in the order of its folders, nothing verified."""
    found = []
    for manifest in sorted(root.glob(f"*/*/*/*/{MANIFEST}")) + sorted(root.glob(f"*/*/*/rejected/*/{MANIFEST}")):
        if any(part.startswith(".") for part in manifest.relative_to(root).parts):
            continue  # being made
        try:
            entry = _read(manifest.parent)
        except Damaged:
            continue  # whoever needs it makes it again
        if entry is not None:
            found.append(entry)
    return sorted(found, key=lambda entry: (entry.model, entry.variant, entry.graph, entry.folder.name))


def clear(root: Path, model: str | None = None) -> int:
    """Remove all entries and remembered choices, or those of one model; gives the bytes that were freed.

    Raises
    ------
    EngineError
        The store cannot be written.
    """
    from omlab.engines import choice

    if not root.exists():
        return 0
    folders = [root / _plain(model)] if model else [path for path in root.iterdir() if path.is_dir()]
    freed = 0
    for folder in folders:
        if folder.is_dir() and folder != root / "locks":
            freed += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            _remove(folder)
    choice.forget(root, model)
    return freed


def _write(
    key: Key,
    folder: Path,
    *,
    state: State,
    parity: Mapping[str, Any] | None,
    seconds: float,
    reason: str = "",
) -> Entry:
    files, stamps = {}, {}
    for path in sorted(folder.iterdir()):
        if path.name in _OURS:
            continue
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        files[path.name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        stamps[path.name] = _stamp(path)
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry = Entry(
        key=key, folder=folder, state=state, files=files, parity=parity, reason=reason, seconds=round(seconds, 3),
        made=made,
    )  # fmt: skip
    write_text(folder / VERIFIED, json.dumps(stamps))
    write_text(folder / MANIFEST, _manifest(entry))
    return entry


def _manifest(entry: Entry) -> str:
    from omlab import __version__

    return json.dumps(
        {
            "format": FORMAT, "omlab": __version__, "key": attrs.asdict(entry.key), "state": entry.state.value,
            "files": dict(entry.files), "parity": entry.parity, "reason": entry.reason, "seconds": entry.seconds,
            "made": entry.made,
        },
        indent=1,
    )  # fmt: skip


def _read(folder: Path) -> Entry | None:
    """The entry of a folder, not verified; ``None`` without a manifest. Raises :class:`Damaged`."""
    try:
        text = (folder / MANIFEST).read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"{folder / MANIFEST}: {error}") from error
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise Damaged(f"{folder / MANIFEST} has format {found['format']}, {FORMAT} is read here")
        return Entry(
            key=Key(**found["key"]), folder=folder, state=State(found["state"]),
            files={str(n): {"size": int(f["size"]), "sha256": str(f["sha256"])} for n, f in found["files"].items()},
            parity=found["parity"], reason=str(found["reason"]), seconds=float(found["seconds"]),
            made=str(found["made"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{folder / MANIFEST}: {error}") from error


def _read_verified(folder: Path) -> dict[str, list[int]]:
    try:
        found = json.loads((folder / VERIFIED).read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # then the digests are taken again
    return found if isinstance(found, dict) else {}


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise EngineError(
            f"{folder} must be removed and cannot be: {error.strerror or error}",
            remedy="Remove it by hand, or set OMLAB_HOME to a folder that can be written",
        ) from error


def _plain(text: str) -> str:
    """Text as part of a path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".") or "_"
