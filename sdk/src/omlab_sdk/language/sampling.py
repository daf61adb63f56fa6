"""The next token from logits: filters in the order of the transformers library, then one draw. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import UsageError


@attrs.frozen(kw_only=True)
class Sampling:
    """How an answer is drawn.

    Attributes
    ----------
    max_new_tokens : tokens that an answer may have, the end token among them.
    min_new_tokens : the end token is not drawn before the answer has so many.
    temperature : logits are divided by it; 0 takes the most probable token and nothing is drawn.
    top_k : only so many of the most probable tokens; 0 takes all.
    top_p : of these only the smallest set whose probability reaches it; 1 takes all.
    seed : the same seed gives the same answer; ``None`` draws a new one.
    ends : ids of tokens that end an answer.
    """

    max_new_tokens: int = 512
    min_new_tokens: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    ends: tuple[int, ...] = attrs.field(default=(), converter=tuple)

    def __attrs_post_init__(self) -> None:
        rules = (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("min_new_tokens", self.min_new_tokens >= 0, "0 or more"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
        )
        for name, holds, allowed in rules:
            if not holds:
                raise UsageError(f"{name} must be {allowed}, found {getattr(self, name)}")


def distribution(
    logits: NDArray[np.floating], sampling: Sampling, *, may_end: bool = True
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Ids that may be drawn, the most probable first, and their probabilities.

    Parameters
    ----------
    logits : [vocabulary].
    may_end : ``False`` while the answer has fewer than ``min_new_tokens``.
    """
    scores = np.array(logits, dtype=np.float32)
    if not may_end:
        scores[list(sampling.ends)] = -np.inf
    if sampling.temperature == 0:
        return np.array([scores.argmax()]), np.ones(1, np.float32)
    scores /= np.float32(sampling.temperature)
    if 0 < sampling.top_k < scores.size:
        least = np.partition(scores, scores.size - sampling.top_k)[scores.size - sampling.top_k]
        ids = np.flatnonzero(scores >= least)  # ties with the last of them stay
    else:
        ids = np.arange(scores.size)
    ids = ids[np.argsort(-scores[ids], kind="stable")]
    chances = np.exp(scores[ids] - scores[ids[0]])
    chances /= chances.sum()
    if sampling.top_p < 1:
        before = np.cumsum(chances) - chances
        kept = before < sampling.top_p
        kept[0] = True
        ids, chances = ids[kept], chances[kept]
        chances = chances / chances.sum()
    return ids, chances


def probabilities(logits: NDArray[np.floating], sampling: Sampling, *, may_end: bool = True) -> NDArray[np.float32]:
    """[rows, vocabulary] probabilities after all filters, of logits [rows, vocabulary]."""
    found = np.zeros(logits.shape, np.float32)
    for row, scores in zip(found, logits, strict=True):
        ids, chances = distribution(scores, sampling, may_end=may_end)
        row[ids] = chances
    return found


class Sampler:
    """Draws the tokens of several answers side by side; each row has its own random numbers, so that an answer does
    not depend on what runs beside it."""

    def __init__(self, sampling: Sampling, rows: int = 1) -> None:
        self.sampling = sampling
        self._random = [np.random.default_rng(sampling.seed) for _ in range(rows)]

    def draw(self, logits: NDArray[np.floating], written: Sequence[int]) -> list[int]:
        """One id a row of logits [rows, vocabulary]; ``written``: tokens of each row's answer so far."""
        drawn = []
        for scores, count, random in zip(logits, written, self._random, strict=True):
            ids, chances = distribution(scores, self.sampling, may_end=count >= self.sampling.min_new_tokens)
            place = np.searchsorted(np.cumsum(chances), random.random(), side="right") if len(ids) > 1 else 0
            drawn.append(int(ids[min(int(place), len(ids) - 1)]))
        return drawn
