"""Elo ratings: in the order of the battles, and of bootstrap draws of them, all rounds at once.

R_A += K (S_A - E_A) with E_A = 1 / (1 + 10^((R_B - R_A) / 400)), likewise for B, both from the ratings before the
battle; 1000 at the start (PULSE-EVAL, after FastChat's arena).
"""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab_elo.battles import Battles
from omlab_elo.draws import blocks

K, SCALE, BASE, START = 4.0, 400.0, 10.0, 1000.0
#: Battles that are looked up together: what is looked up of a thousand rounds stays in the processor's cache.
_STEPS = 64


def online(battles: Battles, k: float = K) -> NDArray[np.float64]:
    """[models] ratings after all battles in their order."""
    ratings = [START] * len(battles.models)
    rows = zip(battles.first.tolist(), battles.second.tolist(), battles.points.tolist(), strict=True)
    for a, b, points in rows:
        ra, rb = ratings[a], ratings[b]
        ratings[a] = ra + k * (points - 1 / (1 + BASE ** ((rb - ra) / SCALE)))
        ratings[b] = rb + k * (1 - points - 1 / (1 + BASE ** ((ra - rb) / SCALE)))
    return np.array(ratings)


def bootstrap(battles: Battles, *, rounds: int, seed: int, k: float = K) -> NDArray[np.float64]:
    """[rounds, models] ratings after each round's draw with replacement; NaN for a model that a round did not draw.

    The draws are those of ``RandomState(seed).choice(n, n)``, one round after the other, which is what ``sample`` of
    pandas takes with NumPy's seed set. Rounds are independent, so every battle is one step for all of them.
    """
    models = len(battles.models)
    # In units of SCALE / ln(BASE) the expected score is a plain logistic function.
    unit = SCALE / np.log(BASE)
    gain = k / unit
    ratings = np.full(models * rounds, START / unit)
    # The place of a model's rating in a round is model * rounds + round.
    each = np.arange(rounds)
    first, second = battles.first.astype(np.intp) * rounds, battles.second.astype(np.intp) * rounds
    won = gain * battles.points
    taking_part = _taking_part(battles)
    drawn_models = np.zeros((len(taking_part), rounds), np.uint64)
    places_a, places_b = np.empty((2, _STEPS, rounds), np.intp)
    points = np.empty((_STEPS, rounds))
    # A step is so short that a new array would take as long as what is written into it.
    ra, rb, change = np.empty((3, rounds))
    for block in blocks(len(battles), rounds=rounds, seed=seed):
        for start in range(0, len(block), _STEPS):
            drawn = np.ascontiguousarray(block[start : start + _STEPS])
            steps = len(drawn)
            # No index is out of bounds; "clip" spares a copy of what is written.
            first.take(drawn, out=places_a[:steps], mode="clip")
            second.take(drawn, out=places_b[:steps], mode="clip")
            won.take(drawn, out=points[:steps], mode="clip")
            places_a[:steps] += each
            places_b[:steps] += each
            for number, word in enumerate(taking_part):
                drawn_models[number] |= np.bitwise_or.reduce(word.take(drawn), axis=0)
            for a, b, scored in zip(places_a[:steps], places_b[:steps], points[:steps], strict=True):
                ratings.take(a, out=ra, mode="clip")
                ratings.take(b, out=rb, mode="clip")
                np.subtract(rb, ra, out=change)
                np.exp(change, out=change)
                np.add(change, 1.0, out=change)
                np.divide(gain, change, out=change)
                np.subtract(scored, change, out=change)
                # What A wins B loses: K (S_B - E_B) is -K (S_A - E_A).
                np.add(ra, change, out=ra)
                np.subtract(rb, change, out=rb)
                ratings[a] = ra
                ratings[b] = rb
    found = (ratings * unit).reshape(models, rounds)
    for model in range(models):
        word, bit = divmod(model, 64)
        found[model, drawn_models[word] & np.uint64(1 << bit) == 0] = np.nan
    return found.T


def _taking_part(battles: Battles) -> NDArray[np.uint64]:
    """[words, battles] the two models of each battle as bits, 64 models a word."""
    words = np.zeros((-(-len(battles.models) // 64), len(battles)), np.uint64)
    each = np.arange(len(battles))
    for side in (battles.first, battles.second):
        words[side // 64, each] |= np.uint64(1) << (side % 64).astype(np.uint64)
    return words


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


def rate(battles: Battles, *, rounds: int = 1000, seed: int = 0, k: float = K) -> Ratings:
    """Ratings in order, and their bootstrap quantiles."""
    ordered = online(battles, k)
    if not rounds:
        unknown = np.full_like(ordered, np.nan)
        return Ratings(battles, ordered, unknown, unknown, unknown)
    found = bootstrap(battles, rounds=rounds, seed=seed, k=k)
    # The form that looks for NaN takes a model at a time.
    quantile = np.nanquantile if np.isnan(found).any() else np.quantile
    low, median, high = quantile(found, [0.025, 0.5, 0.975], axis=0)
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
