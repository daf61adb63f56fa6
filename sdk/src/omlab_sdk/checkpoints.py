"""Read upstream's weights files safely, rename their entries, and say in words what does not fit."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.errors import WeightsError, require
from omlab.weights import shards_of, weight_map

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

#: A rule is (what, by what); ``what`` is a plain substring, or a compiled pattern.
Rule = tuple[str | re.Pattern[str], str]


def read_checkpoint(path: str | Path, *, key: str = "", prefix: str = "", rules: Sequence[Rule] = ()) -> State:
    """The state dict in a file: safetensors, or what ``torch.save`` wrote, read with ``weights_only``.

    Parameters
    ----------
    key : path of nested keys to the state dict, ``"model"`` or ``"state/net"``; without it the file may hold it bare.
    prefix : prefix that is taken from names that have it (``"module."``).
    rules : renames, applied in order after the prefix.

    Raises
    ------
    WeightsError
        The file is missing, damaged, holds code besides tensors, or has no state dict at ``key``.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} does not exist", remedy="Fetch it with omlab pull")
    state = _descend(_content(path), key, path)
    tensors = {str(name): value for name, value in state.items() if hasattr(value, "is_floating_point")}
    if not tensors:
        holds = ", ".join(map(str, list(state)[:8])) or "nothing"
        raise WeightsError(f"{path}: holds no tensors at '{key or 'its top'}', there is {holds}")
    return rename(tensors, prefix=prefix, rules=rules)


def read_sharded(path: str | Path, *, rules: Sequence[Rule] = ()) -> State:
    """The state dict of a checkpoint in one file or, where ``path`` is an index of shards, in several.

    Raises
    ------
    WeightsError
        Like :func:`read_checkpoint`; two shards hold the same name, or one lacks what the index says it holds.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} does not exist", remedy="Fetch it with omlab pull")
    shards = shards_of(path)
    held = {} if path in shards else weight_map(path)
    state: State = {}
    for shard in shards:
        found = read_checkpoint(shard)
        twice = next((name for name in found if name in state), None)
        if twice is not None:
            raise WeightsError(f"{shard}: holds '{twice}', which an earlier file of the checkpoint holds too")
        lacks = next((name for name, file in held.items() if file == shard.name and name not in found), None)
        if lacks is not None:
            raise WeightsError(
                f"{shard}: lacks '{lacks}', which {path.name} says it holds", remedy="Fetch both again from one place"
            )
        state.update(found)
    return rename(state, rules=rules)


def read_content(path: str | Path) -> dict[str, Any]:
    """All that lies at the top of a weights file, what is no tensor too, read as safely.

    Raises
    ------
    WeightsError
        Like :func:`read_checkpoint`.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} does not exist", remedy="Fetch it with omlab pull")
    return {str(name): value for name, value in _descend(_content(path), "", path).items()}


def entries_of(path: str | Path) -> dict[str, type]:
    """What lies at the top of a weights file: name -> type. Upstream's scripts differ in what they put there.

    Raises
    ------
    WeightsError
        Like :func:`read_checkpoint`.
    """
    return {name: type(value) for name, value in read_content(path).items()}


def _content(path: Path) -> Any:
    with open(path, "rb") as file:
        start = file.read(16)
    return _safetensors(path) if _is_safetensors(start) else _pickled(path)


def _is_safetensors(start: bytes) -> bool:
    return len(start) > 8 and start[8:9] == b"{"


def _safetensors(path: Path) -> Any:
    require("safetensors", needed_for=f"reading {path.name}", install="omlab-sdk[torch]")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged: {error}", remedy="Fetch it again") from None


def _pickled(path: Path) -> Any:
    torch = require("torch", needed_for=f"reading {path.name}", install="omlab-sdk[torch]")
    import pickle

    mapped = zipfile.is_zipfile(path)
    try:
        # Training scripts of this field store their arguments as a Namespace and their scores as NumPy numbers, which
        # are data and do nothing.
        with torch.serialization.safe_globals([argparse.Namespace, *_numpy_numbers()]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it names '{named.group(1)}'" if named else "it is no file of torch.save"
        raise WeightsError(
            f"{path} cannot be read safely: {what}, which is more than tensors",
            remedy="Ask its authors for safetensors; omlab runs no code from weights files",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is damaged or no weights file: {first}", remedy="Fetch it again") from None


def _numpy_numbers() -> list[Any]:
    """What a pickled NumPy number names, under the module names of NumPy 1 and 2."""
    import codecs

    import numpy as np

    scalar = np._core.multiarray.scalar
    kinds = {type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "bool")}
    names = [(scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")]
    return [*names, np.dtype, *kinds, (codecs.encode, "_codecs.encode")]


def _descend(content: Any, key: str, path: Path) -> Mapping[str, Any]:
    found = content
    for part in key.split("/") if key else ():
        if not isinstance(found, Mapping) or part not in found:
            has = ", ".join(map(str, list(found)[:8])) if isinstance(found, Mapping) else type(found).__name__
            raise WeightsError(f"{path}: has no entry '{key}', it has {has}", remedy="Is it the file of another model?")
        found = found[part]
    if not isinstance(found, Mapping):
        raise WeightsError(f"{path}: holds {type(found).__name__} at '{key or 'its top'}', a state dict was expected")
    return found


def rename(state: Mapping[str, Any], *, prefix: str = "", rules: Sequence[Rule] = ()) -> State:
    """Names without ``prefix`` and changed by ``rules``; :class:`omlab.errors.WeightsError` if two become one."""
    renamed: State = {}
    for old, tensor in state.items():
        new = old.removeprefix(prefix)
        for what, by in rules:
            new = new.replace(what, by) if isinstance(what, str) else what.sub(by, new)
        if new in renamed:
            raise WeightsError(
                f"two entries of the weights become '{new}', one of them '{old}'", remedy="Check the rules"
            )
        renamed[new] = tensor
    return renamed


def load_into(
    module: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    *,
    name: str,
    ignore: Iterable[str] = (),
    allow_missing: Iterable[str] = (),
) -> torch.nn.Module:
    """Load ``state`` into ``module`` in place, or say what does not fit.

    Parameters
    ----------
    name : what the state is of, for the message; usually its path.
    ignore : patterns (``fullmatch``) of entries of the file that the module has no use for.
    allow_missing : patterns of entries of the module that keep what the constructor gave them.

    Raises
    ------
    WeightsError
        An entry is missing, unexpected or of another shape; the message counts them and names the first.
    """
    own = module.state_dict()
    ignored = [re.compile(pattern) for pattern in ignore]
    allowed = [re.compile(pattern) for pattern in allow_missing]
    given = {key: value for key, value in state.items() if key in own or not any(p.fullmatch(key) for p in ignored)}
    missing = [key for key in own if key not in given and not any(p.fullmatch(key) for p in allowed)]
    unexpected = [key for key in given if key not in own]
    shapes = [key for key, value in given.items() if key in own and value.shape != own[key].shape]
    if missing or unexpected or shapes:
        raise WeightsError(_report(name, own, given, missing, unexpected, shapes), remedy=_remedy(own, given, shapes))
    module.load_state_dict(given, strict=False)
    return module


def _report(name: str, own: Any, given: Any, missing: list[str], unexpected: list[str], shapes: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"{_count(missing, 'entry', 'entries')} missing, first '{missing[0]}'")
    if unexpected:
        parts.append(f"{_count(unexpected, 'entry', 'entries')} unexpected, first '{unexpected[0]}'")
    if shapes:
        first = shapes[0]
        parts.append(
            f"{_count(shapes, 'entry', 'entries')} of another shape, first '{first}' {tuple(given[first].shape)}, "
            f"expected {tuple(own[first].shape)}"
        )
    return f"{name}: does not fit the network: {'; '.join(parts)}"


def _count(items: list[str], one: str, many: str) -> str:
    return f"{len(items)} {one if len(items) == 1 else many}"


def _remedy(own: Any, given: Any, shapes: list[str]) -> str:
    shared = len(set(own) & set(given))
    if not shared:
        stripped = {key.partition(".")[2] for key in given}
        if len(stripped & set(own)) > len(own) // 2:
            first = next(iter(given)).partition(".")[0]
            return f"Every name begins with '{first}.': set prefix = \"{first}.\" in the card"
        return "It is the file of another model"
    if shapes and shared == len(own):
        return "It is the same architecture in another size: choose the variant that fits"
    return "It is the file of another model or another version of this one"
