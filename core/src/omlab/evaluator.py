"""What a plugin implements to contribute an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab.cards import EvaluatorCard
from omlab.errors import OmlabError
from omlab.progress import Listener, silent

if TYPE_CHECKING:
    from omlab.cases import Case
    from omlab.report import Report
    from omlab.results import Result


@attrs.frozen(eq=False, kw_only=True)
class Pair:
    """A prediction beside its reference.

    Attributes
    ----------
    scan : reads what the model looked at, for pictures; ``None`` where only answers are there.
    refused : is told why this pair cannot be scored, so that the others still are; ``None`` where nobody listens.
    """

    name: str
    prediction: Result
    reference: Result
    scan: Callable[[], Case] | None = None
    refused: Callable[[OmlabError], None] | None = None

    def refuse(self, error: OmlabError) -> None:
        """Leave this pair out because of ``error``; raises it where nobody listens."""
        if self.refused is None:
            raise error
        self.refused(error)


@attrs.frozen(eq=False)
class Resampled:
    """A figure of several reports over the cases that they share.

    Attributes
    ----------
    values : [reports] over all of the shared cases.
    draws : [reports, rounds] over cases drawn with replacement, the same for every report; NaN where it is undefined.
    cases : how many they share.
    """

    values: Any
    draws: Any
    cases: int


class Evaluator:
    """Base of every contributed evaluator.

    Attributes
    ----------
    listener : told how far the scoring of files is, where that takes long.
    """

    def __init__(self, card: EvaluatorCard) -> None:
        self.card = card
        self.listener: Listener = silent

    def score(self, pairs: Iterable[Pair], options: Mapping[str, Any]) -> Report:
        """Score pairs as they come; a pair is dropped from memory once it is scored."""
        raise TypeError(f"{type(self).__name__} must define score()")

    def resampled(self, reports: Sequence[Mapping[str, Any]], *, rounds: int, seed: int) -> Mapping[str, Resampled]:
        """Figures that are no mean over cases, of several reports as JSON gives them, on the same draws of the cases
        that all of them have: metric -> draws. :func:`omlab.comparing.compare` asks for them; none without."""
        return {}

    def score_files(self, files: Sequence[Path], options: Mapping[str, Any]) -> Report:
        """Score files that exist, ``omlab score EVALUATOR FILES...``; what they are is the evaluator's affair."""
        raise TypeError(f"{type(self).__name__} must define score_files()")
