"""Bags of features from files: HDF5, and the plain tensors that upstream's scripts save."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np

from omlab.cases import PatchFeatures, Source
from omlab.cases import slide_features as hdf5
from omlab.errors import InputError, require

#: Where the features of a slide may lie in a folder, in the order in which is looked.
PLACES = ("h5_files/{0}.h5", "{0}.h5", "{0}/features.h5", "pt_files/{0}.pt", "{0}.pt")


def find(root: Path, slide_id: str) -> Path | None:
    """The file with the features of a slide; ``None`` where there is none."""
    return next((path for place in PLACES if (path := root / place.format(slide_id)).is_file()), None)


def read(path: Path) -> PatchFeatures:
    """A bag. One of a ``.pt`` file has no coordinates.

    Raises
    ------
    omlab.errors.InputError
        It is missing, damaged, or holds something else.
    """
    if path.suffix != ".pt":
        return hdf5.read(path)
    torch = require("torch", needed_for=f"reading {path.name}", install="omlab-clam[convert]")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist") from None
    except (RuntimeError, EOFError, OSError, ValueError, struct.error, pickle.UnpicklingError) as error:
        raise InputError(f"{path.name}: is damaged or more than a tensor: {str(error).splitlines()[0]}") from None
    if not isinstance(found, torch.Tensor) or found.ndim != 2:
        raise InputError(f"{path.name}: holds no tensor [patch, feature]")
    features = np.asarray(found.float().numpy(), np.float32)
    hdf5.check(path.name, features, None)
    return PatchFeatures(name=path.name, source=Source(path=path, format="pt", files=(path,)), features=features)
