"""Take the tensors of a TorchScript archive and run none of its code.

``torch.jit.save`` writes a zip: ``data.pkl`` is a pickle of the module tree, ``data/<key>`` holds the raw bytes of
each storage, ``code/`` is the program. Only the first two are read here. The pickle goes through an unpickler that
knows a handful of names: those that rebuild a tensor do so, checked against the size of its storage; classes of the
archive's own program (``__torch__.*``) become inert bags of attributes; anything else is refused.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from omlab.errors import WeightsError

if TYPE_CHECKING:
    import torch

#: Storage class in the pickle -> name of the dtype.
_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_AGAIN = "Fetch the file again"


def read_torchscript(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a TorchScript archive, named by their path in the module tree (``"down0.block1.weight"``).

    Parameters and buffers have the names of ``torch.jit.load(path).state_dict()``; tensors that the program keeps as
    plain attributes come too. Tensors are on the processor, contiguous, and own their memory unless the archive
    shares a storage between them.

    Raises
    ------
    omlab.errors.WeightsError
        The file is missing, damaged or no TorchScript archive; its pickle names something that is not needed for
        tensors; or a tensor lies outside its storage.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return dict(_tensors(_Reader(archive, path).root()))
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist", remedy=_AGAIN) from None
    except (zipfile.BadZipFile, EOFError) as error:
        raise WeightsError(
            f"{path} is no whole TorchScript archive: {_line(error)}; a zip file of torch.jit.save was expected",
            remedy=_AGAIN,
        ) from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from None
    except (pickle.UnpicklingError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # What pickle raises for bytes that are not of its own making.
        raise WeightsError(f"{path}: its data.pkl is damaged: {_line(error)}", remedy=_AGAIN) from None


class _Bag:
    """Stands in for an object of the archive's program; has its attributes and no behaviour."""

    attributes: Any = None

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


class _Storage:
    """A storage of the archive: its dtype, and its elements as a flat tensor."""

    def __init__(self, elements: torch.Tensor) -> None:
        self.elements = elements


class _Reader:
    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive = archive
        self._path = path
        self._storages: dict[str, _Storage] = {}
        members = archive.namelist()
        roots = {PurePosixPath(name).parts[0] for name in members if name}
        self._folder = next(iter(roots)) if len(roots) == 1 else ""
        if f"{self._folder}/data.pkl" not in members:
            raise WeightsError(
                f"{path} is no TorchScript archive: it has no data.pkl", remedy="Name a file written by torch.jit.save"
            )
        if f"{self._folder}/constants.pkl" not in members:
            raise WeightsError(
                f"{path} is a checkpoint of torch.save, a TorchScript archive was expected",
                remedy="Read it with omlab_sdk.checkpoints",
            )
        if f"{self._folder}/byteorder" in members and archive.read(f"{self._folder}/byteorder").strip() != b"little":
            raise WeightsError(f"{path} holds big-endian numbers, little-endian ones were expected")

    def root(self) -> Any:
        with self._archive.open(f"{self._folder}/data.pkl") as file:
            return _Unpickler(file, self).load()

    def storage(self, persistent_id: Any) -> _Storage:
        import torch

        try:
            kind, dtype, key, _, count = persistent_id
        except (TypeError, ValueError):
            raise WeightsError(f"{self._path}: unexpected reference {persistent_id!r} in data.pkl") from None
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise WeightsError(f"{self._path}: unexpected reference {persistent_id!r} in data.pkl")
        if key not in self._storages:
            name = f"{self._folder}/data/{key}"
            try:
                info = self._archive.getinfo(name)
            except KeyError:
                raise WeightsError(f"{self._path}: the storage '{name}' is missing", remedy=_AGAIN) from None
            if info.file_size != count * dtype.itemsize:
                raise WeightsError(
                    f"{self._path}: the storage '{name}' has {info.file_size} bytes, "
                    f"{count} numbers of {str(dtype).removeprefix('torch.')} were expected",
                    remedy=_AGAIN,
                )
            raw = bytearray(self._archive.read(name))
            elements = torch.frombuffer(raw, dtype=dtype) if count else torch.empty(0, dtype=dtype)
            self._storages[key] = _Storage(elements)
        return self._storages[key]

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> torch.Tensor:
        if not isinstance(storage, _Storage) or len(size) != len(stride):
            raise WeightsError(f"{self._path}: a tensor of data.pkl is described wrongly", remedy=_AGAIN)
        numbers = (offset, *size, *stride)
        reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        inside = 0 <= reach < storage.elements.numel() or 0 in size
        if not all(isinstance(n, int) and n >= 0 for n in numbers) or not inside:
            raise WeightsError(f"{self._path}: a tensor of shape {tuple(size)} lies outside its storage", remedy=_AGAIN)
        return storage.elements.as_strided(tuple(size), tuple(stride), offset).contiguous()

    def known(self, module: str, name: str) -> Any:
        """What the pickle may name. Raises :class:`omlab.errors.WeightsError` for all else."""
        import torch

        if module.partition(".")[0] == "__torch__":
            return type(name, (_Bag,), {"__module__": module})
        if module == "torch" and name in _DTYPES:
            return getattr(torch, _DTYPES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in _PLAIN:
            return _PLAIN[name]
        raise WeightsError(
            f"{self._path} names '{module}.{name}', which is not needed to rebuild tensors",
            remedy="Nothing of it was run; do not trust the file before you know why it does",
        )


def _same(value: Any, *_: Any) -> Any:
    return value


#: Typed lists and type tags of TorchScript: the value itself is all that matters here.
_PLAIN: dict[str, Callable[..., Any]] = dict.fromkeys(
    ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag"), _same
)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, reader: _Reader) -> None:
        super().__init__(file)
        self._reader = reader

    def find_class(self, module: str, name: str) -> Any:
        return self._reader.known(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        return self._reader.storage(pid)


def _tensors(node: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors below a bag, depth first, in the order of the attributes."""
    import torch

    if not isinstance(node, _Bag) or not isinstance(node.attributes, dict):
        return
    for name, value in node.attributes.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _tensors(value, f"{prefix}{name}.")


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
