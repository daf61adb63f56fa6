"""A judge of battles: what it is asked, and an OpenAI-compatible server or a local model that answers."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from omlab.errors import OmlabError, UsageError

#: Takes messages (role, content), gives the judge's text.
Judge = Callable[[list[dict[str, str]]], str]
_SYSTEM = "You check answers of medical assistants with care and precision, and you say which is better and why."
_PLAIN = (
    "Rate both answers to the question above from 1 to 10 for how accurate and how detailed they are; more is better. "
)
_REFERENCED = (
    "Rate both answers against the reference answer above: 10 if the right option is chosen, 0 if none is chosen "
    "clearly, and a value between by the quality of the reasoning if the option is wrong. "
)
_FORM = (
    "Write only the two values for assistant 1 and assistant 2 on the first line, separated by one blank. From the "
    "second line on, explain the values; the order in which the answers stand must not sway you."
)
_TRIES = 4


class JudgeError(OmlabError):
    """The judge does not answer."""

    code = "judge"


def messages(question: str, first: str, second: str, reference: str = "") -> list[dict[str, str]]:
    """What the judge is sent: the blocks of PULSE-EVAL's prompt in its order, in our words. Side A is assistant 1."""
    blocks = [f"[Question]\n{question}"]
    if reference:
        blocks.append(f"[Reference Answer]\n{reference}")
    for number, answer in ((1, first), (2, second)):
        name = f"Assistant {number}'s Answer"
        blocks.append(f"[The Start of {name}]\n{answer}\n[The End of {name}]")
    blocks.append(f"[System]\n{(_REFERENCED if reference else _PLAIN) + _FORM}")
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": "\n\n".join(blocks)}]


def server(
    base: str, model: str, *, key: str = "", timeout_seconds: float = 120.0, sleep: Callable[[float], None] = time.sleep
) -> Judge:
    """A judge behind ``base``/chat/completions, say ``http://localhost:8000/v1``. Temperature 0; a busy or failing
    server is asked again after 1, 2 and 4 seconds.

    Raises
    ------
    UsageError
        ``base`` is no http address.
    """
    if not base.startswith(("http://", "https://")):
        raise UsageError(f"'{base}' is no address of a server", remedy="Write it as http://localhost:8000/v1")
    address = base.rstrip("/") + "/chat/completions"

    def ask(said: list[dict[str, str]]) -> str:
        body = json.dumps({"model": model, "messages": said, "temperature": 0}).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        for attempt in range(_TRIES):
            request = urllib.request.Request(address, body, headers)
            try:
                with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
                    return _text(json.load(answer))
            except urllib.error.HTTPError as error:
                if error.code not in (408, 409, 429) and error.code < 500:
                    raise JudgeError(f"{address} refuses: {error.code} {error.reason}") from None
                reason = f"{error.code} {error.reason}"
            except (OSError, ValueError) as error:
                reason = str(getattr(error, "reason", error))
            if attempt + 1 < _TRIES:
                sleep(2.0**attempt)
        raise JudgeError(f"{address} does not answer: {reason}", remedy="Is the server running?")

    return ask


def _text(answer: Mapping[str, Any]) -> str:
    try:
        return str(answer["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError):
        raise ValueError("its answer has no choices[0].message.content") from None


def local(model: Any) -> Judge:
    """A language model of the platform as the judge.

    Parameters
    ----------
    model : what :func:`omlab.load` gives.
    """
    from omlab.cases import Message, Text

    def ask(said: list[dict[str, str]]) -> str:
        return str(model(Text(name="battle", messages=[Message(**message) for message in said])).text)

    return ask
