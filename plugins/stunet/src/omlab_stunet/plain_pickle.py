"""Pickles of plain data, read without running anything that they name."""

from __future__ import annotations

import codecs
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from omlab.errors import InputError

_ARRAYS = np._core.multiarray
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict, ("builtins", "set"): set, ("__builtin__", "set"): set,
    ("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): codecs.encode,
}  # fmt: skip
for _package in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    _KNOWN[f"{_package}.multiarray", "_reconstruct"] = _ARRAYS._reconstruct
    _KNOWN[f"{_package}.multiarray", "scalar"] = _ARRAYS.scalar


class _Unpickler(pickle.Unpickler):
    """Numbers, texts, containers and arrays of numbers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise InputError(
                f"names '{module}.{name}', which plain data does not need",
                remedy="Nothing of it was run; do not trust the file before you know why it does",
            )
        return _KNOWN[module, name]


def read_plain(path: Path) -> Mapping[str, Any]:
    """The table in a pickle.

    Raises
    ------
    InputError
        The file is missing, damaged or holds no table, or names more than numbers, texts, containers and arrays.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        with open(path, "rb") as file:
            found = _Unpickler(file).load()
    except InputError as error:
        raise InputError(f"{path}: {error.message}", remedy=error.remedy) from None
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged or no pickle: {error}") from None
    if not isinstance(found, Mapping):
        raise InputError(f"{path}: holds {type(found).__name__}, a table was expected")
    return found
