"""What a localiser knows of the organs: the positions and kernels of their extreme points in the template scans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import WeightsError
from omlab_medlsam.points import SIX, Points
from omlab_medlsam.scans import padded, patch_at

#: Names to arrays, both ways: what an engine is.
Run = Callable[[Mapping[str, NDArray[np.float32]]], Mapping[str, NDArray[np.float32]]]
KERNELS = ("kernel0", "kernel1", "kernel2")
FILE = "templates.safetensors"


@attrs.frozen(eq=False)
class Template:
    """One organ.

    Attributes
    ----------
    positions : [points, 3] mean over the supports of what the position head says.
    kernels : of three scales, each [points, channels, k, k, k], summed over the supports.
    """

    positions: NDArray[np.float32]
    kernels: tuple[NDArray[np.float32], ...]

    @property
    def parts(self) -> int:
        """Boxes that the organ is found by."""
        return len(self.positions) // SIX


def template_of(describe: Run, supports: Sequence[tuple[NDArray[np.float32], Points]], patch: int) -> Template:
    """The template of one organ.

    Parameters
    ----------
    describe : engine of the graph ``describe``.
    supports : for each template scan its image at 3 mm [z, y, x], and the organ's points [points, 3] in the image
        padded by half a patch; every support has as many.
    """
    positions: NDArray[np.float32] | None = None
    kernels: list[NDArray[np.float32]] = []
    for image, points in supports:
        rows = described(describe, padded(image, patch), points, patch)
        if positions is None:
            positions, kernels = rows[0].copy(), [k.copy() for k in rows[1:]]
        else:
            positions += rows[0]
            kernels = [kernel + more for kernel, more in zip(kernels, rows[1:], strict=True)]
    if positions is None:
        raise ValueError("an organ needs a support")
    # Positions are averaged and kernels are not: only where a correlation is greatest counts.
    return Template(positions / np.float32(len(supports)), tuple(kernels))


def described(describe: Run, image: NDArray[np.float32], points: Points, patch: int) -> list[NDArray[np.float32]]:
    """``fc_position`` [points, 3] and the kernels of three scales; each different point is looked at once."""
    seen: dict[tuple[int, ...], Mapping[str, NDArray[np.float32]]] = {}
    rows = []
    for point in points:
        key = tuple(int(v) for v in point)
        if key not in seen:
            seen[key] = describe({"patch": patch_at(image, point, patch)[None, None]})
        rows.append(seen[key])
    names = ("fc_position", *KERNELS)
    return [np.concatenate([np.asarray(row[name], np.float32) for row in rows]) for name in names]


def save(templates: Mapping[int, Template], path: Path) -> None:
    """Write the templates of label values as safetensors."""
    from safetensors.numpy import save_file

    from omlab.files import whole

    tensors: dict[str, NDArray[Any]] = {}
    for value, template in templates.items():
        tensors[f"{value}.positions"] = np.ascontiguousarray(template.positions)
        tensors |= {
            f"{value}.{name}": np.ascontiguousarray(k) for name, k in zip(KERNELS, template.kernels, strict=True)
        }
    with whole(path) as temporary:
        save_file(tensors, temporary)


def load(path: Path, values: Sequence[int]) -> dict[int, Template]:
    """The templates of ``values``.

    Raises
    ------
    WeightsError
        The file is missing or damaged, or lacks an organ.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read: {error}", remedy="Make the model again") from None
    templates = {}
    for value in values:
        names = [f"{value}.positions", *(f"{value}.{name}" for name in KERNELS)]
        if not set(names) <= set(found):
            raise WeightsError(f"{path} has no template of label {value}", remedy="Make the model again")
        positions, *kernels = (found[name] for name in names)
        if positions.ndim != 2 or positions.shape[1] != 3 or not len(positions) or len(positions) % SIX:
            raise WeightsError(f"{path}: label {value} has positions {positions.shape}", remedy="Make the model again")
        if any(k.ndim != 5 or len(k) != len(positions) for k in kernels):
            raise WeightsError(f"{path}: the kernels of label {value} do not fit", remedy="Make the model again")
        templates[value] = Template(positions, tuple(kernels))
    return templates
