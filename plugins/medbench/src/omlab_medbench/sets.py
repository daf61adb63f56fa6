"""MedBench's sets by dimension, and how answers to each are scored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs

from omlab_medbench import choices, extraction, scores


@attrs.frozen
class Scored:
    """What came of the answers to one set.

    Attributes
    ----------
    score : name of the score -> value; ``None`` where it is undefined.
    correct : of every answer, where the score is an accuracy.
    parsed : what was read from every answer, where something was.
    raises : name of the exception that OpenCompass ends with on such answers, in place of a score.
    """

    score: Mapping[str, float | None] = attrs.field(factory=dict)
    correct: tuple[bool, ...] | None = None
    parsed: tuple[Any, ...] | None = None
    raises: str = ""


#: Takes predictions, references and (for CHIP-CDN) the names that are known.
Scorer = Callable[[Sequence[str], Sequence[Any], Collection[str]], Scored]


def _accuracy(correct: Sequence[bool]) -> Scored:
    return Scored({"Accuracy": 100 * sum(correct) / len(correct) if correct else 0.0}, tuple(correct))


def choice(predictions: Sequence[str], references: Sequence[Any], known: Collection[str] = ()) -> Scored:
    """Letters in order, in per cent."""
    return _accuracy([choices.same_letters(p, r) for p, r in zip(predictions, references, strict=True)])


def sound_choice(predictions: Sequence[str], references: Sequence[Any], known: Collection[str] = ()) -> Scored:
    """Letters of the options as a set, in per cent: the platform's own rule."""
    return _accuracy([choices.options_in(p) == set(r) for p, r in zip(predictions, references, strict=True)])


def true_false(predictions: Sequence[str], references: Sequence[Any], known: Collection[str] = ()) -> Scored:
    """Allowed or not, in per cent."""
    return _accuracy([choices.yes_no(p) == r for p, r in zip(predictions, references, strict=True)])


def cloze(predictions: Sequence[str], references: Sequence[Any], known: Collection[str] = ()) -> Scored:
    """All parts occur, in per cent."""
    return _accuracy([choices.all_occur(p, r) for p, r in zip(predictions, references, strict=True)])


def _extracted(read: Callable[[str], list[extraction.Item]]) -> Scorer:
    def score(predictions: Sequence[str], references: Sequence[Any], known: Collection[str] = ()) -> Scored:
        parsed = [read(text) for text in predictions]
        return Scored({"F1": scores.extraction_f1(parsed, references)}, parsed=tuple(parsed))

    return score


def normalised(predictions: Sequence[str], references: Sequence[Any], known: Collection[str] = ()) -> Scored:
    """Known names, F1."""
    parsed = [extraction.terms(text, known) for text in predictions]
    return Scored({"F1": scores.extraction_f1(parsed, references)}, parsed=tuple(parsed))


def classes(predictions: Sequence[str], references: Sequence[Any], known: Collection[str] = ()) -> Scored:
    """Macro F1. An empty reference stands for "none of the classes"; an empty answer is a class of its own."""
    parsed = [text.strip() for text in predictions]
    wanted = [text or "非上述类型" for text in references]
    return Scored({"Macro-F1": scores.macro_f1(parsed, wanted)}, parsed=tuple(parsed))


def generated(predictions: Sequence[str], references: Sequence[Any], known: Collection[str] = ()) -> Scored:
    """ROUGE-L of texts."""
    return Scored({"RougeL": scores.rouge_l(predictions, references)})


def rendered(predictions: Sequence[str], references: Sequence[Any], known: Collection[str] = ()) -> Scored:
    """ROUGE-L against references that are fields, written one a line."""
    texts = ["".join(f"{item['type']}：{item['entity']}\n" for item in items) for items in references]
    return Scored({"RougeL": scores.rouge_l(predictions, texts)})


def long_record(predictions: Sequence[str], references: Sequence[Any], known: Collection[str] = ()) -> Scored:
    """DBMHG. OpenCompass fails on every answer with a field that it knows; this says so in place of a score."""
    parsed = [extraction.record(text, extraction.LONG_RECORD_FIELDS) for text in predictions]
    if any(parsed):
        return Scored(parsed=tuple(parsed), raises="AssertionError")
    return Scored({"F1": scores.extraction_f1([[] for _ in parsed], references)}, parsed=tuple(parsed))


#: OpenCompass's class -> scorer.
EVALUATORS: dict[str, Scorer] = {
    "MedBenchEvaluator": choice,
    "MedBenchEvaluator_TF": true_false,
    "MedBenchEvaluator_Cloze": cloze,
    "MedBenchEvaluator_CMeEE": _extracted(extraction.entities),
    "MedBenchEvaluator_CMeIE": _extracted(extraction.relations),
    "MedBenchEvaluator_CHIP_CDEE": _extracted(extraction.events),
    "MedBenchEvaluator_CHIP_CDN": normalised,
    "MedBenchEvaluator_CHIP_CTC": classes,
    "MedBenchEvaluator_NLG": generated,
    "MedBenchEvaluator_IMCS_V2_MRG": rendered,
    "MedBenchEvaluator_Doc_parsing": rendered,
    "MedBenchEvaluator_SMDoc": rendered,  # what the published configuration asks for and does not have
    "MedBenchEvaluator_DBMHG": long_record,
}
#: Dimension -> set -> class that scores it.
DIMENSIONS: dict[str, dict[str, str]] = {
    "medical language understanding": {
        "CMeEE": "CMeEE", "CMeIE": "CMeIE", "CHIP-CDEE": "CHIP_CDEE", "SMDoc": "Doc_parsing", "CHIP-CDN": "CHIP_CDN",
        "CHIP-CTC": "CHIP_CTC",
    },
    "medical language generation": {"IMCS-V2-MRG": "IMCS_V2_MRG", "DBMHG": "DBMHG"},
    "medical knowledge question answering": {
        "Med-Exam": "", "MedHC": "NLG", "MedMC": "NLG", "MedSpeQA": "NLG", "MedHG": "Cloze", "MedDG": "NLG",
    },
    "complex medical reasoning": {"CMB-Clin": "NLG", "DDx-basic": "", "DDx-advanced": "", "MedTreat": "NLG"},
    "healthcare safety and ethics": {"MedSafety": "", "DrugCA": ""},
}  # fmt: skip


def known_sets() -> list[str]:
    """Names of all sets, dimension by dimension."""
    return [name for sets in DIMENSIONS.values() for name in sets]


def evaluator_of(name: str) -> str | None:
    """Class that scores a set; ``None`` for a set that MedBench does not have."""
    for sets in DIMENSIONS.values():
        if name in sets:
            return f"MedBenchEvaluator_{sets[name]}" if sets[name] else "MedBenchEvaluator"
    return None
