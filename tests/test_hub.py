"""The hub source against a local server that answers as the hub does."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from omlab.cards import Asset, Licence
from omlab.errors import ConsentNeeded, OfflineError, WeightsError
from omlab.settings import Settings
from omlab.weights.fetch import Grant, ensure

pytest.importorskip("huggingface_hub")

BODY = bytes(range(256)) * 400
DIGEST = hashlib.sha256(BODY).hexdigest()


class _Hub(BaseHTTPRequestHandler):
    requests: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.requests.append(f"{self.command} {self.path}")
        code, error = 200, ""
        if "/gated/" in self.path:
            code, error = 403, "GatedRepo"
        elif "/nowhere/" in self.path:
            code, error = 404, "RepoNotFound"
        elif not self.path.endswith("/resolve/0123456789abcdef0123456789abcdef01234567/net.pth"):
            code, error = 404, "EntryNotFound"
        self.send_response(code)
        if error:
            self.send_header("X-Error-Code", error)
        content = b"" if error else BODY
        self.send_header("ETag", f'"{DIGEST}"')
        self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Silent."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    _Hub.requests.clear()
    yield address
    server.shutdown()
    server.server_close()


def _asset(repo: str = "lab/model", file: str = "net.pth", digest: str = DIGEST) -> Asset:
    return Asset(
        id="net", source="hub", repo=repo, file=file, sha256=digest,
        revision="0123456789abcdef0123456789abcdef01234567",
    )  # fmt: skip


def _obtain(asset: Asset) -> Path:
    settings = Settings.from_environment()
    return ensure("net-model", [asset], Licence(spdx="MIT"), settings, grant=Grant(fetch=True))["net"]


def test_a_file_is_fetched_once_and_verified(hub: str) -> None:
    path = _obtain(_asset())
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir() if p.suffix not in (".json", ".lock")] == ["net.pth"]
    count = len(_Hub.requests)
    assert _obtain(_asset()) == path
    assert len(_Hub.requests) == count


def test_other_bytes_than_the_card_says(hub: str) -> None:
    with pytest.raises(WeightsError, match="SHA-256"):
        _obtain(_asset(digest="0" * 64))


@pytest.mark.parametrize(
    ("repo", "file", "error", "message"),
    [
        ("gated/model", "net.pth", ConsentNeeded, "accept their terms"),
        ("nowhere/model", "net.pth", WeightsError, "is not on the hub"),
        ("lab/model", "none.pth", WeightsError, "is not on the hub"),
    ],
)
def test_refusals_say_what_to_do(hub: str, repo: str, file: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _obtain(_asset(repo, file))


def test_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits between its tries
    with pytest.raises((OfflineError, WeightsError), match="cannot be reached"):
        _obtain(_asset())
