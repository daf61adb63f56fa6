"""F1 of sets, macro F1 of classes, and ROUGE-L of Chinese texts."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

#: Code points of the ideographs that are words of their own.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
_NOTHING = ["无", "。"]
_TINY = 1e-8


def extraction_f1(predicted: Sequence[Sequence[Any]], references: Sequence[Sequence[Any]]) -> float:
    """Micro F1 over all samples, items compared by their values, duplicates within a sample once; 0..1."""
    hits = wrong = missed = 0
    for given, wanted in zip(predicted, references, strict=True):
        a, b = ({_key(item) for item in items} for items in (given, wanted))
        hits, wrong, missed = hits + len(a & b), wrong + len(a - b), missed + len(b - a)
    if not hits:
        return 0.0
    p, r = hits / (hits + wrong), hits / (hits + missed)
    return 2 * p * r / (p + r)


def _key(item: Any) -> tuple[str, ...]:
    return tuple(json.dumps(item[key], ensure_ascii=False) for key in sorted(item))


def macro_f1(predicted: Sequence[str], references: Sequence[str]) -> float:
    """Mean F1 over every class that occurs on either side; a class without hits has 0."""
    classes = sorted({*predicted, *references})
    total = 0.0
    for name in classes:
        hits = sum(p == r == name for p, r in zip(predicted, references, strict=True))
        total += 2 * hits / (predicted.count(name) + references.count(name))  # type: ignore[attr-defined]
    return total / len(classes) if classes else 0.0


def tokens(text: str) -> list[str]:
    """Words as BERT's basic tokenizer cuts them: an ideograph or a mark of punctuation is a word, letters become lower
    case without accents, control characters go."""
    cleaned = []
    for letter in text:
        if letter in "\t\n\r" or unicodedata.category(letter) == "Zs":
            cleaned.append(" ")
        elif letter not in "\0\ufffd" and not unicodedata.category(letter).startswith("C"):
            cleaned.append(f" {letter} " if _ideograph(letter) else letter)
    found = []
    for word in unicodedata.normalize("NFC", "".join(cleaned)).split():
        plain = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
        found += "".join(f" {c} " if _punctuation(c) else c for c in plain).split()
    return found


def _ideograph(letter: str) -> bool:
    return any(low <= ord(letter) <= high for low, high in _IDEOGRAPHS)


def _punctuation(letter: str) -> bool:
    code = ord(letter)
    ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_mark or unicodedata.category(letter).startswith("P")


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, all of ``a`` in the bits of one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(a)) - 1
    state = full
    for word in b:
        hit = state & places.get(word, 0)
        state = ((state + hit) | (state - hit)) & full
    return len(a) - state.bit_count()


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> float | None:
    """Mean ROUGE-L F over the pairs of which neither side is empty, 0..1; ``None`` where there is no such pair."""
    found = []
    for prediction, reference in zip(predictions, references, strict=True):
        if not prediction or not reference:
            continue
        a, b = tokens(prediction) or _NOTHING, tokens(reference) or _NOTHING
        common = longest_common(a, b)
        p, r = common / len(a), common / len(b)
        found.append(2 * p * r / (p + r + _TINY))
    return sum(found) / len(found) if found else None
