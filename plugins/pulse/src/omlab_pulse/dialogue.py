"""How PULSE is talked to: pieces of text, each tokenised by itself and followed by the end token."""

from __future__ import annotations

import html
from collections.abc import Sequence

from omlab.cases import Message
from omlab.errors import InputError
from omlab_sdk.language.model import Prompt
from omlab_sdk.language.tokens import Tokenizer

END = 2
INSTRUCTION = "Instructions: You are Helper, a large language model full of intelligence. Respond conversationally."
USER, HELPER = "User: ", "Helper: "
#: What stands before the first question of a conversation, by the role that the model is to take.
ROLES = {
    "qa": "若我是位患者，你是位资深医生，能够协助解答我的问题和疑虑，请为我提供回复。\n",
    "consultation": (
        "假设你是一位经验丰富并且非常谨慎的的医生，会通过和患者进行多次的问答来明确自己的猜测，并且每次只能提一个问题，"
        "最终只会推荐相应的检验、检查、就诊科室以及疑似的诊断，请回复患者的提问：\n"
    ),
    "base": "",
}
#: The roles by the names that upstream's demos show.
SHOWN = {"医学知识QA": "qa", "在线问诊": "consultation", "Base": "base"}
#: Ids of a prompt that upstream keeps: the last ones, so a long conversation loses its beginning.
CONTEXT = 1536
#: Instruction of XrayPULSE for the smaller model.
XRAY = (
    "Instructions: You are PULSE, a large language model trained by SHAIlab. Answer as concisely as possible.\n"
    "Knowledge cutoff: 2021-09-01\nCurrent date: 2022-02-01"
)


def prompt_ids(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    role: str = "qa",
    *,
    bare_start: bool = False,
    context: int = CONTEXT,
) -> Prompt:
    """A conversation that ends with a question, as tokens.

    Of the beginning of the answer only the first token is put in: ``<s>`` for the larger model, whose tokenizer begins
    every piece with it, the first part of the word for the smaller one. The model writes the rest of it itself.

    Parameters
    ----------
    messages : a first one of the role ``system`` takes the place of the instruction.
    role : a key of :data:`ROLES`.
    bare_start : the first piece is tokenised without special tokens, as upstream's command line does at its start.
    context : so many of the last ids are kept; where there are more, a note tells it.
    """
    instruction = INSTRUCTION
    if messages and messages[0].role == "system":
        instruction, messages = messages[0].content, messages[1:]
    ids = [*tokenizer.encode(instruction, special=not bare_start), END]
    first = True
    for message in messages:
        text = HELPER + message.content
        if message.role == "user":
            text = USER + (ROLES[role] if first else "") + message.content
            first = False
        ids += [*tokenizer.encode(text), END]
    begun = tokenizer.encode(HELPER)[:1]
    if context <= len(begun):
        raise InputError(f"a context of {context} tokens leaves no room for a question")
    whole = [*ids, *begun]
    notes: tuple[str, ...] = ()
    if len(whole) > context:
        notes = (f"the first {len(whole) - context} of {len(whole)} tokens were not read: --context is {context}",)
    return Prompt(whole[-context:], tuple(begun), notes)


def web_text(text: str) -> str:
    """A question as upstream's web demo hands it over: empty lines dropped, line breaks and fenced code as HTML."""
    lines = []
    code = False
    for line in (line for line in text.split("\n") if line):
        if line.lstrip().startswith("```"):
            code = not code
            lines.append("<pre><code>" if code else "</code></pre>")
            continue
        lines.append(("<br>" if lines else "") + (html.escape(line) if code else line))
    return "".join(lines)
