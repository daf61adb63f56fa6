"""Generation over a plain ONNX graph that takes and gives the key-value cache: for networks that onnxruntime-genai
cannot take. The same graph reads a prompt and continues it, so the weights are held once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.engines.base import Engine
from omlab.errors import InputError
from omlab.graphs import Graph, Judge, TensorSpec

GRAPH = "decoder"
#: Engines of the core, and weights of few bits.
ENGINES = ("onnxruntime", "openvino", "tensorrt", "torch", "onnxruntime-nbits")


def cached_graph(
    config: dict[str, Any], sources: Sequence[str], *, vocabulary: int, layers: int, heads: int, size: int, context: int
) -> Graph:
    """The declaration of such a graph.

    Inputs: ``input_ids`` and ``mask`` [batch, length] int64, ``past_mask`` [batch, past], ``past_keys`` and
    ``past_values`` [past, batch, layers, heads, size] float32 with ``past`` at least 1. Outputs: ``logits`` [batch,
    vocabulary] of the token after the last column, ``keys`` and ``values`` [length, batch, layers, heads, size].
    """
    rows = {"batch": (1, 1, 64), "length": (1, 16, context), "past": (1, 32, context)}
    cache = ("past", "batch", layers, heads, size)
    new = ("length", "batch", layers, heads, size)

    def spec(name: str, dtype: str, shape: tuple[int | str, ...]) -> TensorSpec:
        ranges = {axis: rows[axis] for axis in shape if isinstance(axis, str)}
        return TensorSpec(name, dtype, shape, " ".join(map(str, shape)), ranges)

    return Graph(
        name=GRAPH,
        inputs=(
            spec("input_ids", "int64", ("batch", "length")), spec("mask", "int64", ("batch", "length")),
            spec("past_mask", "int64", ("batch", "past")), spec("past_keys", "float32", cache),
            spec("past_values", "float32", cache),
        ),
        outputs=(
            spec("logits", "float32", ("batch", vocabulary)), spec("keys", "float32", new),
            spec("values", "float32", new),
        ),
        judge={"logits": Judge.LANGUAGE, "keys": Judge.VALUES, "values": Judge.VALUES},
        engines=ENGINES,
        sources=tuple(sources),
        config=config,
    )  # fmt: skip


def examples(graph: Graph, vocabulary: int, *, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """A prompt to read, and a token that continues a past of random keys and values."""
    random = np.random.default_rng(seed)
    _, _, layers, heads, size = graph.inputs[3].shape
    found = []
    for length, past in ((24, 1), (1, 24)):
        shape = (past, 1, layers, heads, size)
        keys, values = (random.standard_normal(shape).astype(np.float32) for _ in range(2))
        mask = np.ones((1, past), np.int64)
        if past == 1:
            keys[:] = values[:] = 0
            mask[:] = 0
        found.append(
            {
                "input_ids": random.integers(4, vocabulary, (1, length)), "mask": np.ones((1, length), np.int64),
                "past_mask": mask, "past_keys": keys, "past_values": values,
            }
        )  # fmt: skip
    return found


class CachedDecoder:
    """A decoder (:class:`omlab_sdk.language.generating.Decoder`) over such an engine.

    Parameters
    ----------
    context : tokens that a text may have.
    """

    def __init__(self, engine: Engine, graph: Graph, context: int) -> None:
        self._engine = engine
        self._cache = tuple(int(size) for size in graph.inputs[3].shape[2:])
        self.context = context
        self.token_bytes = 8 * math.prod(self._cache)  # a key and a value in float32

    def open(self, prompts: Sequence[Sequence[int]], room: int, *, stretch: bool = False) -> CachedTexts:
        """Read prompts; see the protocol. ``stretch`` changes nothing: ALiBi has no trained length to stretch."""
        if not prompts:
            raise InputError("there is no prompt to continue")
        for prompt in prompts:
            self.way(prompt, room, stretch=stretch)
        return CachedTexts(self._engine, prompts, max(map(len, prompts)) + room, self._cache)

    def way(self, prompt: Sequence[int], room: int, *, stretch: bool = False) -> int:
        """See the protocol; there is only one."""
        if not prompt:
            raise InputError("a prompt is empty, there is nothing to continue")
        if len(prompt) + room > self.context:
            raise InputError(
                f"the text has {len(prompt)} tokens and room for {room} more, the model reads {self.context}",
                remedy="Shorten the text or lower --max-new-tokens",
            )
        return 1


class CachedTexts:
    """Texts under way. The cache is one array a kind, filled from the front; what a step reads is its beginning."""

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]], length: int, cache: tuple[int, ...]) -> None:
        rows, longest = len(prompts), max(map(len, prompts))
        self._engine = engine
        self._keys = np.zeros((1 + length, rows, *cache), np.float32)
        self._values = np.zeros_like(self._keys)
        self._mask = np.zeros((rows, 1 + length), np.int64)
        self._used = 1  # one slot that the mask hides, since a past cannot be empty
        ids = np.zeros((rows, longest), np.int64)
        mask = np.zeros((rows, longest), np.int64)
        for row, (text, shown) in enumerate(zip(ids, mask, strict=True)):
            prompt = prompts[row]
            text[longest - len(prompt) :] = prompt
            shown[longest - len(prompt) :] = 1
        self._logits = self._read(ids, mask)

    def logits(self) -> NDArray[np.float32]:
        """[rows, vocabulary]."""
        return self._logits

    def append(self, ids: Sequence[int]) -> None:
        """Read one more token in every row."""
        column = np.asarray(ids, np.int64)[:, None]
        self._logits = self._read(column, np.ones_like(column))

    def close(self) -> None:
        """Give the cache back."""
        del self._keys, self._values

    def _read(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        used, new = self._used, self._used + ids.shape[1]
        found = self._engine(
            {
                "input_ids": ids, "mask": mask, "past_mask": np.ascontiguousarray(self._mask[:, :used]),
                "past_keys": self._keys[:used], "past_values": self._values[:used],
            }
        )  # fmt: skip
        self._keys[used:new], self._values[used:new] = found["keys"], found["values"]
        self._mask[:, used:new] = mask
        self._used = new
        logits: NDArray[np.float32] = found["logits"]
        return logits
