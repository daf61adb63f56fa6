"""Text to token ids and back, without the transformers library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from omlab.errors import WeightsError, require


class Tokenizer(Protocol):
    """What a language model needs of its vocabulary."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a piece of text. ``special``: with what the tokenizer puts in front of every piece, if anything."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; U+FFFD where they end within a character."""
        ...


class FastTokenizer:
    """A tokenizer of the tokenizers library."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @classmethod
    def read(cls, path: Path) -> FastTokenizer:
        """From a ``tokenizer.json``. Raises :class:`omlab.errors.WeightsError` where it is damaged."""
        library = require("tokenizers", needed_for=f"reading {path.name}", install="omlab-sdk[language]")
        try:
            return cls(library.Tokenizer.from_str(path.read_text("utf-8")))
        except Exception as error:  # the library raises bare exceptions
            raise WeightsError(f"{path} is no tokenizer: {error}", remedy="Fetch it again") from error

    @classmethod
    def byte_pairs(
        cls, pieces: Sequence[str], merges: Iterable[str], special: Mapping[str, int], *, single_digits: bool = False
    ) -> FastTokenizer:
        """Byte-level BPE from its parts.

        Parameters
        ----------
        pieces : text of every id, in the byte alphabet of GPT-2.
        merges : ``"left right"``, the first merged first.
        special : tokens that are taken whole, with their ids.
        single_digits : every digit is a token of its own.
        """
        library = require("tokenizers", needed_for="the tokenizer", install="omlab-sdk[language]")
        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        inner = library.Tokenizer(library.models.BPE(vocabulary, pairs))
        byte_level = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        digits = [library.pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
        inner.pre_tokenizer = library.pre_tokenizers.Sequence([*digits, byte_level])
        inner.decoder = library.decoders.ByteLevel()
        inner.add_special_tokens([library.AddedToken(text, special=True) for text in special])
        return cls(inner)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """See :class:`Tokenizer`."""
        return list(self._inner.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`Tokenizer`; special tokens are left out."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True))


class SentencePiece:
    """A vocabulary of the sentencepiece library in the manner of Llama: ``<s>`` in front of every piece."""

    def __init__(self, path: Path, *, begin: int = 1, added: Mapping[int, str] | None = None) -> None:
        """``added``: ids beyond the file, with their texts. Raises :class:`omlab.errors.WeightsError`."""
        library = require("sentencepiece", needed_for=f"reading {path.name}", install="omlab-sdk[language]")
        try:
            self._inner = library.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"{path} is no sentencepiece model: {error}", remedy="Fetch it again") from error
        self._begin = begin
        self._added = dict(added or {})

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """See :class:`Tokenizer`."""
        ids = list(self._inner.encode(text))
        return [self._begin, *ids] if special else ids

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`Tokenizer`; control tokens are left out."""
        parts: list[str] = []
        run: list[int] = []
        size = self._inner.get_piece_size()
        for number in ids:
            if number < size:
                run.append(number)
                continue
            parts.append(self._inner.decode(run))
            parts.append(self._added.get(number, ""))
            run = []
        return "".join([*parts, self._inner.decode(run)])


class ByteTokenizer:
    """Every byte of UTF-8 is a token: the vocabulary of networks that stand in where no weights are.

    Parameters
    ----------
    first : id of the byte 0; the ids below are special.
    begin : put in front of every piece, if any is.
    """

    def __init__(self, first: int = 10, begin: int | None = None) -> None:
        self._first = first
        self._begin = begin

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """See :class:`Tokenizer`."""
        ids = [self._first + byte for byte in text.encode("utf-8")]
        return [self._begin, *ids] if special and self._begin is not None else ids

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`Tokenizer`; ids that are no byte are left out."""
        return bytes(i - self._first for i in ids if 0 <= i - self._first < 256).decode("utf-8", "replace")


class Detokenizer:
    """Text of an answer while its tokens come in: a character is given out when all its bytes are there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        #: Ids before ``_done`` are given out; those from ``_from`` on are decoded again, since a tokenizer may write
        #: a token differently after another one.
        self._from = self._done = 0

    def push(self, token: int) -> str:
        """What can be given out after one more token."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids[self._from :])
        if text.endswith("\ufffd"):
            return ""
        return self._advance(text)

    def finish(self) -> str:
        """What is left, with U+FFFD for a character that was cut."""
        return self._advance(self._tokenizer.decode(self._ids[self._from :]))

    def _advance(self, text: str) -> str:
        known = self._tokenizer.decode(self._ids[self._from : self._done])
        self._from, self._done = self._done, len(self._ids)
        return text[len(known) :]
