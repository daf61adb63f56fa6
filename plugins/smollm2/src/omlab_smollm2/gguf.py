"""Read a GGUF file: its facts, and its tensors in the block formats that the file of SmolLM2 uses. NumPy only.

The layout is that of the GGUF specification, version 3: a header, key-value pairs, the tensors' descriptions, then
their bytes, aligned. A tensor's dimensions are stored with the fastest first.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import WeightsError

_NUMBERS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9
_BLOCK = 32
#: Block of 32 numbers, by the number of its type.
_KINDS: dict[int, tuple[np.dtype[Any], int]] = {
    0: (np.dtype("<f4"), 1),
    1: (np.dtype("<f2"), 1),
    3: (np.dtype([("scale", "<f2"), ("least", "<f2"), ("codes", "u1", (_BLOCK // 2,))]), _BLOCK),  # Q4_1
    8: (np.dtype([("scale", "<f2"), ("codes", "i1", (_BLOCK,))]), _BLOCK),  # Q8_0
}


@attrs.frozen
class _Stored:
    kind: int
    shape: tuple[int, ...]
    offset: int


class Gguf:
    """An open file.

    Attributes
    ----------
    facts : key -> number, text or list.
    """

    def __init__(self, path: Path) -> None:
        """Raises :class:`omlab.errors.WeightsError` where it is missing, damaged or of another version."""
        self._path = path
        try:
            with open(path, "rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._at = 0
            self.facts, self._tensors, self._base = self._head()
        except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
            raise WeightsError(f"{path} is damaged or no GGUF file: {error}", remedy="Fetch it again") from None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors."""
        return tuple(self._tensors)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor in float32, slowest dimension first.

        Raises :class:`omlab.errors.WeightsError` for a name or a block format that the file or this reader has not.
        """
        stored = self._tensors.get(name)
        if stored is None:
            raise WeightsError(f"{self._path} holds no tensor '{name}'", remedy="Is it the file of another model?")
        if stored.kind not in _KINDS:
            raise WeightsError(f"{self._path}: tensor '{name}' is of the block format {stored.kind}, not read here")
        dtype, block = _KINDS[stored.kind]
        count = int(np.prod(stored.shape)) // block
        start = self._base + stored.offset
        if start + count * dtype.itemsize > len(self._bytes):
            raise WeightsError(f"{self._path} is cut short within '{name}'", remedy="Fetch it again")
        raw = np.frombuffer(self._bytes, dtype, count, start)
        return _numbers(raw, stored.kind).reshape(stored.shape)

    def _head(self) -> tuple[dict[str, Any], dict[str, _Stored], int]:
        if self._bytes[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, tensors, pairs = self._unpack("<I"), self._unpack("<Q"), self._unpack("<Q")
        if version != 3:
            raise ValueError(f"it is of version {version}, 3 is read here")
        facts = {self._text(): self._value(self._unpack("<I")) for _ in range(pairs)}
        found = {}
        for _ in range(tensors):
            name = self._text()
            shape = tuple(self._unpack("<Q") for _ in range(self._unpack("<I")))[::-1]
            found[name] = _Stored(self._unpack("<I"), shape, self._unpack("<Q"))
        alignment = int(facts.get("general.alignment", 32))
        return facts, found, -(-self._at // alignment) * alignment

    def _unpack(self, form: str) -> Any:
        value = struct.unpack_from(form, self._bytes, self._at)[0]
        self._at += struct.calcsize(form)
        return value

    def _text(self) -> str:
        length = self._unpack("<Q")
        end = self._at + length
        if end > len(self._bytes):
            raise ValueError("it ends within a text")
        text = self._bytes[self._at : end].decode("utf-8")
        self._at = end
        return text

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind == _LIST:
            inner, count = self._unpack("<I"), self._unpack("<Q")
            return [self._value(inner) for _ in range(count)]
        if kind not in _NUMBERS:
            raise ValueError(f"a value is of type {kind}")
        return self._unpack(_NUMBERS[kind])


def _numbers(raw: NDArray[Any], kind: int) -> NDArray[np.float32]:
    if kind in (0, 1):
        return raw.astype(np.float32)
    scale = raw["scale"].astype(np.float32)[:, None]
    if kind == 8:
        return scale * raw["codes"].astype(np.float32)
    # The low halves of the 16 bytes are the first 16 numbers of a block, the high halves the other 16.
    codes = np.concatenate([raw["codes"] & 15, raw["codes"] >> 4], axis=1).astype(np.float32)
    return scale * codes + raw["least"].astype(np.float32)[:, None]


def rotary_order(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a query or key projection from the order of GGUF (pairs side by side) to that of halves."""
    return np.ascontiguousarray(
        weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)
    )


def llama_names(layers: int) -> Mapping[str, str]:
    """Name in a GGUF file -> name of the Llama layout."""
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    parts = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    for layer in range(layers):
        for theirs, ours in parts.items():
            names[f"blk.{layer}.{theirs}.weight"] = f"model.layers.{layer}.{ours}.weight"
    return names
