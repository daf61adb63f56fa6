"""What a plugin implements to contribute an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab.cards import EvaluatorCard

if TYPE_CHECKING:
    from omlab.report import Report
    from omlab.results import Result


@attrs.frozen(eq=False, kw_only=True)
class Pair:
    """A prediction beside its reference."""

    name: str
    prediction: Result
    reference: Result


class Evaluator:
    """Base of every contributed evaluator."""

    def __init__(self, card: EvaluatorCard) -> None:
        self.card = card

    def score(self, pairs: Iterable[Pair], options: Mapping[str, Any]) -> Report:
        """Score pairs as they come; a pair is dropped from memory once it is scored."""
        raise TypeError(f"{type(self).__name__} must define score()")

    def score_files(self, files: Sequence[Path], options: Mapping[str, Any]) -> Report:
        """Score files that exist, ``omlab score EVALUATOR FILES...``; what they are is the evaluator's affair."""
        raise TypeError(f"{type(self).__name__} must define score_files()")
