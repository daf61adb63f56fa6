"""Checkpoints in several files: the index comes first and names what is fetched and verified after it."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs
import pytest

from omlab.cards import Asset, CardError, Licence
from omlab.errors import OfflineError, WeightsError
from omlab.settings import Settings
from omlab.weights import Grant, digest_of_all, ensure, locate, shards_of, weight_map
from omlab.weights.fetch import adopt
from omlab.weights.state import present

FREE = Licence(spdx="MIT")
INDEX = "pytorch_model.bin.index.json"
SHARDS = {"pytorch_model-00001-of-00002.bin": b"first" * 1000, "pytorch_model-00002-of-00002.bin": b"second" * 700}
MAP = dict(zip(("layer.weight", "head.weight"), SHARDS, strict=True))


class _Files(SimpleHTTPRequestHandler):
    """Serves a folder, as a plain server and as the hub, and keeps what it was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        if Path(self.translate_path(self.path)).is_file():  # the library of the hub asks for other things too
            self.asked.append(self.path.rsplit("/", 1)[-1])
        super().do_GET()

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.replace("/lab/model/resolve/0123456789abcdef0123456789abcdef01234567", ""))

    def end_headers(self) -> None:
        file = Path(self.translate_path(self.path))
        if file.is_file():
            self.send_header("ETag", f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        """Silent."""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder as hubs hold them."""
    folder = tmp_path / "published"
    folder.mkdir()
    for name, content in SHARDS.items():
        (folder / name).write_bytes(content)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 9200}, "weight_map": MAP}), "utf-8")
    (folder / "unrelated.bin").write_bytes(b"x")
    return folder


@pytest.fixture
def server(published: Path) -> Iterator[ThreadingHTTPServer]:
    handler = type("Files", (_Files,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(published))) as running:
        running.asked = handler.asked  # type: ignore[attr-defined]
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def settings() -> Settings:
    return Settings.from_environment()


def _https(server: Any, **more: Any) -> Asset:
    url = f"http://127.0.0.1:{server.server_port}/{INDEX}"
    return Asset(id="net", source="https", url=url, index=True, **more)


def _hand() -> Asset:
    return Asset(id="net", source="by-hand", file=INDEX, instructions="ask the authors", index=True)


def _obtain(asset: Asset, settings: Settings) -> Path:
    return ensure("model", [asset], FREE, settings, grant=Grant(fetch=True))["net"]


def _same(path: Path) -> None:
    assert weight_map(path) == MAP
    assert [(shard.name, shard.read_bytes()) for shard in shards_of(path)] == list(SHARDS.items())


def test_the_index_comes_first_and_what_it_names_follows(server: Any, settings: Settings) -> None:
    asset = _https(server)
    assert digest_of_all([asset], settings) is None and not present(asset, settings)
    path = _obtain(asset, settings)
    assert server.asked == [INDEX, *SHARDS]
    _same(path)
    assert _obtain(asset, settings) == path and present(asset, settings)
    assert len(server.asked) == 3  # nothing is fetched again


def test_the_hub_serves_an_index_too(server: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    revision = "0123456789abcdef0123456789abcdef01234567"
    _same(_obtain(Asset(id="net", source="hub", repo="lab/model", revision=revision, file=INDEX, index=True), settings))
    assert server.asked == [INDEX, *SHARDS]


def test_a_lost_shard_is_fetched_alone_and_a_damaged_one_is_told(server: Any, settings: Settings) -> None:
    asset = _https(server)
    path = _obtain(asset, settings)
    before = digest_of_all([asset], settings)
    first, second = shards_of(path)
    first.unlink()
    assert locate(asset, settings) is None and digest_of_all([asset], settings) is None
    with pytest.raises(OfflineError, match="nothing is fetched unasked"):
        ensure("model", [asset], FREE, settings)
    server.asked.clear()
    _same(_obtain(asset, settings))
    assert server.asked == [first.name] and digest_of_all([asset], settings) == before
    second.write_bytes(b"other")
    pinned = attrs.evolve(asset, shards={second.name: hashlib.sha256(SHARDS[second.name]).hexdigest()})
    with pytest.raises(WeightsError, match=r"00002-of-00002\.bin is damaged or another file"):
        locate(pinned, settings)
    assert digest_of_all([asset], settings) != before  # engines of other weights are other engines


def test_digests_of_the_card_hold_for_shards(server: Any, settings: Settings) -> None:
    name = next(iter(SHARDS))
    good = hashlib.sha256(SHARDS[name]).hexdigest()
    with pytest.raises(WeightsError, match="00001-of-00002.bin is not the file that the card names: its SHA-256"):
        _obtain(_https(server, shards={name: "0" * 64}), settings)
    _same(_obtain(_https(server, shards={name: good}), settings))
    with pytest.raises(WeightsError, match=r"does not name other\.bin, which the card has a digest of"):
        _obtain(_https(server, shards={"other.bin": good}), settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no index of shards"),
        (b"[]", "it has no weight_map"),
        (b'{"weight_map": {}}', "names no shard"),
        (b'{"weight_map": {"a": "../../x.bin"}}', "which is no file beside it"),
        (b'{"weight_map": {"a": "/etc/passwd"}}', "which is no file beside it"),
        (b'{"weight_map": {"a": "pytorch_model.bin.index.json"}}', "which is no file beside it"),
    ],
)
def test_an_index_that_makes_no_sense(
    server: Any, settings: Settings, published: Path, content: bytes, message: str
) -> None:
    (published / INDEX).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        _obtain(_https(server), settings)


def test_a_shard_that_the_source_lacks(server: Any, settings: Settings, published: Path) -> None:
    (published / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(WeightsError, match="404"):
        _obtain(_https(server), settings)
    assert locate(_https(server), settings) is None


@pytest.mark.parametrize("given", ["", INDEX])
def test_a_folder_that_the_user_has(published: Path, settings: Settings, given: str) -> None:
    with pytest.raises(WeightsError, match=r"ask the authors.*--file net=PATH"):
        _obtain(_hand(), settings)
    _same(adopt(_hand(), published / given, settings))
    _same(_obtain(_hand(), settings))


def test_a_folder_that_lacks_a_shard_is_not_taken(published: Path, settings: Settings) -> None:
    (published / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(WeightsError, match=r"1 of them are not beside it, first pytorch_model-00001-of-00002\.bin"):
        adopt(_hand(), published, settings)
    with pytest.raises(WeightsError, match="does not exist"):
        adopt(_hand(), published / "nowhere", settings)


def test_a_checkpoint_in_one_file_stands_for_the_index(tmp_path: Path, settings: Settings) -> None:
    whole = tmp_path / "model.safetensors"
    whole.write_bytes(b"whole")
    for given in (whole, tmp_path):
        path = adopt(_hand(), given, settings)
        assert [shard.read_bytes() for shard in shards_of(path)] == [b"whole"] and weight_map(path) == {}
        assert present(_hand(), settings)
    (tmp_path / "other.bin").write_bytes(b"another")
    with pytest.raises(WeightsError, match=r"no index and files of the kinds \.bin, \.safetensors"):
        adopt(_hand(), tmp_path, settings)


def test_stages_without_an_index_keep_their_order(tmp_path: Path, settings: Settings) -> None:
    for number in (10, 9, 0):
        (tmp_path / f"model_tp0_pp{number}.pt").write_bytes(bytes([number]))
    assert [shard.read_bytes()[0] for shard in shards_of(adopt(_hand(), tmp_path, settings))] == [0, 9, 10]


def test_a_file_that_is_no_index_is_its_own_only_shard(tmp_path: Path) -> None:
    assert shards_of(tmp_path / "net.pth") == (tmp_path / "net.pth",)


def test_cards_that_make_no_sense() -> None:
    more = {"id": "net", "source": "by-hand", "instructions": "ask"}
    with pytest.raises(CardError, match=r"ends with \.index\.json"):
        Asset(**more, file="net.pth", index=True)
    with pytest.raises(CardError, match="only an index has shards"):
        Asset(**more, file=INDEX, shards={"a": "0" * 64})
    with pytest.raises(CardError, match="64 lower-case"):
        Asset(**more, file=INDEX, index=True, shards={"a": "x"})


def test_reading_compares_shards_with_their_index(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from omlab_sdk.checkpoints import read_sharded

    parts = {"a.bin": {"one": torch.ones(2)}, "b.bin": {"two": torch.zeros(3)}}
    index = tmp_path / INDEX

    def publish(held: dict[str, str]) -> None:
        for name, part in parts.items():
            torch.save(part, tmp_path / name)
        index.write_text(json.dumps({"weight_map": held}), "utf-8")

    publish({"one": "a.bin", "two": "b.bin"})
    assert sorted(read_sharded(index)) == ["one", "two"]
    assert list(read_sharded(tmp_path / "a.bin")) == ["one"]
    publish({"one": "a.bin", "two": "a.bin", "three": "b.bin"})
    with pytest.raises(WeightsError, match=r"a\.bin: lacks 'two', which .*index\.json says it holds"):
        read_sharded(index)
    parts["b.bin"]["one"] = torch.ones(1)
    publish({"one": "a.bin", "two": "b.bin"})
    with pytest.raises(WeightsError, match="holds 'one', which an earlier file"):
        read_sharded(index)
