"""Answers that are letters, words of a kind, or words that must occur."""

from __future__ import annotations

import re
from typing import Any

#: What OpenCompass deletes before it looks for letters, in this order: abbreviations of medicine that hold capitals.
_NOT_LETTERS = [
    "CC",
    "CA",
    "AC",
    "POMES",
    "AI",
    "MIBG",
    "CF",
    "CTE",
    "AD",
    "CB",
    "BG",
    "BD",
    "BE",
    "BH",
    "CTB",
    "BI",
    "CE",
    "Pugh",
    "Child",
    "CTI",
    "CTA",
    "TACE",
    "PPD",
    "Castleman",
    "BA",
    "CH",
    "AB",
    "CTC",
    "CT",
    "CTH",
    "CD",
    "AH",
    "AE",
    "AA",
    "AF",
    "BC",
    "CG",
    "BB",
    "CI",
    "BF",
    "CTF",
    "CTG",
    "AG",
    "CTD",
    "分级C",
    "分级A",
    "I131",
    "分级B",
    "分级D",
    "131I‐MIBG",
    "NYHA",
    "IPF",
    "DIP",
    "Lambert-Eaton",
    "Graves",
    "IIA期",
    "CKD",
    "FDA",
    "A级",
    "B级",
    "C级",
    "D级",
    "维生素D",
]
_OPTION = re.compile(r"(?<![A-Za-z])[A-J](?![A-Za-z])|(?<![A-Za-z])[A-J]{2,10}(?![A-Za-z])")


def letters(text: str) -> list[str]:
    """Capitals that remain once the known abbreviations are deleted, in order, repeats kept (OpenCompass's rule).

    Letters without separators suffer from it: ``ABC`` gives C. :func:`options_in` has no such trap.
    """
    for word in _NOT_LETTERS:
        text = text.replace(word, "")
    return re.findall("[A-Z]", text)


def options_in(text: str) -> set[str]:
    """Letters A to J that stand alone or only by each other, as a set: ``ABC`` gives A, B, C, ``MRI`` nothing."""
    return {letter for found in _OPTION.findall(text) for letter in found if len(set(found)) == len(found)}


def same_letters(prediction: str, reference: Any) -> bool:
    """Do the letters of the answer equal the reference, a list, with order and repeats? (OpenCompass's rule.)"""
    return equivalent(letters(prediction), reference)


def yes_no(text: str) -> str:
    """不可以 where the text has 不 or 否, else 可以."""
    return "不可以" if "不" in text or "否" in text else "可以"


def all_occur(prediction: str, reference: Any) -> bool:
    """Is every string of the reference (every character, if it is one string) part of the answer?"""
    return all(part in prediction for part in reference)


def equivalent(a: Any, b: Any) -> bool:
    """Are two answers the same, up to how LaTeX writes them? Lists are compared as they are."""
    if a is None or b is None:
        return a is None and b is None
    if not (isinstance(a, str) and isinstance(b, str)):
        return bool(a == b)
    return _plain(a) == _plain(b)


_DROPPED = ("\n", "\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%", "\\,", " ")


def _plain(text: str) -> str:
    """One way of writing a mathematical answer."""
    text = text.split("\\text{ ")[0].replace("\\\\", "\\")
    for what in _DROPPED:
        text = text.replace(what, "")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    text = re.sub(r"(^|\{)\.(?=\d)", r"\g<1>0.", text)
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    text = re.sub(r"\\sqrt(?=[^{\[])(.)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac(?=[^{])(.)(?=[^{])(.)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac(?=[^{])(.)\{", r"\\frac{\1}{", text)
    if text == "0.5":
        return "\\frac{1}{2}"
    fraction = re.fullmatch(r"(-?\d+)/(-?\d+)", text)
    return f"\\frac{{{fraction[1]}}}{{{fraction[2]}}}" if fraction else text
