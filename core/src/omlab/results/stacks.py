"""Label maps of stacks as a result: written plane by plane while they are made, never whole in memory."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases.stack import Planes, Stack, of_planes
from omlab.errors import require
from omlab.results.types import Label, Segmentation

#: Format -> ending of the file or folder.
ENDINGS = {"tiff": ".tif", "tiff-folder": "", "zarr": ".ome.zarr"}
#: A classic TIFF ends at 4 GiB; compression is not counted on.
_CLASSIC_BYTES = 3_900_000_000
#: Chunks of OME-Zarr, (z, y, x).
CHUNKS = (16, 256, 256)


class StackLabels:
    """Label map [plane, y, x] on disk; a plane is read when it is asked for.

    Parameters
    ----------
    path : of the file or folder.
    counts : value -> voxels.
    """

    ndim = 3

    def __init__(self, path: Path, form: str, counts: Mapping[int, int]) -> None:
        self.path, self.format, self.counts = path, form, dict(counts)
        self._planes: Planes | None = None

    @property
    def planes(self) -> Planes:
        """What reads them."""
        if self._planes is None:
            self._planes = open_planes(self.path, self.format)
        return self._planes

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.planes.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.planes.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, plane: int) -> NDArray[np.unsignedinteger[Any]]:
        if not 0 <= plane < len(self):
            raise IndexError(plane)
        return self.planes.read(plane, plane + 1)[0]

    def __iter__(self) -> Iterator[NDArray[np.unsignedinteger[Any]]]:
        return (self[number] for number in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        found = self.planes.read(0, len(self))
        return found if dtype is None else found.astype(dtype)

    def moved(self, path: Path) -> None:
        """Tell it that its file lies elsewhere now."""
        self.path, self._planes = path, None


@attrs.frozen(eq=False, kw_only=True)
class StackSegmentation(Segmentation):
    """A label map of a stack, or of a region of it.

    Attributes
    ----------
    labels : [plane, y, x] on disk; ``labels[n]`` gives one plane.
    start : first voxel (z, y, x) of the region.
    spacing_um : micrometres a voxel, (z, y, x); ``None`` where nobody knows.
    ours : the label map is a temporary file, and goes to where the result is written.
    """

    labels: StackLabels  # type: ignore[assignment]
    start: tuple[int, int, int] = (0, 0, 0)
    spacing_um: tuple[float, float, float] | None = None
    ours: bool = True

    def counts(self) -> dict[int, int]:
        """Voxels of each structure; counted while they were made."""
        return {label.value: self.labels.counts.get(label.value, 0) for label in self.structures}

    def stack(self) -> Stack:
        """The label map as a case."""
        return of_planes(self.labels.planes, self.labels.path.name, path=self.labels.path)

    def keep_until_gone(self, folder: Path) -> StackSegmentation:
        """Have ``folder`` removed when neither the result nor its labels are used any longer."""
        weakref.finalize(self.labels, shutil.rmtree, folder, True)
        return self


def open_planes(path: Path, form: str) -> Planes:
    """The reader of a stack that a :class:`Writer` made."""
    if form == "zarr":
        from omlab.cases.stack_zarr import ZarrPlanes

        return ZarrPlanes(path)
    from omlab.cases import stack_tiff

    return stack_tiff.FolderPlanes(path) if form == "tiff-folder" else stack_tiff.FilePlanes(path)


class Writer(Protocol):
    """Takes planes in order. Nothing is complete before :meth:`finish`."""

    path: Path

    def append(self, plane: NDArray[Any]) -> None:
        """[y, x] of the next plane."""

    def finish(self) -> None:
        """All planes were given."""

    def abandon(self) -> None:
        """Remove what was written."""


def writer(
    form: str,
    path: Path,
    shape: tuple[int, int, int],
    dtype: Any = np.uint8,
    *,
    start: int = 0,
    spacing_um: Sequence[float] | None = None,
    structures: Sequence[Label] = (),
) -> Writer:
    """What writes a stack in one of the formats ``"tiff"``, ``"tiff-folder"`` and ``"zarr"``.

    Parameters
    ----------
    path : of the file or folder; what is there is replaced.
    start : number of the first plane, for names of pages.
    structures : makes it a label map: values get the colours of the labels.
    """
    makers: dict[str, Callable[..., Writer]] = {"tiff": _File, "tiff-folder": _Folder, "zarr": _Zarr}
    path.parent.mkdir(parents=True, exist_ok=True)
    return makers[form](path, shape, np.dtype(dtype), start, spacing_um, tuple(structures))


class _Base:
    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        dtype: np.dtype[Any],
        start: int,
        spacing_um: Sequence[float] | None,
        structures: tuple[Label, ...],
    ) -> None:
        self.path, self.shape, self.dtype, self.start = path, shape, dtype, start
        self.spacing_um, self.structures = spacing_um, structures
        self.done = 0
        remove(path)

    def abandon(self) -> None:
        remove(self.path)

    def _checked(self, plane: NDArray[Any]) -> NDArray[Any]:
        if plane.shape != self.shape[1:] or self.done >= self.shape[0]:
            raise ValueError(f"plane {self.done} is {plane.shape}, a stack of {self.shape} was announced")
        self.done += 1
        return np.ascontiguousarray(plane, self.dtype)

    def _ended(self) -> None:
        if self.done != self.shape[0]:
            raise ValueError(f"{self.done} of {self.shape[0]} planes were written")

    def _tags(self) -> dict[str, Any]:
        """Arguments of tifffile for one page."""
        tags: dict[str, Any] = {
            "compression": "zlib", "compressionargs": {"level": 1}, "photometric": "minisblack", "metadata": None,
            "software": "omlab",
        }  # fmt: skip
        if self.structures and self.dtype == np.uint8:
            palette = np.zeros((3, 256), np.uint16)
            for label in self.structures:
                palette[:, label.value] = np.array(label.colour, np.uint16) * 257
            tags |= {"photometric": "palette", "colormap": palette}
        if self.spacing_um is not None:
            y, x = self.spacing_um[1:]
            tags |= {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}
        return tags


def _tifffile() -> Any:
    return require("tifffile", needed_for="writing stacks of planes", install="omlab[stacks]")


class _File(_Base):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        big = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize > _CLASSIC_BYTES
        self._tiff = _tifffile().TiffWriter(self.path, bigtiff=big)

    def append(self, plane: NDArray[Any]) -> None:
        self._tiff.write(self._checked(plane), contiguous=False, **self._tags())

    def finish(self) -> None:
        self._tiff.close()
        self._ended()

    def abandon(self) -> None:
        self._tiff.close()
        super().abandon()


class _Folder(_Base):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._imwrite = _tifffile().imwrite
        self.path.mkdir()

    def append(self, plane: NDArray[Any]) -> None:
        name = f"{self.start + self.done:04d}.tif"
        self._imwrite(self.path / name, self._checked(plane), **self._tags())

    def finish(self) -> None:
        self._ended()


class _Zarr(_Base):
    """A group of version 2 with one array and the description of OME-NGFF 0.4."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        from omlab.cases.stack_zarr import zarr_library

        zarr = zarr_library()
        group = zarr.open_group(str(self.path), mode="w", zarr_format=2)
        chunks = tuple(min(c, n) for c, n in zip(CHUNKS, self.shape, strict=True))
        self._array = group.create_array(
            "0", shape=self.shape, dtype=self.dtype, chunks=chunks, fill_value=0,
            chunk_key_encoding={"name": "v2", "separator": "/"}, config={"write_empty_chunks": True},
        )  # fmt: skip
        scale = [float(s) for s in self.spacing_um or (1.0, 1.0, 1.0)]
        unit = {"unit": "micrometer"} if self.spacing_um is not None else {}
        group.attrs["multiscales"] = [
            {
                "version": "0.4", "name": self.path.name.partition(".")[0],
                "axes": [{"name": axis, "type": "space"} | unit for axis in "zyx"],
                "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
            }
        ]  # fmt: skip
        if self.structures:
            colours = [{"label-value": label.value, "rgba": [*label.colour, 255]} for label in self.structures]
            names = [{"label-value": label.value, "name": label.name} for label in self.structures]
            group.attrs["image-label"] = {"version": "0.4", "colors": colours, "properties": names}
        self._waiting = np.empty((chunks[0], *self.shape[1:]), self.dtype)

    def append(self, plane: NDArray[Any]) -> None:
        depth = len(self._waiting)
        checked = self._checked(plane)
        count = self.done % depth or depth
        self._waiting[count - 1] = checked
        if count == depth or self.done == self.shape[0]:  # a chunk is written once
            self._array[self.done - count : self.done] = self._waiting[:count]

    def finish(self) -> None:
        self._ended()


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing happens where nothing is."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_segmentation(result: StackSegmentation, path: Path, form: str) -> None:
    """The label map: moved there if it is a temporary one of that format, else copied plane by plane.

    ``result.labels`` is read from there afterwards, if it was moved.
    """
    labels = result.labels
    if labels.path == path:
        return
    if labels.format == form and result.ours:
        move(labels.path, path)
        labels.moved(path)
        object.__setattr__(result, "ours", False)
        return
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")
    made = writer(
        form, unfinished, labels.shape, labels.dtype, start=result.start[0], spacing_um=result.spacing_um,
        structures=result.structures,
    )  # fmt: skip
    try:
        for plane in labels:
            made.append(plane)
        made.finish()
        move(unfinished, path)
    except BaseException:
        made.abandon()
        raise


def settle(result: StackSegmentation, written: Mapping[str, Path], folder: Path) -> None:
    """After a result was written into ``folder`` in other formats than it was made in: the temporary label map goes, if
    it lies there, and ``result.labels`` is one of those that stay.

    Parameters
    ----------
    written : format -> path.
    """
    labels = result.labels
    if not result.ours or not written or labels.path.parent != folder:
        return
    remove(labels.path)
    labels.format, path = next(iter(written.items()))
    labels.moved(path)
    object.__setattr__(result, "ours", False)


def move(path: Path, to: Path) -> None:
    """Give a complete file or folder its name, in place of what has it."""
    if path == to:
        return
    remove(to)
    try:
        os.replace(path, to)
    except OSError:  # on another disk
        beside = to.with_name(f".{os.getpid()}-{to.name}")
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, beside)
        os.replace(beside, to)
        remove(path)
