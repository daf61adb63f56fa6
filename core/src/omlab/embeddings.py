"""Embeddings of many cases by a frozen model: each computed once, and kept for the next adapter or the next try.

They are kept below ``<home>/embeddings`` in a folder for each model, weights, options and choice of engine, as files
of some hundred that are written whole. Two processes may write at the same time: each adds files of its own, and one
that is damaged is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError, OmlabError
from omlab.files import whole
from omlab.labelled import Splits, case_digest, without_duplicates
from omlab.loading import options_of
from omlab.progress import Listener, Progress, silent
from omlab.results import Embedding

if TYPE_CHECKING:
    from omlab.loading import LoadedModel

#: Embeddings of one file.
_FILE = 512


@attrs.frozen(eq=False, kw_only=True)
class Embedded:
    """Embeddings of the splits of a dataset.

    Attributes
    ----------
    splits : the cases that could be embedded.
    vectors : split -> [cases, features] float32, in the order of its cases.
    failed : split -> one line for each case that could not be read.
    computed, cached : how many embeddings were computed now, and how many were at hand.
    """

    splits: Splits
    vectors: Mapping[str, NDArray[np.float32]]
    failed: Mapping[str, tuple[str, ...]]
    computed: int
    cached: int


class Memory:
    """Embeddings of one model that were computed before.

    Parameters
    ----------
    folder : where they are kept; a folder that cannot be written only means that they are computed again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, NDArray[np.float32]] = {}
        self._new: dict[str, NDArray[np.float32]] = {}
        for path in sorted(folder.glob("[!.]*.npz")) if folder.is_dir() else ():  # those with a dot are being written
            try:
                with open(path, "rb") as opened, np.load(opened) as file:
                    digests, vectors = file["digests"], file["vectors"]
            except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                continue
            self._known.update(zip((bytes(d).hex() for d in digests), vectors, strict=True))

    def get(self, digest: str) -> NDArray[np.float32] | None:
        """The embedding of a case."""
        return self._known.get(digest)

    def put(self, digest: str, vector: NDArray[np.float32]) -> None:
        """Keep an embedding; written with others of its kind."""
        self._known[digest] = self._new[digest] = vector
        if len(self._new) >= _FILE:
            self.write()

    def write(self) -> None:
        """Write what is not written yet."""
        if not self._new:
            return
        digests = np.array([list(bytes.fromhex(digest)) for digest in self._new], np.uint8)
        try:
            with whole(self.folder / f"{os.getpid()}-{secrets.token_hex(8)}.npz") as temporary:
                np.savez(temporary, digests=digests, vectors=np.stack(list(self._new.values())))
        except OSError:
            return
        self._new = {}


def memory_of(base: LoadedModel, options: Mapping[str, Any]) -> Memory:
    """What was kept of a model with these options."""
    choice = base.choice
    key = json.dumps(
        {
            "model": base.card.name, "version": base.card.version, "variant": base.variant.name,
            "weights": base.weights_sha256, "graphs": [graph.digest() for graph in base.graphs],
            "options": dict(options), "engine": [choice.engine, choice.precision, choice.device],
        },
        sort_keys=True, default=str,
    )  # fmt: skip
    return Memory(base.settings.home / "embeddings" / hashlib.sha256(key.encode()).hexdigest()[:24])


def embed(base: LoadedModel, splits: Splits, *, duplicates: str = "refuse", listener: Listener = silent) -> Embedded:
    """Embed every case of ``splits`` once. A case that cannot be read is left out and named.

    What was computed is kept also when this is interrupted.

    Raises
    ------
    InputError
        The model gives no embedding, no case could be read, or content is in two splits (see
        :func:`omlab.labelled.without_duplicates`).
    """
    options = options_of(base.card, {})
    memory = memory_of(base, options)
    vectors: dict[str, list[NDArray[np.float32]]] = {}
    digests: dict[str, list[str]] = {}
    failed: dict[str, tuple[str, ...]] = {}
    kept: dict[str, Any] = {}
    counts = {"computed": 0, "cached": 0}
    try:
        for name, split in splits.all().items():
            rows, marks, lines, good = [], [], [], []
            for number, item in enumerate(split.items):
                listener(Progress(f"{base.card.name} {name}", "embed", number, len(split), "cases"))
                try:
                    case = item.case()
                    mark = case_digest(case)
                    vector = memory.get(mark) if mark else None
                    if vector is None:
                        vector = _vector(base, case, options)
                        counts["computed"] += 1
                        if mark:
                            memory.put(mark, vector)
                    else:
                        counts["cached"] += 1
                except _NoEmbedding:
                    raise
                except OmlabError as error:
                    lines.append(f"{item.name}: {error.message}")
                    continue
                rows.append(vector)
                marks.append(mark)
                good.append(number)
            if lines:
                failed[name] = tuple(lines)
            vectors[name], digests[name], kept[name] = rows, marks, split.take(good)
    finally:
        memory.write()
    readable = attrs.evolve(splits, **kept)
    if not len(readable.train):
        reasons = failed.get("train", ("there is none",))
        raise InputError(f"no training case could be read: {reasons[0]}")
    left, stay = without_duplicates(readable, {n: d for n, d in digests.items() if d}, duplicates)
    arrays = {name: np.stack([vectors[name][i] for i in indices]) for name, indices in stay.items() if indices}
    return Embedded(splits=left, vectors=arrays, failed=failed, **counts)


class _NoEmbedding(InputError):
    """The model does not give what is needed: no other case would be better."""


def _vector(base: LoadedModel, case: Any, options: Mapping[str, Any]) -> NDArray[np.float32]:
    result = base.run(case, options=options).result
    if not isinstance(result, Embedding):
        raise _NoEmbedding(f"model '{base.card.name}' gave {result.kind} for {case.name}, an embedding was expected")
    vector = np.asarray(result.vector, np.float32)
    if not np.isfinite(vector).all():
        raise InputError("its embedding is not finite")
    return vector


def failures(failed: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """As entries of a report."""
    return {f"{name}_failed": list(lines) for name, lines in failed.items()}
