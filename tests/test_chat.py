"""``omlab chat`` with a language model that repeats what it hears."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from omlab.cli.main import main
from support import MODEL_TABLE

ECHO = """
from omlab import Generation, Model, OmlabError, hookimpl
from omlab.errors import InputError

class Echo(Model):
    def graphs(self, variant):
        return ()

    def stream(self, case, context):
        if case.question == "fail":
            raise InputError("it cannot be answered")
        words = f"{len(case.messages)}: {case.question}" + "!" * context.options["loud"]
        for letter in words:
            yield letter
        long = case.question == "long"
        return Generation(text=words, finish_reason="length" if long else "stop",
                          notes=["its beginning was not read"] if long else [],
                          prompt_tokens=3, completion_tokens=len(words))

    def predict(self, case, context):
        raise AssertionError("a chat streams")

@hookimpl
def omlab_model(card):
    return Echo(card)
"""
MANIFEST = ("api = 1\n" + MODEL_TABLE.format(name="echo")).replace('"mr"', '"text"').replace(
    'task = ["segmentation"]', 'task = ["generation"]'
).replace('inputs = ["volume"]', 'inputs = ["text"]').replace(
    'outputs = ["segmentation"]', 'outputs = ["generation"]'
) + 'options = [{ name = "loud", type = "int", default = 0 }]\n'


@pytest.fixture
def chat(
    install_plugin: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    install_plugin("echo", manifest=MANIFEST, code=ECHO)

    def run(typed: bytes, *arguments: str, model: str = "echo") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), "utf-8"))
        code = main(["chat", model, *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_a_conversation_grows_until_it_is_cleared(chat: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = chat(b"a\n\n  b  \nclear\nc\nstop\nnever\n")
    assert (code, out.splitlines()) == (0, ["1: a", "3: b", "1: c"])
    assert not err


def test_the_end_of_the_input_ends_it(chat: Callable[..., tuple[int, str, str]]) -> None:
    assert chat("头疼".encode())[1] == "1: 头疼\n"


def test_options_of_the_card_and_figures(chat: Callable[..., tuple[int, str, str]]) -> None:
    _, out, err = chat(b"long\n", "--loud", "2", "--stats")
    assert out == "1: long!!\n"
    assert err.splitlines() == [
        "[its beginning was not read]", "[cut after 9 tokens]", "[3 tokens read, 9 written]",
    ]  # fmt: skip


def test_a_question_that_fails_is_told_and_forgotten(chat: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = chat(b"a\nfail\nb\xff\nc\n")
    assert (code, out.splitlines()) == (0, ["1: a", "3: c"])
    assert err.splitlines() == ["error: it cannot be answered", "error: the line is not UTF-8: invalid start byte"]


@pytest.mark.parametrize("broken", ["caf\udce9", UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid start byte")])
def test_a_terminal_that_sends_no_utf_8(
    chat: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, broken: str | Exception
) -> None:
    """Bytes come as halves of characters, or not at all, as the locale of the terminal has it."""
    typed: list[str | Exception] = ["a", broken, "b", "stop"]

    def line(prompt: str) -> str:
        found = typed.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("builtins.input", line)
    monkeypatch.setattr(io, "TextIOWrapper", Terminal)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, err = chat(b"")
    assert code == 0 and "1: a" in out and "3: b" in out
    assert "the line is not UTF-8" in err and not typed


def test_another_model_is_refused(
    chat: Callable[..., tuple[int, str, str]], install_plugin: Callable[..., Path]
) -> None:
    install_plugin("plain", code=ECHO)
    code, _, err = chat(b"a\n", model="plain")
    assert code == 2
    assert "'plain' is no language model: it gives segmentation" in err
