"""The loop of generation: prompts in, tokens out, one a step and row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from omlab_sdk.language.sampling import Sampler, Sampling


class Continuation(Protocol):
    """Several texts that a network has read and can be made longer."""

    def logits(self) -> NDArray[np.float32]:
        """[rows, vocabulary] scores of the next token of each text."""
        ...

    def append(self, ids: Sequence[int]) -> None:
        """Read one more token in every row."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class Decoder(Protocol):
    """A language network with a key-value cache."""

    @property
    def token_bytes(self) -> int:
        """Memory of the cache for one token of one text."""
        ...

    def way(self, prompt: Sequence[int], room: int, *, stretch: bool = False) -> int:
        """In which way such a prompt is read: prompts of one way give the same answers side by side as alone.

        Raises what :meth:`open` does for a prompt that cannot be read.
        """
        ...

    def open(self, prompts: Sequence[Sequence[int]], room: int, *, stretch: bool = False) -> Continuation:
        """Read prompts (padded by the decoder), with room for so many tokens after the longest.

        Raises
        ------
        omlab.errors.InputError
            Prompt and room are longer than the network can read.
        """
        ...


def generate(
    decoder: Decoder, prompts: Sequence[Sequence[int]], sampling: Sampling, *, stretch: bool = False
) -> Iterator[list[int | None]]:
    """Tokens of the answers, a list a step with one entry a row: a token, or ``None`` where the answer has ended. End
    tokens are not given out; a row that reached ``max_new_tokens`` simply stops.

    Closing the iterator stops the generation.
    """
    rows = len(prompts)
    sampler = Sampler(sampling, rows)
    written = [0] * rows
    open_rows = [True] * rows
    texts = decoder.open(prompts, sampling.max_new_tokens, stretch=stretch)
    try:
        for step in range(sampling.max_new_tokens):
            drawn = sampler.draw(texts.logits(), written)
            told: list[int | None] = []
            for row, token in enumerate(drawn):
                ended = not open_rows[row] or token in sampling.ends
                open_rows[row] = not ended
                written[row] += not ended
                told.append(None if ended else token)
            yield told
            if not any(open_rows):
                return
            if step + 1 < sampling.max_new_tokens:
                texts.append(drawn)
    finally:
        texts.close()
