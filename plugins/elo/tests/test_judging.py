"""Drawing and judging from the command line, against a server on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from omlab.cases import Text
from omlab.cli.main import main
from omlab.results import Generation
from omlab_elo import judge


class _Judge(BaseHTTPRequestHandler):
    """Prefers the longer answer; fails the first time that it is asked."""

    asked: ClassVar[list[dict[str, Any]]] = []
    failures: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.failures:
            self.send_error(self.failures.pop())
            return
        self.asked.append(body | {"key": self.headers.get("Authorization")})
        prompt = body["messages"][1]["content"]
        lengths = [
            len(prompt.split(f"[The Start of Assistant {n}'s Answer]\n")[1].split("\n[The End")[0]) for n in (1, 2)
        ]
        text = f"{lengths[0]} {lengths[1]}\nby length"
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[str]:
    _Judge.asked.clear()
    _Judge.failures.clear()
    running = ThreadingHTTPServer(("127.0.0.1", 0), _Judge)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/v1"
    running.shutdown()
    running.server_close()


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    folder = tmp_path / "answers"
    folder.mkdir()
    for model, words in (("long", 9), ("middle", 5), ("short", 1)):
        rows = [
            {"question": f"q{n}", "reference_answer": "r" if n else "", "predict_answer": " ".join(["so"] * words)}
            for n in range(7)
        ]
        (folder / f"{model}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return folder


def test_from_answers_to_a_leaderboard(
    server: str, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    battles, verdicts = tmp_path / "battles.jsonl", tmp_path / "verdicts.jsonl"
    assert main(["elo", "draw", str(answers), "-o", str(battles), "--each", "4"]) == 0
    drawn = [json.loads(line) for line in battles.read_text().splitlines()]
    assert len(drawn) == 12
    arguments = [
        "elo", "judge", str(battles), "-o", str(verdicts), "--endpoint", server, "--model", "j", "--key-from", "MY_KEY",
    ]  # fmt: skip
    assert main(arguments) == 0
    assert len(_Judge.asked) == 12
    assert {body["key"] for body in _Judge.asked} == {"Bearer secret"}
    assert all(body["temperature"] == 0 and body["model"] == "j" for body in _Judge.asked)
    with_reference = [body for body in _Judge.asked if "[Reference Answer]" in body["messages"][1]["content"]]
    assert len(with_reference) == sum(bool(row["reference_answer"]) for row in drawn)
    lines = verdicts.read_text().splitlines()
    verdicts.write_text("\n".join(lines[:5]) + "\n" + lines[5][:20])  # as after a crash in the middle of a line
    assert main(arguments) == 0
    assert len(_Judge.asked) == 12 + 7
    assert sorted(verdicts.read_text().splitlines()) == sorted(lines)
    capsys.readouterr()
    assert main(["score", "elo", str(verdicts), "--json"]) == 0
    median = json.loads(capsys.readouterr().out)["median"]
    assert median["long"] > median["middle"] > median["short"]


def test_a_server_that_fails_is_asked_again_and_one_that_refuses_is_not(server: str) -> None:
    waited: list[float] = []
    asked = judge.server(server, "j", sleep=waited.append)
    said = judge.messages("q", "a", "bb")
    _Judge.failures[:] = [503, 429]
    assert asked(said).startswith("1 2")
    assert waited == [1.0, 2.0]
    _Judge.failures[:] = [401]
    with pytest.raises(judge.JudgeError, match="refuses: 401"):
        asked(said)
    with pytest.raises(judge.JudgeError, match="does not answer"):
        judge.server("http://127.0.0.1:9/v1", "j", sleep=waited.append)(said)


def test_a_model_of_the_platform_judges_too(
    answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Text] = []

    class Model:
        def __call__(self, case: Text) -> Generation:
            asked.append(case)
            return Generation(text="3 8\nthe second", finish_reason="stop", prompt_tokens=1, completion_tokens=1)

    monkeypatch.setattr("omlab.load", lambda name: Model(), raising=False)
    battles, verdicts = tmp_path / "battles.jsonl", tmp_path / "verdicts.jsonl"
    assert main(["elo", "draw", str(answers), "-o", str(battles), "--each", "2"]) == 0
    assert main(["elo", "judge", str(battles), "-o", str(verdicts), "--local", "any", "--no-reference"]) == 0
    rows = [json.loads(line) for line in verdicts.read_text().splitlines()]
    assert len(rows) == len(asked) == 6 and {row["winner"] for row in rows} == {"model_b"}
    assert [message.role for message in asked[0].messages] == ["system", "user"]
    assert not any("[Reference Answer]" in case.question for case in asked)


def test_wrong_calls(answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.jsonl")
    assert main(["elo", "judge", str(tmp_path / "b.jsonl"), "-o", out]) == 2
    assert main(["elo", "draw", str(answers), "-o", out, "--model", "long", "--model", "none"]) == 1
    (answers / "short.jsonl").write_text('{"question": "other", "predict_answer": "x"}\n')
    assert main(["elo", "draw", str(answers), "-o", out]) == 1
    assert "has 1 answers, long has 7" in capsys.readouterr().err
    assert not Path(out).exists()
