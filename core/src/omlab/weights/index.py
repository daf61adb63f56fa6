"""Checkpoints in several files: an index names the shards, which lie beside it.

The form is the one that the transformers library writes (``pytorch_model.bin.index.json``,
``model.safetensors.index.json``): ``weight_map`` says of every tensor in which file it is. Where a user brings a
checkpoint without an index, one file or several, an index is written for it that lists its files as ``files``.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urljoin

import attrs

from omlab.cards import Asset
from omlab.errors import WeightsError
from omlab.vocabulary import SourceKind

ENDING = ".index.json"
CHECKPOINTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_REMEDY = "Fetch it again; if it stays so, tell the plugin's authors"


def weight_map(path: Path) -> dict[str, str]:
    """Name of a tensor -> name of the shard that holds it; empty for an index that only lists files.

    Raises :class:`omlab.errors.WeightsError` for a file that is no index.
    """
    return _read(path)[0]


def shards_of(path: Path) -> tuple[Path, ...]:
    """Files of a checkpoint: what an index names, in order of name; the file itself where it is no index.

    Raises :class:`omlab.errors.WeightsError` for an index that cannot be used.
    """
    if not path.name.endswith(ENDING):
        return (path,)
    return tuple(path.parent / name for name in _read(path)[1])


def shard_assets(asset: Asset, path: Path) -> tuple[Asset, ...]:
    """What is to be fetched for the index ``path`` of ``asset``: from beside it, each with its digest if the card
    knows one. Raises what :func:`shards_of` does."""
    names = _read(path)[1]
    unknown = sorted(set(asset.shards) - set(names))
    if unknown:
        raise WeightsError(f"{path}: does not name {unknown[0]}, which the card has a digest of", remedy=_REMEDY)
    return tuple(_beside(asset, name) for name in names)


def gather(given: Path, filename: str) -> tuple[bytes, tuple[Path, ...]]:
    """The index and the files of a checkpoint that a user has: a folder, an index, or a single file.

    Parameters
    ----------
    filename : name of the index; in a folder it goes before every other.

    Raises
    ------
    WeightsError
        There is no checkpoint, a shard is missing, or a folder holds more than one.
    """
    index = _index_in(given, filename) if given.is_dir() else given if given.name.endswith(".json") else None
    if index is not None:
        shards = tuple(index.parent / name for name in _read(index)[1])
        absent = [shard.name for shard in shards if not shard.is_file()]
        if absent:
            raise WeightsError(
                f"{index}: names {len(shards)} files, {len(absent)} of them are not beside it, first {absent[0]}",
                remedy="Put them there",
            )
        return index.read_bytes(), shards
    files = _files_in(given) if given.is_dir() else (given,)
    return json.dumps({"weight_map": {}, "files": [file.name for file in files]}).encode(), files


def _index_in(folder: Path, filename: str) -> Path | None:
    if (folder / filename).is_file():
        return folder / filename
    others = sorted(folder.glob(f"*{ENDING}"))
    if len(others) > 1:
        raise WeightsError(
            f"{folder}: holds {', '.join(other.name for other in others)}", remedy="Name the one that is to be taken"
        )
    return others[0] if others else None


def _files_in(folder: Path) -> tuple[Path, ...]:
    """All files of one checkpoint, in the order of the numbers in their names."""
    kinds: dict[str, list[Path]] = {}
    for file in folder.iterdir():
        if file.suffix in CHECKPOINTS and file.is_file():
            kinds.setdefault(file.suffix, []).append(file)
    if len(kinds) != 1:
        has = f"files of the kinds {', '.join(sorted(kinds))}" if kinds else "no weights file"
        raise WeightsError(f"{folder}: holds no index and {has}", remedy="Name the weights file itself")
    (found,) = kinds.values()
    return tuple(sorted(found, key=lambda file: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", file.name)]))


def _read(path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The map of an index, and the names of its files."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}", remedy=_REMEDY) from None
    except ValueError as error:
        raise WeightsError(f"{path} is no index of shards: {error}", remedy=_REMEDY) from None
    found = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(found, Mapping):
        raise WeightsError(f"{path} is no index of shards: it has no weight_map", remedy=_REMEDY)
    names = content.get("files") or sorted({str(name) for name in found.values()})
    if not names or not isinstance(names, list):
        raise WeightsError(f"{path}: names no shard", remedy=_REMEDY)
    for name in names:
        # A name from outside must not lead out of the folder, nor onto the index itself.
        if not isinstance(name, str) or not re.fullmatch(r"[\w][\w.+ -]*", name) or name.endswith(".json"):
            raise WeightsError(f"{path}: names the shard {name!r}, which is no file beside it", remedy=_REMEDY)
    return {str(tensor): str(name) for tensor, name in found.items()}, tuple(names)


def _beside(asset: Asset, name: str) -> Asset:
    """The file ``name`` beside ``asset`` at its source."""
    own = {
        SourceKind.HTTPS: {"url": urljoin(asset.url, quote(name))},
        SourceKind.WHEEL: {"member": posixpath.join(posixpath.dirname(asset.member), name)},
    }.get(asset.source, {"file": posixpath.join(posixpath.dirname(asset.file), name)})
    return attrs.evolve(asset, **own, index=False, shards={}, sha256=asset.shards.get(name, ""), size=None)
