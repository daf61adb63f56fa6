"""Elo ratings: in the order of the battles, and of bootstrap draws of them, all rounds at once.

R_A += K (S_A - E_A) with E_A = 1 / (1 + 10^((R_B - R_A) / 400)), likewise for B, both from the ratings before the
battle; 1000 at the start (PULSE-EVAL, after FastChat's arena).
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab_elo.battles import Battles

K, SCALE, BASE, START = 4.0, 400.0, 10.0, 1000.0
#: Draws that are held at once, in numbers: 256 MB.
_HELD = 1 << 25
#: Battles that are looked up together.
_STEPS = 1024


def online(battles: Battles, k: float = K) -> NDArray[np.float64]:
    """[models] ratings after all battles in their order."""
    ratings = [START] * len(battles.models)
    rows = zip(battles.first.tolist(), battles.second.tolist(), battles.points.tolist(), strict=True)
    for a, b, points in rows:
        ra, rb = ratings[a], ratings[b]
        ratings[a] = ra + k * (points - 1 / (1 + BASE ** ((rb - ra) / SCALE)))
        ratings[b] = rb + k * (1 - points - 1 / (1 + BASE ** ((ra - rb) / SCALE)))
    return np.array(ratings)


def bootstrap(
    battles: Battles, *, rounds: int, seed: int, k: float = K, done: Callable[[int], None] | None = None
) -> NDArray[np.float64]:
    """[rounds, models] ratings after each round's draw with replacement; NaN for a model that a round did not draw.

    The draws are those of ``RandomState(seed).choice(n, n)``, one round after the other, which is what ``sample`` of
    pandas takes with NumPy's seed set. Rounds are independent, so every battle is one step for all of them.
    """
    generator = np.random.RandomState(seed)
    count, models = len(battles), len(battles.models)
    held = max(1, min(rounds, _HELD // count))
    found = np.empty((rounds, models))
    for start in range(0, rounds, held):
        stop = min(rounds, start + held)
        # What choice(count, count) draws round by round, without its checks.
        draws = generator.randint(0, count, (stop - start, count))
        found[start:stop] = _rate(battles, draws, k)
        if done is not None:
            done(stop)
    return found


def _rate(battles: Battles, draws: NDArray[np.integer], k: float) -> NDArray[np.float64]:
    """[rounds, models] of draws [rounds, battles]."""
    models, (rounds, count) = len(battles.models), draws.shape
    # In units of SCALE / ln(BASE) the expected score is a plain logistic function.
    unit = SCALE / np.log(BASE)
    gain = k / unit
    ratings = np.full(rounds * models, START / unit)
    present = np.zeros(rounds * models, bool)
    offsets = (np.arange(rounds) * models).astype(np.intp)
    change = np.empty(rounds)
    for start in range(0, count, _STEPS):
        drawn = np.ascontiguousarray(draws[:, start : start + _STEPS].T)
        first, second = battles.first[drawn] + offsets, battles.second[drawn] + offsets
        won = gain * battles.points[drawn]
        present[first] = present[second] = True
        # A step is so short that a new array would take as long as what is written into it.
        for a, b, points in zip(first, second, won, strict=True):
            ra, rb = ratings[a], ratings[b]
            np.subtract(rb, ra, out=change)
            np.exp(change, out=change)
            change += 1
            np.divide(gain, change, out=change)
            np.subtract(points, change, out=change)
            # What A wins B loses: K (S_B - E_B) is -K (S_A - E_A).
            ra += change
            rb -= change
            ratings[a] = ra
            ratings[b] = rb
    found = ratings * unit
    found[~present] = np.nan
    return found.reshape(rounds, models)


@attrs.frozen(eq=False)
class Ratings:
    """Ratings of one dataset, each array [models].

    Attributes
    ----------
    low, median, high : 2.5 %, 50 % and 97.5 % over the bootstrap rounds that drew the model; NaN without rounds.
    """

    battles: Battles
    online: NDArray[np.float64]
    low: NDArray[np.float64]
    median: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def published(self) -> NDArray[np.int64]:
        """Whole numbers as the authors print them: the median plus a half, cut."""
        return np.trunc(np.where(np.isnan(self.median), self.online, self.median) + 0.5).astype(np.int64)

    def of(self, values: NDArray[np.float64]) -> dict[str, float]:
        """Model -> value."""
        return dict(zip(self.battles.models, values.tolist(), strict=True))


def rate(
    battles: Battles, *, rounds: int = 1000, seed: int = 0, k: float = K, done: Callable[[int], None] | None = None
) -> Ratings:
    """Ratings in order, and their bootstrap quantiles."""
    ordered = online(battles, k)
    if not rounds:
        unknown = np.full_like(ordered, np.nan)
        return Ratings(battles, ordered, unknown, unknown, unknown)
    low, median, high = np.nanquantile(
        bootstrap(battles, rounds=rounds, seed=seed, k=k, done=done), [0.025, 0.5, 0.975], axis=0
    )
    return Ratings(battles, ordered, low, median, high)


def wins(battles: Battles) -> NDArray[np.float64]:
    """[models, models] share of the decided battles of a row's model with a column's that it won; NaN without any."""
    models = len(battles.models)
    decided = battles.points != 0.5
    won = np.zeros((models, models))
    winner = np.where(battles.points > 0.5, battles.first, battles.second)[decided]
    loser = np.where(battles.points > 0.5, battles.second, battles.first)[decided]
    np.add.at(won, (winner, loser), 1)
    total = won + won.T
    return np.where(total > 0, won / np.maximum(total, 1), np.nan)
