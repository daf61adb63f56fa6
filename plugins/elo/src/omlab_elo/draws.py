"""The draws of the bootstrap: those of NumPy's legacy generator, number for number, without its loop."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

#: Draws of one round that are held at once where not all rounds fit.
_STEPS = 4096
#: Draws of all rounds that are held at once, in numbers: 64 MB.
_HELD = 1 << 24
#: Random words that are made at once: they stay in the processor's cache.
_WORDS = 1 << 14


class Draws:
    """Numbers from 0 to ``count`` - 1 as ``RandomState(seed).choice(count, ...)`` gives them, in any portions.

    The legacy generator takes a word of 32 bits, keeps as many low bits as the greatest number has, and throws the
    word away where that is too great. Here many words are looked at in one go.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._generator = np.random.RandomState(seed)
        self._count = count
        self._mask = np.uint32((1 << (count - 1).bit_length()) - 1)
        self._left = np.empty(0, np.uint32)

    def copy(self) -> Draws:
        """Another one that goes on from here by itself."""
        other = object.__new__(Draws)
        other.__dict__.update(self.__dict__)
        other._generator = np.random.RandomState(0)
        other._generator.set_state(self._generator.get_state(legacy=False))
        return other

    def take(self, number: int) -> NDArray[np.uint32]:
        """The next ``number`` draws."""
        parts, have = [self._left], len(self._left)
        while have < number:
            # One in two words is thrown away at worst.
            words = min(_WORDS, 2 * (number - have) + 64)
            drawn = self._generator.randint(0, 1 << 32, words, dtype=np.uint32)
            drawn &= self._mask
            # By indices, since a mask of random bits is slow to select by.
            parts.append(drawn.take(np.flatnonzero(drawn < self._count)))
            have += len(parts[-1])
        drawn = np.concatenate(parts)
        # A copy, which does not hold what is given out.
        self._left = drawn[number:].copy()
        return drawn[:number]


def blocks(count: int, *, rounds: int, seed: int) -> Iterator[NDArray[np.uint32]]:
    """[steps, rounds] blocks of the rounds' draws, in order of the steps; together [count, rounds].

    A round's draws follow those of the round before it. Where they do not fit into memory together, they are gone
    through once to learn where each round begins, and then made again in every round a portion at a time.
    """
    draws = Draws(count, seed)
    if rounds * count <= _HELD:
        yield draws.take(rounds * count).reshape(rounds, count).T
        return
    starts = []
    for _ in range(rounds):
        starts.append(draws.copy())
        for begin in range(0, count, _HELD):
            draws.take(min(_HELD, count - begin))
    for begin in range(0, count, _STEPS):
        steps = min(_STEPS, count - begin)
        yield np.stack([start.take(steps) for start in starts]).T
