"""Supervised fine-tuning of PULSE: its template as tokens and labels, and what upstream trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omlab.cases import Message
from omlab.errors import InputError
from omlab_pulse.dialogue import END, HELPER, INSTRUCTION, USER
from omlab_sdk.language.tokens import Tokenizer

#: Of the loss: a token that is read and not learnt.
IGNORED = -100
#: Stands literally in upstream's template where an answer begins.
PLACEHOLDER = "xxxx"
#: Linear layers that get low-rank adapters, by layout.
TARGETS = {"llama": ("q_proj", "v_proj"), "bloom": ("query_key_value",)}
#: The adapters of upstream's knowledge base.
LOW_RANK: dict[str, Any] = {"rank": 8, "alpha": 32.0, "dropout": 0.05}
#: How upstream fine-tunes: QLoRA, fp16, cosine schedule.
RECIPE: dict[str, Any] = {
    "batch": 4, "accumulation": 4, "epochs": 3, "learning_rate": 5e-5, "schedule": "cosine", "tokens": 1500,
}  # fmt: skip


def example(
    messages: Sequence[Message], tokenizer: Tokenizer, *, tokens: int = RECIPE["tokens"]
) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation that ends with an answer; only answers have labels.

    A question is ``query</s>Helper: xxxx</s>``, what is learnt ``Helper: answer</s>``. The instruction, ``</s>`` and
    ``User: system`` with a line break stand before the first question only.

    Parameters
    ----------
    tokens : the row is cut after so many.

    Raises
    ------
    InputError
        Turns do not alternate, or no label is left within ``tokens``.
    """
    turns = list(messages)
    system = turns.pop(0).content if turns and turns[0].role == "system" else ""
    pairs = list(zip(turns[::2], turns[1::2], strict=False))
    if len(turns) % 2 or not pairs or any((q.role, a.role) != ("user", "assistant") for q, a in pairs):
        raise InputError("a conversation to learn from must be questions and answers in turn, and end with an answer")
    ids = [*tokenizer.encode(INSTRUCTION), END]
    labels = [IGNORED] * len(ids)
    for number, (question, answer) in enumerate(pairs):
        start = f"{USER}{system}\n" if number == 0 else USER
        read = [
            *tokenizer.encode(start + question.content, special=False), END,
            *tokenizer.encode(HELPER + PLACEHOLDER, special=False), END,
        ]  # fmt: skip
        learnt = [*tokenizer.encode(HELPER + answer.content, special=False), END]
        ids += read + learnt
        labels += [IGNORED] * len(read) + learnt
    ids, labels = ids[:tokens], labels[:tokens]
    if all(label == IGNORED for label in labels):
        raise InputError(f"the question alone has {tokens} tokens or more, nothing is left to learn")
    return ids, labels
