"""Features of the patches of a slide as a result: on disk from the first batch on, never whole in memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases.slide_features import COORDS, FEATURES, opened
from omlab.errors import InputError, require
from omlab.files import whole
from omlab.results.types import Result
from omlab.vocabulary import OutputKind

#: Attribute of a file that is not yet complete: what it is made from, so that only the same work goes on in it.
_UNFINISHED = "omlab_unfinished"


@attrs.frozen(eq=False, kw_only=True)
class SlideFeatures(Result):
    """A feature vector of every patch of a slide.

    Attributes
    ----------
    file : the HDF5 file that holds them (:mod:`omlab.cases.slide_features`).
    coords : [patch, 2] int64, upper left corners (x, y) in level-0 pixels.
    width : features of a patch.
    side : side of a patch in level-0 pixels, (x, y).
    ours : the file is a temporary one, and goes to where the result is written.
    """

    file: Path
    coords: NDArray[np.int64]
    width: int
    side: tuple[int, int]
    ours: bool = True
    #: Removes a temporary folder when nobody needs the result any more.
    keeper: Any = None
    kind = OutputKind.EMBEDDING

    @property
    def patches(self) -> int:
        """How many patches there are."""
        return len(self.coords)

    def features(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """[patch, feature] float32 of some patches, or of all."""
        with opened(self.file) as file:
            return np.asarray(file[FEATURES][start:stop], np.float32)


class FeatureWriter:
    """Appends features to an HDF5 file, batch by batch; what is there survives a crash.

    Parameters
    ----------
    path : of the growing file. If one is there and was begun for the same ``identity``, it is gone on with.
    coords : [patch, 2], upper left corners of all patches that there will be, (x, y).
    attributes : of the coordinates.
    identity : JSON-able: all that decides the features.
    """

    #: Batches between two moments at which all that was written is safe.
    EVERY = 8

    def __init__(
        self, path: Path, coords: NDArray[np.int64], width: int, attributes: Mapping[str, Any], identity: Any
    ) -> None:
        h5py = require("h5py", needed_for="keeping features of slides", install="omlab[slides]")
        self.path, self._coords, self._batches = path, coords, 0
        mark = json.dumps(identity, sort_keys=True, default=str)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _unfinished(h5py, path, mark, width)
        if self._file is None:
            self._file = h5py.File(path, "w")
            self._file.attrs[_UNFINISHED] = mark
            self._file.create_dataset(FEATURES, (0, width), "f4", chunks=(1, width), maxshape=(None, width))
            corners = self._file.create_dataset(COORDS, (0, 2), "i4", chunks=(1, 2), maxshape=(None, 2))
            for name, value in attributes.items():
                corners.attrs[name] = value
        #: Patches that are done.
        self.done = len(self._file[FEATURES])

    def append(self, features: NDArray[np.float32]) -> None:
        """The features [patch, feature] of the next patches.

        Raises
        ------
        ValueError
            They are not finite, or more than there are patches left.
        """
        stop = self.done + len(features)
        if stop > len(self._coords) or not np.isfinite(features).all():
            raise ValueError(f"features of patches {self.done} to {stop - 1} are not finite or too many")
        # Coordinates first: a file that was cut off between the two is shortened to the features it has.
        for name, rows in ((COORDS, self._coords[self.done : stop]), (FEATURES, features)):
            table = self._file[name]
            table.resize(stop, axis=0)
            table[self.done : stop] = rows
        self.done = stop
        self._batches += 1
        if self._batches % self.EVERY == 0:
            self._file.flush()

    def finish(self) -> None:
        """Close the file as a complete one."""
        if self.done != len(self._coords):
            raise ValueError(f"features of {self.done} of {len(self._coords)} patches were written")
        del self._file.attrs[_UNFINISHED]
        self._file.close()

    def close(self) -> None:
        """Close the file as it is, to be gone on with."""
        self._file.close()


def _unfinished(h5py: Any, path: Path, mark: str, width: int) -> Any:
    """The file, opened to go on with it; ``None`` where there is none that fits."""
    if not path.is_file():
        return None
    try:
        file = h5py.File(path, "r+")
    except OSError:  # cut off in the middle of a write
        return None
    if file.attrs.get(_UNFINISHED) != mark or FEATURES not in file or file[FEATURES].shape[1] != width:
        file.close()
        return None
    rows = min(len(file[FEATURES]), len(file[COORDS]))
    for name in (FEATURES, COORDS):
        file[name].resize(rows, axis=0)
    return file


def write_h5(result: SlideFeatures, path: Path) -> None:
    """The file itself, moved there if it was a temporary one. ``result.file`` is the new one from then on."""
    if result.file == path:
        return
    if result.ours:
        try:
            os.replace(result.file, path)
        except OSError:  # on another disk
            with whole(path) as temporary:
                shutil.copyfile(result.file, temporary)
            result.file.unlink()
        object.__setattr__(result, "file", path)
        object.__setattr__(result, "ours", False)
        return
    with whole(path) as temporary:
        shutil.copyfile(result.file, temporary)


def write_pt(result: SlideFeatures, path: Path) -> None:
    """The features alone, as one float32 tensor saved by torch: what upstream's training scripts read."""
    torch = require("torch", needed_for="writing features as .pt", install="omlab[torch]")
    with whole(path) as temporary:
        torch.save(torch.from_numpy(result.features()), temporary)


def write_npz(result: SlideFeatures, path: Path) -> None:
    """``features`` and ``coords``."""
    with whole(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, features=result.features(), coords=result.coords)


def write_patches(path: Path, coords: NDArray[np.int64], attributes: Mapping[str, Any]) -> None:
    """A file of coordinates alone as the CLAM pipeline makes it before features: ``coords`` int64, chunks of one row,
    growable, with the attributes of :func:`patch_attributes`.

    Raises
    ------
    omlab.errors.InputError
        There is no patch; such a file is not made.
    """
    if not len(coords):
        raise InputError(f"{path.name}: there is no patch to write")
    h5py = require("h5py", needed_for="writing coordinates of patches", install="omlab[slides]")
    with whole(path) as temporary, h5py.File(temporary, "w") as file:
        table = file.create_dataset(COORDS, data=np.asarray(coords, np.int64), chunks=(1, 2), maxshape=(None, 2))
        for name, value in attributes.items():
            table.attrs[name] = value


def patch_attributes(
    *, patch: int, level: int, downsample: tuple[float, float], level_size: tuple[int, int], name: str, folder: str = ""
) -> dict[str, Any]:
    """Attributes of coordinates, by the names and in the order that the CLAM pipeline uses.

    Parameters
    ----------
    patch, level : side of a patch in pixels of the level that it is read from.
    downsample, level_size : of that level, (x, y) and (width, height).
    name : of the slide, without its ending.
    folder : where files of coordinates are kept.
    """
    return {
        "patch_size": patch, "patch_level": level, "downsample": np.asarray(downsample, np.float64),
        "downsampled_level_dim": np.asarray(level_size, np.int64), "level_dim": np.asarray(level_size, np.int64),
        "name": name, "save_path": folder,
    }  # fmt: skip
