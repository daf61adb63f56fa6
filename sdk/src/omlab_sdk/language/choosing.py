"""Answers that can only be what is allowed: one of some options, several of them, or words of a given text."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

from omlab.errors import UsageError
from omlab_sdk.language.generating import Decoder
from omlab_sdk.language.tokens import Tokenizer

#: What is answered where a text does not say.
ABSENT = "未提及"


@attrs.frozen
class Choice:
    """An option with its probability among all options."""

    option: str
    probability: float


def choose(decoder: Decoder, tokenizer: Tokenizer, prompt: Sequence[int], options: Sequence[str], end: int) -> Choice:
    """The option that the network finds the most probable answer to ``prompt``.

    All options are walked as one tree of tokens, so that nothing else can be written. The probability is that of the
    whole option and of ending after it, over the sum of all options.

    Parameters
    ----------
    prompt : ids that end where the answer begins.
    end : id of the token that ends an answer; it tells an option from a longer one that begins with it.
    """
    chances = scores(decoder, tokenizer, prompt, options, end)
    shifted = np.exp(chances - chances.max())
    shifted /= shifted.sum()
    best = int(shifted.argmax())
    return Choice(options[best], float(shifted[best]))


def choose_several(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    options: Sequence[str],
    end: int,
    *,
    least: float = 0.5,
) -> list[Choice]:
    """All options with a probability of ``least`` or more in a question of their own against :data:`ABSENT`, the most
    probable first; empty where the text speaks of none."""
    found = []
    for option in options:
        pair = scores(decoder, tokenizer, prompt, [option, ABSENT], end)
        chance = 1.0 / (1.0 + float(np.exp(np.clip(pair[1] - pair[0], -700, 700))))
        if chance >= least:
            found.append(Choice(option, chance))
    return sorted(found, key=lambda choice: -choice.probability)


def quoted(answer: str, text: str) -> str:
    """``answer`` where ``text`` holds it, else :data:`ABSENT`: what a model extracts must stand in its source."""
    bare = answer.strip().strip("。．.\"'“”‘’")
    return bare if bare and bare in text else ABSENT


def scores(
    decoder: Decoder, tokenizer: Tokenizer, prompt: Sequence[int], options: Sequence[str], end: int
) -> np.ndarray:
    """[options] log-probability of each option as the whole answer.

    Raises :class:`omlab.errors.UsageError` without options, or where two are the same.
    """
    written = [(*tokenizer.encode(option, special=False), end) for option in options]
    if not written or len(set(written)) != len(written):
        raise UsageError("the options must be different, and there must be one")
    found = np.zeros(len(options))
    _walk(decoder, list(prompt), written, list(range(len(written))), 0, found)
    return found


def _walk(
    decoder: Decoder, text: list[int], written: list[tuple[int, ...]], rows: list[int], depth: int, found: np.ndarray
) -> None:
    """Add up what the network gives to the tokens from ``depth`` on of ``rows``, which all begin with ``text``. One
    branch goes on with the cache; each other one reads the text again."""
    aside = []
    texts = decoder.open([text], max(len(written[row]) for row in rows) - depth)
    try:
        while True:
            logits = texts.logits()[0].astype(np.float64)
            logits -= logits.max()
            logits -= np.log(np.exp(logits).sum())
            branches: dict[int, list[int]] = {}
            for row in rows:
                found[row] += logits[written[row][depth]]
                if len(written[row]) > depth + 1:
                    branches.setdefault(written[row][depth], []).append(row)
            if not branches:
                break
            depth += 1
            (token, rows), *others = branches.items()
            aside += [([*text, other], members, depth) for other, members in others]
            texts.append([token])
            text = [*text, token]
    finally:
        texts.close()
    for start, members, at in aside:
        _walk(decoder, start, written, members, at, found)
