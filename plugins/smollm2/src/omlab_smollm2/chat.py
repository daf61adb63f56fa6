"""The chat form of SmolLM2: a turn is ``<|im_start|>role``, a line break, the text, ``<|im_end|>``, a line break."""

from __future__ import annotations

from collections.abc import Sequence

from omlab.cases import Message
from omlab_sdk.language.tokens import Tokenizer

START, END = 1, 2
#: What its authors let it be told where nobody tells it something else.
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def prompt_ids(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The conversation and the beginning of the answer, as tokens.

    The marks are put in as tokens and the texts are tokenised without them, so that no user can write one.
    """
    turns = list(messages)
    if turns[0].role != "system":
        turns.insert(0, Message(role="system", content=SYSTEM))
    line = tokenizer.encode("\n")
    ids: list[int] = []
    for turn in turns:
        ids += [START, *tokenizer.encode(f"{turn.role}\n{turn.content}"), END, *line]
    return [*ids, START, *tokenizer.encode("assistant\n")]
