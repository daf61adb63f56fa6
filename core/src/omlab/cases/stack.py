"""Stacks of planes that are larger than memory: light-sheet volumes. Planes are read when they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases.types import Case, Source
from omlab.errors import InputError
from omlab.vocabulary import InputKind

#: Micrometres a voxel that a microscope gives; a file that tells others has a resolution for printing.
PLAUSIBLE_UM = (1e-3, 1e4)
#: Micrometres of the units that files name.
UNITS_UM = {
    "m": 1e6, "meter": 1e6, "cm": 1e4, "centimeter": 1e4, "mm": 1e3, "millimeter": 1e3, "um": 1.0, "micron": 1.0,
    "microns": 1.0, "micrometer": 1.0, "nm": 1e-3, "nanometer": 1e-3, "angstrom": 1e-4, "inch": 25400.0,
}  # fmt: skip


class Planes(Protocol):
    """Where the planes of a stack come from."""

    #: Voxels (z, y, x).
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    #: So many planes, from a multiple of it on, are best read together.
    depth: int
    #: Micrometres a voxel, (z, y, x); ``None`` where the file does not tell.
    spacing_um: tuple[float, float, float] | None
    #: ``"tiff"``, ``"tiff-folder"``, ``"zarr"`` or ``"memory"``.
    format: str
    #: What the reader found.
    details: dict[str, Any]
    #: What a user should know of the file.
    warnings: list[str]

    def read(self, first: int, stop: int) -> NDArray[Any]:
        """[z, y, x] of the planes from ``first`` on, before ``stop``; both lie within the stack."""
        ...


@attrs.frozen(eq=False, kw_only=True)
class Stack(Case):
    """A volume as a stack of planes [z][y, x]; nothing is in memory but what was just asked for.

    Attributes
    ----------
    planes_from : the reader.
    spacing_um : micrometres a voxel, (z, y, x); ``None`` where nobody knows.
    """

    planes_from: Planes
    spacing_um: tuple[float, float, float] | None = None
    kind = InputKind.STACK

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x)."""
        return self.planes_from.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the voxels: whole numbers of 8, 16 or 32 bits, or floating point."""
        return self.planes_from.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, plane: int) -> NDArray[Any]:
        """[y, x] of one plane. Raises :class:`IndexError`, or what :meth:`read` does."""
        if not -len(self) <= plane < len(self):
            raise IndexError(f"{self.name} has planes 0 to {len(self) - 1}, asked for {plane}")
        return self.read(plane % len(self), plane % len(self) + 1)[0]

    def read(self, first: int, stop: int) -> NDArray[Any]:
        """[z, y, x] of the planes from ``first`` on, before ``stop``.

        Raises
        ------
        IndexError
            The stack has no such planes.
        omlab.errors.InputError
            A plane is damaged, or has values that are not finite.
        """
        if not 0 <= first <= stop <= len(self):
            raise IndexError(f"{self.name} has planes 0 to {len(self) - 1}, asked for {first} to {stop - 1}")
        found = self.planes_from.read(first, stop)
        if found.dtype.kind == "f" and not np.isfinite(np.sum(found, dtype=np.float64)):
            bad = int((~np.isfinite(found)).sum())
            if bad:
                raise InputError(
                    f"{self.name}: planes {first} to {stop - 1} have {bad} voxels that are NaN or infinite",
                    remedy="Save the stack with whole numbers",
                )
        return found


class ArrayPlanes:
    """Planes of an array in memory, or of a memory map (:class:`Planes`)."""

    depth, format = 1, "memory"

    def __init__(self, array: NDArray[Any], spacing_um: tuple[float, float, float] | None = None) -> None:
        if array.ndim != 3 or not array.size:
            raise InputError(f"an array of {array.shape} is no stack of planes [z, y, x]")
        self.shape: tuple[int, int, int] = (int(array.shape[0]), int(array.shape[1]), int(array.shape[2]))
        self.dtype, self.spacing_um, self._array = checked_dtype(array.dtype, "the array"), spacing_um, array
        self.details: dict[str, Any] = {}
        self.warnings: list[str] = []

    def read(self, first: int, stop: int) -> NDArray[Any]:
        """See :class:`Planes`."""
        return np.asarray(self._array[first:stop])


def read(path: str | Path, *, frame: int | None = None) -> Stack:
    """Open a stack: a multi-page TIFF, a folder of single pages, or an OME-Zarr volume.

    Parameters
    ----------
    frame : which channel or time of a file that has several, from 0.

    Raises
    ------
    omlab.errors.InputError
        It is missing, damaged, in colour, has gaps or pages of different sizes, or is no stack.
    omlab.errors.MissingDependency
        The library for its format is not installed.
    """
    path = Path(path)
    planes: Planes
    if is_zarr(path):
        from omlab.cases.stack_zarr import ZarrPlanes

        planes = ZarrPlanes(path, frame=frame)
    else:
        from omlab.cases import stack_tiff

        planes = stack_tiff.FolderPlanes(path) if path.is_dir() else stack_tiff.FilePlanes(path, frame=frame)
    return of_planes(planes, path.name, path=path)


def of_planes(planes: Planes, name: str, *, path: Path | None = None) -> Stack:
    """A stack of any source of planes."""
    spacing, warnings = planes.spacing_um, list(planes.warnings)
    low, high = PLAUSIBLE_UM
    if spacing is not None and not all(low <= s <= high for s in spacing):
        shown = " x ".join(f"{s:g}" for s in spacing)
        warnings.append(f"its voxels are {shown} micrometres by the file, which no microscope gives: left aside")
        spacing = None
    elif spacing is None:
        warnings.append("it does not tell the size of its voxels; lengths are in voxels")
    details = planes.details | {
        "shape": list(planes.shape), "dtype": str(planes.dtype), "spacing_um": list(spacing) if spacing else None,
    }  # fmt: skip
    source = Source(
        path=path, format=planes.format, files=(path,) if path else (), details=details, warnings=tuple(warnings)
    )
    return Stack(name=name, source=source, planes_from=planes, spacing_um=spacing)


def find(folder: Path) -> list[Path]:
    """Stacks in a folder and its subfolders, in order: OME-Zarr volumes, multi-page files, and folders whose single
    pages are one stack."""
    if is_zarr(folder):
        return [folder]
    from omlab.cases.stack_tiff import is_page, tiffs_in

    files = tiffs_in(folder)
    pages = [path for path in files if is_page(path)]
    # A lone page beside multi-page files is a picture of them; a folder of nothing else is a stack, however short.
    found = [folder] if len(pages) > 1 or (pages and len(pages) == len(files)) else []
    found += [path for path in files if path not in set(pages)]
    for inner in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        found += find(inner)
    return found


def is_zarr(path: Path) -> bool:
    """Is it a folder of a Zarr group or array, of version 2 or 3?"""
    return path.is_dir() and any((path / name).is_file() for name in (".zgroup", ".zarray", "zarr.json"))


def checked_dtype(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """The type of voxels, in the byte order of this machine. Raises :class:`omlab.errors.InputError` for others."""
    if dtype.kind not in "uif" or dtype.itemsize > 8 or (dtype.kind != "f" and dtype.itemsize > 4):
        raise InputError(
            f"{name}: has voxels of type {dtype}, expected whole numbers of 8 to 32 bits or floating point",
            remedy="Save it in 16 bits",
        )
    return dtype.newbyteorder("=")
