"""Bring files here: find out what is missing, ask, lock, fetch from the card's source, verify, put in place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import attrs

from omlab.cards import Asset, DatasetCard, Licence, ModelCard, Variant
from omlab.errors import OfflineError, OutputError, WeightsError
from omlab.progress import Listener, silent
from omlab.settings import Settings
from omlab.vocabulary import SourceKind
from omlab.weights.consent import Consents
from omlab.weights.index import gather, shard_assets
from omlab.weights.store import home_of, locate, sha256_of, verify, write_record


@attrs.frozen
class Grant:
    """What the caller allows.

    Attributes
    ----------
    fetch : connections may be opened.
    accept : SPDX ids of licences that the user accepts with this call.
    ask : puts a yes-or-no question to the user; ``None`` where nobody can answer.
    """

    fetch: bool = False
    accept: tuple[str, ...] = ()
    ask: Callable[[str], bool] | None = None


def owner_assets(card: ModelCard | DatasetCard, variant: Variant | None = None) -> tuple[tuple[Asset, ...], Licence]:
    """Files of a card (of one variant) and the licence that holds where a file names none."""
    if isinstance(card, ModelCard):
        chosen = variant or card.variants[0]
        return chosen.weights, card.licence_weights
    return card.files, card.licence


def missing(assets: Iterable[Asset], settings: Settings) -> list[Asset]:
    """Those that are in no root."""
    return [asset for asset in assets if locate(asset, settings) is None]


def ensure(
    owner: str,
    assets: Iterable[Asset],
    licence: Licence,
    settings: Settings,
    *,
    grant: Grant | None = None,
    listener: Listener = silent,
    variant: str = "",
) -> dict[str, Path]:
    """Paths of all ``assets`` by id; fetches what is missing if the grant allows it.

    Raises
    ------
    OfflineError, ConsentNeeded, WeightsError
        The files are not here and may not or cannot be fetched, or what came is not what the card says.
    """
    grant = grant or Grant()
    assets = tuple(assets)
    paths: dict[str, Path] = {}
    absent = []
    for asset in assets:
        path = locate(asset, settings)
        if path is None:
            absent.append(asset)
        else:
            paths[asset.id] = path
    if not absent:
        return paths
    pull = f"omlab pull {owner}" + (f" --variant {variant}" if variant else "")
    by_hand = [asset for asset in absent if asset.source is SourceKind.BY_HAND]
    if by_hand:
        first = by_hand[0]
        raise WeightsError(
            f"'{owner}' needs the file {first.file}, which has to be fetched by hand: {first.instructions}",
            remedy=f"Then: {pull} --file {first.id}=PATH",
        )
    names = ", ".join(asset.filename for asset in absent)
    if settings.offline:
        raise OfflineError(
            f"'{owner}' needs {names}, not here, and omlab is set to work offline",
            remedy=f"Unset OMLAB_OFFLINE and run: {pull}; or copy the {settings.assets_root.name} folder of a machine "
            "that has them and name it in OMLAB_WEIGHTS",
        )
    if not grant.fetch and not (grant.ask and grant.ask(_question(owner, absent))):
        raise OfflineError(f"'{owner}' needs {names}, not here, and nothing is fetched unasked", remedy=f"Run: {pull}")
    consents = Consents(settings)
    for asset in absent:
        consents.demand(owner, asset.licence or licence, grant.accept, grant.ask)
        paths[asset.id] = fetch(asset, settings, listener)
    return paths


def _question(owner: str, absent: list[Asset]) -> str:
    known = [asset.size for asset in absent if asset.size]
    amount = f"{sum(known) / 1e6:.1f} MB" if len(known) == len(absent) else "files of unknown size"
    return f"'{owner}' needs {amount} from {describe(absent[0])}. Fetch now?"


def describe(asset: Asset) -> str:
    """Where an asset comes from, in words."""
    if asset.source is SourceKind.WHEEL:
        return f"the wheel {asset.package} {asset.version} of the package index"
    if asset.source is SourceKind.HUB:
        return f"{asset.repo}@{asset.revision} on the Hugging Face hub"
    if asset.source is SourceKind.HTTPS:
        return asset.url
    return "a fetch by hand"


def fetch(asset: Asset, settings: Settings, listener: Listener = silent) -> Path:
    """Fetch one asset into the writable root: locked against other processes, verified, atomic. Of an index the
    shards that it names follow, those that are not here yet."""
    path = home_of(asset, settings)
    _fetch_one(asset, path, listener)
    if asset.index:
        for shard in shard_assets(asset, path):
            _fetch_one(shard, path.with_name(shard.filename), listener)
    return path


def _fetch_one(asset: Asset, path: Path, listener: Listener) -> None:
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock")):
            if path.is_file():  # another process may have been faster
                verify(path, asset)
                return
            part = path.with_name(path.name + ".part")
            _fetchers()[asset.source](asset, part, listener)
            _settle(part, path, asset)
    except PermissionError as error:
        raise OutputError(f"{path.parent} cannot be written: {error.strerror}", remedy="Set OMLAB_HOME") from None
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):
            raise
        raise OutputError(
            f"{path.parent} cannot be written: {error.strerror}", remedy="Free space or set OMLAB_HOME"
        ) from None


def adopt(asset: Asset, given: Path, settings: Settings) -> Path:
    """Take a file that the user fetched by hand: verified, then copied into the writable root. For an index it may
    also be the folder of a checkpoint, or a checkpoint in one file."""
    path = home_of(asset, settings)
    if not asset.index:
        return _take(asset, given, path)
    if not given.exists():
        raise WeightsError(f"{given} does not exist", remedy=f"Name {asset.filename}, its folder, or a weights file")
    content, shards = gather(given, asset.filename)
    if asset.sha256 and hashlib.sha256(content).hexdigest() != asset.sha256:
        raise WeightsError(
            f"{given}: its index is not the one that the card names", remedy="Is it the checkpoint of another model?"
        )
    if path.is_file() and path.read_bytes() != content:
        path.unlink()  # from here on the former checkpoint is not whole
    for shard in shards:
        digest = asset.shards.get(shard.name, "")
        _take(attrs.evolve(asset, index=False, shards={}, sha256=digest, size=None), shard, path.with_name(shard.name))
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    return _settle(part, path, asset, shown=given)


def _take(asset: Asset, given: Path, path: Path) -> Path:
    import shutil

    if not given.is_file():
        raise WeightsError(f"{given} is not a file", remedy=f"Name the {asset.filename} that you fetched")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    shutil.copyfile(given, part)
    return _settle(part, path, asset, shown=given)


def _settle(part: Path, path: Path, asset: Asset, shown: Path | None = None) -> Path:
    """Verify a complete part and give it its name."""
    digest = sha256_of(part)
    size = part.stat().st_size
    wrong = ""
    if asset.sha256 and digest != asset.sha256:
        wrong = f"its SHA-256 is {digest[:16]}..., {asset.sha256[:16]}... was expected"
    elif asset.size is not None and size != asset.size:
        wrong = f"it has {size} bytes, {asset.size} were expected"
    if wrong:
        part.unlink()
        raise WeightsError(
            f"{shown or describe(asset)}: {asset.filename} is not the file that the card names: {wrong}",
            remedy="Nothing was kept. Try again; if it stays so, tell the plugin's authors",
        )
    os.replace(part, path)
    write_record(path, digest, describe(asset))
    return path


def _fetchers() -> dict[SourceKind, Callable[[Asset, Path, Listener], None]]:
    from omlab.weights import http, hub, wheel

    return {SourceKind.HTTPS: http.fetch, SourceKind.HUB: hub.fetch, SourceKind.WHEEL: wheel.fetch}


class LazyFiles(Mapping[str, Path]):
    """Files of a variant, ensured when the first one is asked for: an engine that is built needs none of them."""

    def __init__(self, ids: Iterable[str], ensure_all: Callable[[], dict[str, Path]]) -> None:
        self._ids = tuple(ids)
        self._ensure = ensure_all
        self._paths: dict[str, Path] | None = None

    def __getitem__(self, key: str) -> Path:
        if key not in self._ids:
            raise KeyError(key)
        if self._paths is None:
            self._paths = self._ensure()
        return self._paths[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)
