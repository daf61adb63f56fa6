"""Stacks of planes in OME-Zarr: a pyramid of chunked arrays, of which the finest is read; or a bare Zarr array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.cases.stack import UNITS_UM, checked_dtype
from omlab.errors import InputError, first_line, require

#: Planes are read together while they take no more than so many bytes, whatever the depth of chunks.
TOGETHER = 2**28


def zarr_library() -> Any:
    """The library. Raises :class:`omlab.errors.MissingDependency`."""
    return require("zarr", needed_for="OME-Zarr volumes", install="omlab[stacks]")


class ZarrPlanes:
    """Planes of a Zarr array (:class:`omlab.cases.stack.Planes`), of version 2 or 3."""

    format = "zarr"

    def __init__(self, path: Path, *, frame: int | None = None) -> None:
        zarr = zarr_library()
        self._name = path.name
        self.warnings: list[str] = []
        try:
            node = zarr.open(str(path), mode="r")
        except Exception as error:  # metadata are damaged in many ways
            raise self._unreadable(error) from None
        axes: Sequence[Mapping[str, Any]] = ()
        scale: Sequence[float] = ()
        self.details: dict[str, Any] = {"zarr": int(node.metadata.zarr_format)}
        if isinstance(node, zarr.Group):
            inner, axes, scale = self._finest(node)
            self.details["array"] = inner
            try:
                node = node[inner]
            except KeyError:
                raise InputError(f"{self._name}: names the array '{inner}', which is not there") from None
            except Exception as error:
                raise self._unreadable(error) from None
        if not isinstance(node, zarr.Array):
            raise InputError(f"{self._name}: holds a group where an array was expected")
        self._array = node
        self._lead, names = self._leading(node.shape, axes, frame)
        self.shape = tuple(int(n) for n in node.shape[-3:])
        self.dtype = checked_dtype(np.dtype(node.dtype), self._name)
        self.spacing_um = _spacing(axes, scale) if names[-3:] == ["z", "y", "x"] else None
        plane = self.shape[1] * self.shape[2] * self.dtype.itemsize
        self.depth = max(1, min(int(node.chunks[-3]), TOGETHER // plane))
        there, expected = int(node.nchunks_initialized), int(node.nchunks)
        if there < expected:
            self.warnings.append(f"{expected - there} of its {expected} chunks are not there and count as {self._fill}")

    @property
    def _fill(self) -> str:
        return f"{self._array.fill_value or 0}"

    def read(self, first: int, stop: int) -> NDArray[Any]:
        """See :class:`omlab.cases.stack.Planes`."""
        try:
            found = self._array[(*self._lead, slice(first, stop))]
        except Exception as error:  # each codec has errors of its own
            raise InputError(
                f"{self._name}: a chunk of the planes {first} to {stop - 1} is damaged: {first_line(error)}",
                remedy="Fetch or export it again",
            ) from None
        return np.asarray(found, self.dtype)

    def _finest(self, group: Any) -> tuple[str, Sequence[Mapping[str, Any]], Sequence[float]]:
        """Path, axes and scale of the finest array that the group tells of."""
        attributes = dict(group.attrs)
        scales = attributes.get("ome", attributes).get("multiscales") or []
        try:
            first = scales[0]
            finest = first["datasets"][0]
            path = str(finest["path"])
        except (LookupError, TypeError):
            names = sorted(group.array_keys())
            if len(names) == 1:
                return names[0], (), ()
            raise InputError(
                f"{self._name}: is a Zarr group without an OME description of a volume", remedy="Name the array in it"
            ) from None
        axes = [a if isinstance(a, Mapping) else {"name": str(a)} for a in first.get("axes") or ()]
        steps = [*(finest.get("coordinateTransformations") or ()), *(first.get("coordinateTransformations") or ())]
        given = [np.asarray(step["scale"], float) for step in steps if step.get("type") == "scale" and "scale" in step]
        return path, axes, np.prod(given, axis=0).tolist() if given else ()

    def _leading(
        self, shape: Sequence[int], axes: Sequence[Mapping[str, Any]], frame: int | None
    ) -> tuple[tuple[int, ...], list[str]]:
        """Indices of the axes before the planes: the channel or time that was chosen."""
        names = [str(axis.get("name", "")).lower() for axis in axes]
        if len(shape) < 3 or (names and (len(names) != len(shape) or names[-3:] != ["z", "y", "x"])):
            raise InputError(
                f"{self._name}: is an array of {' x '.join(map(str, shape))} with the axes {names or 'unknown'}, "
                "expected z, y and x last"
            )
        lead = tuple(int(n) for n in shape[:-3])
        count = int(np.prod(lead, dtype=np.int64)) if lead else 1
        if frame is None and count > 1:
            raise InputError(
                f"{self._name}: holds {count} channels or times, expected one",
                remedy=f"Choose one with --frame 0 to {count - 1}",
            )
        if frame is not None and not 0 <= frame < count:
            raise InputError(f"{self._name}: has no channel {frame}", remedy=f"It has 0 to {count - 1}")
        return tuple(int(i) for i in np.unravel_index(frame or 0, lead)) if lead else (), names

    def _unreadable(self, error: Exception) -> InputError:
        return InputError(
            f"{self._name}: is no Zarr volume that can be read: {first_line(error)}", remedy="Fetch or export it again"
        )


def _spacing(axes: Sequence[Mapping[str, Any]], scale: Sequence[float]) -> tuple[float, float, float] | None:
    if len(scale) != len(axes):
        return None
    factors = [UNITS_UM.get(str(axis.get("unit", "")).lower()) for axis in axes[-3:]]
    if None in factors:
        return None
    z, y, x = (float(s) * float(f or 0) for s, f in zip(scale[-3:], factors, strict=True))
    return z, y, x
