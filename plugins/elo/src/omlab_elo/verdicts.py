"""From the judge's text to a winner, by PULSE-EVAL's rule."""

from __future__ import annotations

import math

#: Winners of a battle; the second tie is a text without scores.
A, B, TIE, UNPARSED = "model_a", "model_b", "tie", "tie (None)"
WINNERS = (A, B, TIE, UNPARSED)


def scores_of(text: str | None) -> tuple[float, float] | None:
    """Scores of the first and second answer; ``None`` where the text does not begin with two numbers.

    The first line, commas taken as blanks and split at single blanks, must be exactly two numbers; so ``8, 9``, a
    blank too many, a tab or ``9/10 8/10`` are none. Numbers that are not finite are refused: no winner follows.
    """
    if not text:
        return None
    parts = text.split("\n", 1)[0].replace(",", " ").split(" ")
    if len(parts) != 2:
        return None
    try:
        first, second = float(parts[0]), float(parts[1])
    except ValueError:
        return None
    return (first, second) if math.isfinite(first) and math.isfinite(second) else None


def winner_of(scores: tuple[float, float] | None) -> str:
    """Who wins with these scores."""
    if scores is None:
        return UNPARSED
    if scores[0] == scores[1]:
        return TIE
    return A if scores[0] > scores[1] else B
