"""The index of 4.6 million images and 20 million masks: built once, then mapped and never read whole.

``SAMed2D_v1.json`` is one JSON object of several gigabytes. It is read in pieces and written as a few arrays:

=================  ========  ==================================================================
``names.bin``      bytes     names of the images without folder and ending, one after another
``ends.bin``       uint64    where each name ends
``objects.bin``    uint32    of each mask, class * 1000 + instance; its name follows from its image's
``firsts.bin``     uint32    [images + 1] first mask of each image
``prefixes.bin``   uint8     number of the modality prefix of each image
``sources.bin``    uint16    number of the data set of each image
``header.json``              stamp of the JSON, counts, the prefixes and data sets, what was odd
=================  ========  ==================================================================

Opening maps the arrays: it takes milliseconds and no memory that grows with the set.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError, OutputError
from omlab.progress import CancelToken, Listener, Progress, silent
from omlab_sa_med2d_20m.names import parse, parse_object, split_prefix

#: Version of the form on disk; an index of another one is built anew.
FORM = 1
#: Bytes of the JSON that are read at once, and images that are looked at together.
CHUNK, BLOCK = 1 << 22, 1 << 16
#: Entries that do not follow the rules: so many are listed, all are counted.
LISTED = 50
_ARRAYS = {
    "names": np.uint8, "ends": np.uint64, "objects": np.uint32, "firsts": np.uint32, "prefixes": np.uint8,
    "sources": np.uint16,
}  # fmt: skip
_INSTANCES = 1000


def pairs(file: BinaryIO, *, chunk: int = CHUNK) -> Iterator[list[tuple[str, Any]]]:
    """The members of one large JSON object whose values are lists, some thousand at a time.

    A piece is cut behind a list and handed to the standard library's parser, which is in C. A cut that lies in a string
    leaves a piece that is no JSON, so the cut before it is tried: what is given is right whatever the names hold.

    Raises
    ------
    ValueError
        It is no such object, or ends early.
    """
    rest = file.read(chunk).lstrip(b"\xef\xbb\xbf \t\r\n")
    if rest[:1] != b"{":
        raise ValueError("it does not begin as an object")
    rest = rest[1:]
    while True:
        block = file.read(chunk)
        if not block:
            break
        rest += block
        cut = len(rest)
        while (cut := rest.rfind(b"]", 0, cut)) >= 0:
            tail = rest[cut + 1 : cut + 64].lstrip()
            if not tail.startswith(b","):
                continue
            try:
                yield json.loads(b"{" + rest[: cut + 1] + b"}", object_pairs_hook=list)
            except ValueError:
                continue
            rest = rest[cut + 1 :].lstrip()[1:]
            break
        if len(rest) > 64 * chunk:
            raise ValueError("an entry has no end")
    try:
        yield json.loads(b"{" + rest, object_pairs_hook=list)
    except ValueError as error:
        raise ValueError(f"its end is missing or damaged: {error}") from None


@attrs.frozen(eq=False)
class Index:
    """The index, mapped. Made by :func:`open_index`.

    Attributes
    ----------
    header : counts (``images``, ``masks``), ``prefixes``, ``sources``, ``odd`` (what does not follow the rules) and
        ``odd_count``, ``duplicates``.
    """

    folder: Path
    header: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    maps: tuple[mmap.mmap, ...] = ()

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.header["images"])

    @property
    def masks(self) -> int:
        """Number of masks."""
        return int(self.header["masks"])

    def stem(self, number: int) -> str:
        """Name of an image without folder and ending."""
        ends = self.arrays["ends"]
        first = int(ends[number - 1]) if number else 0
        return bytes(self.arrays["names"][first : int(ends[number])]).decode()

    def objects(self, number: int) -> list[tuple[int, int]]:
        """(class, instance) of each mask of an image."""
        first, last = (int(v) for v in self.arrays["firsts"][number : number + 2])
        return [divmod(int(value), _INSTANCES) for value in self.arrays["objects"][first:last]]

    def chosen(self, wanted: Wanted) -> Iterator[NDArray[np.int64]]:
        """Numbers of the images that are wanted, a block at a time, in order."""
        prefixes, sources = wanted.tables(self.header)
        for start in range(0, self.images, BLOCK):
            stop = min(self.images, start + BLOCK)
            keep = prefixes[self.arrays["prefixes"][start:stop]] & sources[self.arrays["sources"][start:stop]]
            found = np.flatnonzero(keep)
            if len(found):
                yield found + start
            self._let_go()

    def _let_go(self) -> None:
        """Pages that were looked at need not stay: going through all would hold the whole index."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for pages in self.maps:
                pages.madvise(mmap.MADV_DONTNEED)

    def count(self, wanted: Wanted) -> tuple[int, int]:
        """Images and masks that are wanted."""
        images = masks = 0
        for numbers in self.chosen(wanted):
            images += len(numbers)
            firsts = self.arrays["firsts"]
            masks += int((firsts[numbers + 1].astype(np.int64) - firsts[numbers]).sum())
        return images, masks


@attrs.frozen
class Wanted:
    """Which images: of these modalities (``ct``, or with sub-modality ``mr_t1``) and data sets; empty for all."""

    modalities: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def tables(self, header: dict[str, Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """[prefixes] and [data sets]: is it wanted? Raises :class:`omlab.errors.InputError` for one that none has."""
        prefixes, sources = header["prefixes"], header["sources"]
        known = {*prefixes, *(main(p) for p in prefixes)}
        for what, words, there in (("modality", self.modalities, known), ("data set", self.sources, set(sources))):
            for word in words:
                if word not in there:
                    near = ", ".join(sorted(there)[:40])
                    raise InputError(f"the index has no {what} '{word}'", remedy=f"It has: {near}")
        return (
            np.array([not self.modalities or p in self.modalities or main(p) in self.modalities for p in prefixes]),
            np.array([not self.sources or s in self.sources for s in sources]),
        )


def main(prefix: str) -> str:
    """Main modality of a prefix."""
    return split_prefix(prefix)[0]


def open_index(path: Path, cache: Path, *, listener: Listener = silent, cancel: CancelToken | None = None) -> Index:
    """The index of ``SAMed2D_v1.json``; built the first time, and again when the size or time of the file changes.

    Parameters
    ----------
    cache : folder of the indices; one is made below it, whole or not at all.

    Raises
    ------
    omlab.errors.InputError
        The JSON is missing or damaged.
    omlab.errors.OutputError
        The index cannot be written.
    """
    from filelock import FileLock

    stamp = _stamp(path)
    folder = cache / _key(path)
    found = _read(folder, stamp)
    if found is not None:
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{folder.name}.lock"):
            found = _read(folder, stamp)  # another process may have been faster
            if found is not None:
                return found
            work = cache / f".{folder.name}.{os.getpid()}"
            shutil.rmtree(work, ignore_errors=True)
            try:
                work.mkdir()
                _build(path, work, stamp, listener, cancel or CancelToken())
                if folder.exists():
                    shutil.rmtree(folder)
                work.replace(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"the index of {path.name} cannot be written to {cache}: {error.strerror or error}",
            remedy="Free half a gigabyte, or set OMLAB_HOME",
        ) from None
    found = _read(folder, stamp)
    if found is None:
        raise OutputError(f"the index in {folder} cannot be read back", remedy="Is the disk sound?")
    return found


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        raise InputError(f"{path}: does not exist", remedy="Name the folder SAMed2Dv1 with SAMed2D_v1.json") from None
    return [status.st_size, status.st_mtime_ns]


def _key(path: Path) -> str:
    import hashlib

    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:20]


def _read(folder: Path, stamp: list[int]) -> Index | None:
    """The index, if it is whole, of this form and of this file."""
    try:
        header = json.loads((folder / "header.json").read_text("utf-8"))
        if header.get("form") != FORM or header.get("stamp") != stamp:
            return None
        arrays: dict[str, NDArray[Any]] = {}
        maps = []
        for name, kind in _ARRAYS.items():
            path = folder / f"{name}.bin"
            if path.stat().st_size != header["bytes"][name]:
                return None
            if not header["bytes"][name]:  # nothing can be mapped of an empty file
                arrays[name] = np.empty(0, kind)
                continue
            with open(path, "rb") as file:
                maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            arrays[name] = np.frombuffer(maps[-1], kind)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Index(folder, header, arrays, tuple(maps))


class _Writer:
    """The arrays of an index, appended to on disk."""

    def __init__(self, folder: Path) -> None:
        self._open = ExitStack()
        self.files = {
            name: self._open.enter_context(open(folder / f"{name}.bin", "wb", buffering=1 << 20))  # noqa: SIM115
            for name in _ARRAYS
        }
        self.prefixes: dict[str, int] = {}
        self.sources: dict[str, int] = {}
        self.known: dict[str, int] = {}
        self.planes: set[str] = set()
        self.hashes = array("q")
        self.images = self.masks = self.letters = 0
        self.odd: list[str] = []
        self.odd_count = 0

    def note(self, text: str) -> None:
        self.odd_count += 1
        if len(self.odd) < LISTED:
            self.odd.append(text)

    def add(self, members: list[tuple[str, Any]]) -> None:
        names, ends, firsts = bytearray(), array("Q"), array("I")
        objects, prefixes, sources = array("I"), bytearray(), array("H")
        letters, masks = self.letters, self.masks
        for key, value in members:
            stem = key[7:-4]
            parts = stem.split("--")
            # What was seen to follow the rules is not taken apart again: this runs millions of times.
            known = len(parts) == 4 and all(parts) and parts[3] in self.planes
            if not (known and key[:7] == "images/" and key[-4:] == ".png") and not self._follows(stem, key):
                continue
            if not isinstance(value, list):
                self.note(f"{key}: expected a list of masks")
                continue
            name = stem.encode()
            names += name
            letters += len(name)
            ends.append(letters)
            firsts.append(masks)
            masks += self._masks(stem, value, objects)
            prefixes.append(self.prefixes.setdefault(parts[0], len(self.prefixes)))
            sources.append(self.sources.setdefault(parts[1], len(self.sources)))
            self.hashes.append(hash(stem))
        for name, data in (
            ("names", names), ("ends", ends), ("firsts", firsts), ("objects", objects), ("prefixes", prefixes),
            ("sources", sources),
        ):  # fmt: skip
            self.files[name].write(data)
        self.images += len(ends)
        self.letters, self.masks = letters, masks

    def _follows(self, stem: str, key: str) -> bool:
        """Does an image's path follow the rules? Notes what does not."""
        try:
            if not key.startswith("images/") or not key.endswith(".png"):
                raise ValueError("expected images/NAME.png")
            parse(stem)
        except ValueError as error:
            self.note(f"{key}: {error}")
            return False
        self.planes.add(stem.rpartition("--")[2])
        return True

    def _masks(self, stem: str, paths: list[str], objects: array[int]) -> int:
        """Append the masks of an image; returns how many."""
        start, prefix = len(objects), f"masks/{stem}--"
        cut = len(prefix)
        for path in paths:
            if path[:cut] != prefix or path[-4:] != ".png":
                self.note(f"images/{stem}.png: the mask {path} is not named after it")
                continue
            text = path[cut:-4]
            code = self.known.get(text)
            if code is None:
                try:
                    of, instance = parse_object(text)
                except ValueError as error:
                    self.note(f"{path}: {error}")
                    continue
                code = self.known[text] = of * _INSTANCES + instance
            objects.append(code)
        return len(objects) - start

    def close(self) -> None:
        self._open.close()


def _build(path: Path, folder: Path, stamp: list[int], listener: Listener, cancel: CancelToken) -> None:
    writer = _Writer(folder)
    try:
        with open(path, "rb") as file:
            for members in pairs(file):
                cancel.check()
                writer.add(members)
                listener(Progress(path.name, "index", file.tell(), stamp[0], "bytes"))
        writer.files["firsts"].write(array("I", [writer.masks]))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}", remedy="Fetch it again; it may be half downloaded") from None
    finally:
        writer.close()
    hashes = np.sort(np.frombuffer(writer.hashes, np.int64)) if writer.images else np.empty(0, np.int64)
    header = {
        "form": FORM, "stamp": stamp, "images": writer.images, "masks": writer.masks,
        "prefixes": list(writer.prefixes), "sources": list(writer.sources), "odd": writer.odd,
        "odd_count": writer.odd_count, "duplicates": int((hashes[1:] == hashes[:-1]).sum()),
        "bytes": {name: (folder / f"{name}.bin").stat().st_size for name in _ARRAYS},
    }  # fmt: skip
    (folder / "header.json").write_text(json.dumps(header, indent=1, ensure_ascii=False), "utf-8")
