"""Residues to ids, as PRIME's tokeniser has them (the vocabulary of ESM-2)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TOKENS = (
    "<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>",
)  # fmt: skip
ID = {token: number for number, token in enumerate(TOKENS)}
CLS, PAD, EOS, UNKNOWN, MASK = (ID[token] for token in ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>"))
#: The twenty amino acids that evolution uses, in the order of their codes.
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
_PIECES = re.compile("|".join(re.escape(token) for token in sorted(TOKENS, key=len, reverse=True)))


def tokenise(text: str) -> list[int]:
    """Ids of a text as upstream's tokeniser gives them, ``<cls>`` in front and ``<eos>`` behind.

    Special tokens within the text are recognised and white space is dropped. A run of characters outside of the
    vocabulary becomes one ``<unk>``, which moves all positions behind it: refuse such text before scoring
    (:func:`encode` does).
    """
    found = [CLS]
    for part in text.split():
        place = 0
        for piece in _PIECES.finditer(part):
            if piece.start() > place:
                found.append(UNKNOWN)
            found.append(ID[piece.group()])
            place = piece.end()
        if place < len(part):
            found.append(UNKNOWN)
    return [*found, EOS]


def encode(residues: str) -> list[int]:
    """Ids of residues that are all in the vocabulary; one a letter between ``<cls>`` and ``<eos>``.

    Raises
    ------
    KeyError
        A letter is not in the vocabulary.
    """
    return [CLS, *(ID[letter] for letter in residues), EOS]


def batch(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids padded on the right, and the mask of what is no padding; both int64 [batch, tokens]."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), PAD, np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    return ids, (ids != PAD).astype(np.int64)
