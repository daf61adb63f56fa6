"""Features of a slide's patches, kept in HDF5 as the CLAM pipeline lays them out, so that its tools can use them.

``features`` is float32 [patch, feature] and ``coords`` int32 [patch, 2], the upper left corner (x, y) in level-0
pixels; both in chunks of one row, and growable. The attributes of ``coords`` say what the patches are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases.types import Case, Source
from omlab.errors import InputError, require
from omlab.vocabulary import InputKind

FEATURES, COORDS = "features", "coords"
#: Rows that are read at once.
_ROWS = 8192


@attrs.frozen(eq=False, kw_only=True)
class PatchFeatures(Case):
    """Features of the patches of one slide: the bag that a slide classifier looks at.

    Attributes
    ----------
    features : [patch, feature] float32.
    coords : [patch, 2] int64, upper left corners (x, y) in level-0 pixels; ``None`` where the file has none.
    side : side of a patch in level-0 pixels, (x, y); ``None`` where the file does not tell.
    about : what else the file says: encoder, magnification, name of the slide ...
    """

    features: NDArray[np.float32]
    coords: NDArray[np.int64] | None = None
    side: tuple[int, int] | None = None
    about: Mapping[str, Any] = attrs.field(factory=dict)
    kind = InputKind.FEATURES


def read(path: str | Path) -> PatchFeatures:
    """Read a file of features.

    Raises
    ------
    omlab.errors.InputError
        It is missing, damaged, without features, or they are no finite numbers.
    """
    path = Path(path)
    with opened(path) as file:
        values, corners = file[FEATURES], file.get(COORDS)
        rows, width = values.shape
        features = np.empty((rows, width), np.float32)
        for start in range(0, rows, _ROWS):
            features[start : start + _ROWS] = values[start : start + _ROWS]
        coords = None if corners is None else np.asarray(corners[:], np.int64)
        about = about_of(file)
    check(path.name, features, coords)
    source = Source(path=path, format="hdf5", files=(path,), details={"patches": rows, "features": width} | dict(about))
    return PatchFeatures(
        name=path.name, source=source, features=features, coords=coords, side=side_of(about), about=about
    )


def check(name: str, features: NDArray[np.float32], coords: NDArray[np.int64] | None) -> None:
    """Raise :class:`omlab.errors.InputError` for features that are none."""
    if features.ndim != 2 or not features.size:
        raise InputError(f"{name}: its features have the shape {features.shape}, [patch, feature] was expected")
    if coords is not None and coords.shape != (len(features), 2):
        raise InputError(
            f"{name}: has {len(features)} features and coordinates of the shape {coords.shape}, which do not belong "
            "together"
        )
    if not np.isfinite(np.sum(features, dtype=np.float64)):
        bad = int((~np.isfinite(features)).sum())
        if bad:
            raise InputError(f"{name}: {bad} of {features.size} features are NaN or infinite", remedy="Make them again")


def opened(path: Path) -> Any:
    """The HDF5 file with its features, for reading. Raises :class:`omlab.errors.InputError`."""
    h5py = require("h5py", needed_for="reading features of slides", install="omlab[slides]")
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist") from None
    except OSError as error:
        raise InputError(f"{path.name}: is damaged or cut short: {error}", remedy="Make it again") from None
    found = file.get(FEATURES)
    if found is None or getattr(found, "ndim", 0) != 2:
        has = ", ".join(file) or "nothing"
        file.close()
        raise InputError(
            f"{path.name}: holds no features [patch, feature], it has {has}",
            remedy="An encoder of patches makes such files of a slide: omlab list models --task embedding",
        )
    return file


def about_of(file: Any) -> dict[str, Any]:
    """Attributes of both tables, as plain values; those of the features win."""
    found: dict[str, Any] = {}
    for name in (COORDS, FEATURES):
        if name in file:
            found |= {key: _plain(value) for key, value in file[name].attrs.items()}
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def side_of(about: Mapping[str, Any]) -> tuple[int, int] | None:
    """Side of a patch in level-0 pixels by the attributes: told by us, or patch size times the level's downsample."""
    told = about.get("patch_size_level0")
    if told is not None:
        return (int(told[0]), int(told[1])) if isinstance(told, list) else (int(told), int(told))
    size, downsample = about.get("patch_size"), about.get("downsample")
    if size is None:
        return None
    across, down = downsample if isinstance(downsample, list) and len(downsample) == 2 else (1, 1)
    return int(size) * int(across), int(size) * int(down)
