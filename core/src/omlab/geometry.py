"""Where a volume lies in the patient: the one place where axes are turned.

Convention: an array in the file's axis order (i, j, k) and a 4 x 4 affine that takes voxel indices (of voxel
centres) to millimetres in RAS+ (x to the patient's right is negative in LPS, positive here; y to anterior; z to
superior), as NIfTI has it. DICOM, which is LPS+, is converted once, at the reader.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray


def _affine(value: ArrayLike) -> NDArray[np.float64]:
    affine = np.array(value, dtype=np.float64)
    affine.setflags(write=False)
    return affine


@attrs.frozen(eq=False)
class Geometry:
    """Grid of a volume.

    Attributes
    ----------
    shape : voxels along i, j, k.
    affine : 4 x 4 float64, voxel indices to RAS+ millimetres.
    """

    shape: tuple[int, int, int] = attrs.field(converter=lambda s: tuple(int(n) for n in s))
    affine: NDArray[np.float64] = attrs.field(converter=_affine)

    def __attrs_post_init__(self) -> None:
        if len(self.shape) != 3:
            raise ValueError(f"a geometry has three axes, found shape {self.shape}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"an affine is 4 x 4, found {self.affine.shape}")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along i, j, k."""
        return tuple(float(s) for s in np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)))  # type: ignore[return-value]

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel: |det| of the affine, so right for sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def to_world(self, ijk: ArrayLike) -> NDArray[np.float64]:
        """Millimetres (RAS+) of voxel positions, [..., 3] to [..., 3]."""
        return np.asarray(ijk, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_voxel(self, xyz_mm: ArrayLike) -> NDArray[np.float64]:
        """Voxel positions (fractional) of points in RAS+ millimetres, [..., 3] to [..., 3]."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(xyz_mm, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    @property
    def orientation(self) -> str:
        """Closest axis codes, ``"RAS"`` for a volume whose i runs to the right, j to anterior, k to superior."""
        return "".join("RAS"[axis] if sign > 0 else "LPI"[axis] for axis, sign in self.closest_axes())

    def closest_axes(self) -> tuple[tuple[int, int], ...]:
        """For i, j, k: (patient axis 0..2 it is closest to, +1 or -1).

        Every patient axis is taken once, the clearest first. Shear is taken out before (the rotation closest to the
        affine, by its polar decomposition), which is what nibabel's ``io_orientation`` does: scans that are tilted by
        more than 45 degrees are turned the same way here and there.
        """
        columns = self.affine[:3, :3]
        u, _, v = np.linalg.svd(columns / np.linalg.norm(columns, axis=0))
        cosines = u @ v
        found: dict[int, tuple[int, int]] = {}
        for axis in np.argsort(-(cosines**2).max(axis=0)):
            patient = int(np.argmax(np.abs(cosines[:, axis])))
            found[int(axis)] = (patient, 1 if cosines[patient, axis] > 0 else -1)
            cosines[patient] = 0
        return found[0], found[1], found[2]

    def canonical(self) -> Turn:
        """The turn that brings the array closest to RAS+."""
        return Turn.to(self, "RAS")

    def same_grid(self, other: Geometry, *, tolerance_mm: float = 0.01) -> bool:
        """Same shape, and corner voxels at the same places within ``tolerance_mm``."""
        if self.shape != other.shape:
            return False
        corners = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)]) * (np.array(self.shape) - 1)
        return bool(np.abs(self.to_world(corners) - other.to_world(corners)).max() <= tolerance_mm)

    def difference(self, other: Geometry, this: str = "one", that: str = "the other") -> str:
        """In what two grids differ, in one line: in shape, else in spacing, orientation, or place.

        Parameters
        ----------
        this, that : what the line calls this grid and the other.
        """
        if self.shape != other.shape:
            shapes = [" x ".join(map(str, grid.shape)) for grid in (self, other)]
            return f"{this} has {shapes[0]} voxels, {that} {shapes[1]}"
        if not np.allclose(self.spacing_mm, other.spacing_mm, atol=1e-3):
            spacings = [" x ".join(f"{s:.4g}" for s in grid.spacing_mm) for grid in (self, other)]
            return f"{this} has a spacing of {spacings[0]} mm, {that} {spacings[1]} mm"
        if self.orientation != other.orientation:
            return f"{this} is {self.orientation}, {that} {other.orientation}"
        corners = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)]) * (np.array(self.shape) - 1)
        apart = np.linalg.norm(self.to_world(corners) - other.to_world(corners), axis=1)
        if np.ptp(apart) > 0.01 * apart.max():
            return f"{this} is turned or stretched: corners lie up to {apart.max():.3g} mm beside those of {that}"
        return f"{this} lies {apart.max():.3g} mm beside {that}"


@attrs.frozen(eq=False)
class Turn:
    """A permutation and flips of axes, exact and invertible, with the geometry on both sides.

    ``apply`` gives views, never copies.
    """

    source: Geometry
    target: Geometry
    #: target axis a is source axis ``order[a]``.
    order: tuple[int, int, int]
    #: target axis a runs backwards.
    flipped: tuple[bool, bool, bool]

    @classmethod
    def to(cls, geometry: Geometry, codes: str) -> Turn:
        """The turn that brings ``geometry`` closest to the axis codes ``codes``, say ``"RAS"`` or ``"LPS"``."""
        axes = geometry.closest_axes()
        order, flipped = [], []
        for code in codes:
            patient = "RASLPI".index(code) % 3
            sign = 1 if code in "RAS" else -1
            source_axis = next(a for a, (axis, _) in enumerate(axes) if axis == patient)
            order.append(source_axis)
            flipped.append(axes[source_axis][1] != sign)
        affine = geometry.affine.copy()
        columns = affine[:3, :3].copy()
        origin = affine[:3, 3].copy()
        for a, (source_axis, flip) in enumerate(zip(order, flipped, strict=True)):
            column = columns[:, source_axis]
            if flip:
                origin = origin + column * (geometry.shape[source_axis] - 1)
                column = -column
            affine[:3, a] = column
        affine[:3, 3] = origin
        shape = tuple(geometry.shape[s] for s in order)
        return cls(geometry, Geometry(shape, affine), tuple(order), tuple(flipped))  # type: ignore[arg-type]

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Source array to target order; trailing axes stay."""
        turned = array.transpose((*self.order, *range(3, array.ndim)))
        return turned[tuple(slice(None, None, -1) if f else slice(None) for f in self.flipped)]

    def undo(self, array: NDArray[Any]) -> NDArray[Any]:
        """Target array back to source order; trailing axes stay."""
        straight = array[tuple(slice(None, None, -1) if f else slice(None) for f in self.flipped)]
        inverse = np.argsort(self.order)
        return straight.transpose((*(int(a) for a in inverse), *range(3, array.ndim)))
