"""External knowledge: sentences of documents found by their meaning, and the prompt that puts them before a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases import Message
from omlab.errors import UsageError

#: Texts -> vectors [texts, features].
Embedder = Callable[[Sequence[str]], NDArray[np.floating]]
_END = re.compile(r"(?<=[。！？；!?])|(?<=[.;])\s+|\n+")
#: A template of the form that upstream's knowledge base uses, in our words.
TEMPLATE = (
    "你是一名用药助手。请根据下面的文档回答问题；文档为空或为None时不要理会文档。\n"
    "文档：\n{context}\n{chat_history}</s>User:{question}</s>Helper:"
)


@attrs.frozen
class Passage:
    """A piece of a document.

    Attributes
    ----------
    distance : squared Euclidean distance of its best sentence to what was asked.
    """

    text: str
    source: str
    distance: float


def sentences(text: str, *, least: int = 20) -> list[str]:
    """Sentences of Chinese and English text; those with fewer than ``least`` characters are joined to the next one."""
    found: list[str] = []
    held = ""
    for part in (part.strip() for part in _END.split(text)):
        held = f"{held}{part}" if not held or not held[-1].isascii() else f"{held} {part}".strip()
        if len(held) >= least:
            found.append(held)
            held = ""
    if held:
        if found:
            found[-1] += ("" if not found[-1][-1].isascii() else " ") + held
        else:
            found.append(held)
    return found


class Library:
    """Documents by sentences. The embedder is any function; distances are taken to all sentences at once.

    Parameters
    ----------
    embed : texts -> vectors.
    least : characters of a sentence, see :func:`sentences`.
    """

    def __init__(self, embed: Embedder, *, least: int = 20) -> None:
        self._embed = embed
        self._least = least
        self._sentences: list[str] = []
        self._sources: list[str] = []
        self._vectors: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self._sentences)

    def add(self, source: str, text: str) -> int:
        """Take in a document; gives the number of its sentences."""
        new = sentences(text, least=self._least)
        if not new:
            return 0
        vectors = np.asarray(self._embed(new), np.float32)
        if vectors.ndim != 2 or len(vectors) != len(new):
            raise UsageError(f"the embedder gave {vectors.shape} for {len(new)} texts, expected a row a text")
        self._vectors = vectors if self._vectors is None else np.concatenate([self._vectors, vectors])
        self._sentences += new
        self._sources += [source] * len(new)
        return len(new)

    def search(self, query: str, *, top: int = 3, threshold: float = 700.0, longest: int = 250) -> list[Passage]:
        """The ``top`` sentences nearest to ``query`` within ``threshold``, the nearest first, each with its neighbours
        of the same source on both sides up to ``longest`` characters. Passages that meet are one."""
        if self._vectors is None:
            return []
        asked = np.asarray(self._embed([query]), np.float32)[0]
        distances = ((self._vectors - asked) ** 2).sum(axis=1)
        taken: list[tuple[set[int], float]] = []
        for place in np.argsort(distances, kind="stable")[:top]:
            distance = float(distances[place])
            if distance > threshold:
                break
            around = self._around(int(place), longest)
            meeting = next((number for number, (known, _) in enumerate(taken) if known & around), None)
            if meeting is None:
                taken.append((around, distance))
            else:
                taken[meeting] = (taken[meeting][0] | around, taken[meeting][1])
        return [
            Passage("".join(self._sentences[i] for i in sorted(places)), self._sources[min(places)], distance)
            for places, distance in taken
        ]

    def _around(self, place: int, longest: int) -> set[int]:
        places = {place}
        length = len(self._sentences[place])
        for reach in range(1, len(self._sentences)):
            grown = False
            for neighbour in (place + reach, place - reach):
                known = 0 <= neighbour < len(self._sentences) and self._sources[neighbour] == self._sources[place]
                side = neighbour - 1 if neighbour > place else neighbour + 1
                if known and side in places and length + len(self._sentences[neighbour]) <= longest:
                    places.add(neighbour)
                    length += len(self._sentences[neighbour])
                    grown = True
            if not grown:
                break
        return places


def query_of(messages: Sequence[Message]) -> str:
    """What to search for: the turn before the question, and the question."""
    return "\n".join(message.content for message in messages[-2:])


def numbered(texts: Iterable[str]) -> str:
    """Documents as the prompt shows them; ``"None"`` without any."""
    return "".join(f"[{number}]\n```\n{text}\n```\n" for number, text in enumerate(texts, 1)) or "None"


def prompt(
    passages: Iterable[Passage], messages: Sequence[Message], *, template: str = TEMPLATE, history: int = 8
) -> str:
    """The template with ``{context}``, ``{chat_history}`` (the last ``history`` turns before the question) and
    ``{question}`` filled in. Braces in the texts stay as they are."""
    names = {"user": "User", "assistant": "Helper"}
    said = [f"\n{names[turn.role]}: {turn.content}" for turn in messages[:-1] if turn.role in names]
    slots = {
        "{context}": numbered(passage.text for passage in passages),
        "{chat_history}": "".join(said[max(0, len(said) - history) :]),
        "{question}": messages[-1].content,
    }
    return re.sub(r"\{(?:context|chat_history|question)\}", lambda slot: slots[slot[0]], template)
