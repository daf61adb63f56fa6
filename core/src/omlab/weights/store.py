"""Where fetched files lie, and whether what lies there is what it should be.

A file lies at ``<root>/<key>/<filename>``; the key is made of its SHA-256, or of its source where no digest is known.
Beside it ``<filename>.json`` records digest, size and modification time of the moment it was verified, so that a file
of gigabytes is hashed once and not at every start. Roots are searched in order; only the last one is written to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from omlab.cards import Asset
from omlab.errors import WeightsError
from omlab.files import write_text
from omlab.settings import Settings
from omlab.weights.index import shard_assets
from omlab.weights.keys import key_of


def home_of(asset: Asset, settings: Settings) -> Path:
    """Path that a fetched asset gets."""
    return settings.assets_root / key_of(asset) / asset.filename


def record_of(path: Path) -> Path:
    """The record beside a file."""
    return path.with_name(path.name + ".json")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded_digest(path: Path) -> str | None:
    """Digest from the record, if the file has not changed since."""
    try:
        record = json.loads(record_of(path).read_text("utf-8"))
        status = path.stat()
    except (OSError, ValueError):
        return None
    if (
        not isinstance(record, dict)
        or record.get("size") != status.st_size
        or record.get("mtime_ns") != status.st_mtime_ns
    ):
        return None
    digest = record.get("sha256")
    return digest if isinstance(digest, str) else None


def write_record(path: Path, digest: str, source: str) -> None:
    """Record that ``path`` was verified."""
    status = path.stat()
    record = {"sha256": digest, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "source": source}
    write_text(record_of(path), json.dumps(record, indent=1))


def locate(asset: Asset, settings: Settings) -> Path | None:
    """The verified file of ``asset``, or ``None`` if it is in no root; an index counts with all of its shards.

    Raises
    ------
    WeightsError
        A file is there but is not what the card says.
    """
    for root in (*settings.shared_roots, settings.assets_root):
        path = root / key_of(asset) / asset.filename
        if path.is_file():
            writable = root == settings.assets_root
            verify(path, asset, writable=writable)
            if not asset.index:
                return path
            shards = [(path.parent / shard.filename, shard) for shard in shard_assets(asset, path)]
            if all(place.is_file() for place, _ in shards):
                for place, shard in shards:
                    verify(place, shard, writable=writable)
                return path
    return None


def verify(path: Path, asset: Asset, *, writable: bool = True) -> str:
    """Digest of ``path`` after comparing it with the card. Raises :class:`omlab.errors.WeightsError`."""
    size = path.stat().st_size
    if asset.size is not None and size != asset.size:
        raise WeightsError(
            f"{path} is damaged: it has {size} bytes, {asset.size} were expected",
            remedy="Delete it and fetch it again with omlab pull",
        )
    digest = recorded_digest(path)
    if digest is None:
        digest = sha256_of(path)
        if writable:
            write_record(path, digest, asset.source)
    if asset.sha256 and digest != asset.sha256:
        raise WeightsError(
            f"{path} is damaged or another file: its SHA-256 is {digest[:16]}..., {asset.sha256[:16]}... was expected",
            remedy="Delete it and fetch it again with omlab pull",
        )
    return digest


def digest_of_all(assets: Iterable[Asset], settings: Settings) -> str | None:
    """One digest for the weights of a variant; ``None`` while a file without a known digest is not here."""
    digest = hashlib.sha256()
    for asset in assets:
        own = asset.sha256
        if not own:
            path = locate(asset, settings)
            if path is None:
                return None
            own = verify(path, asset)
        digest.update(f"{asset.id}:{own}\n".encode())
        if asset.index:
            path = locate(asset, settings)
            if path is None:
                return None
            for shard in shard_assets(asset, path):
                digest.update(f"{shard.filename}:{verify(path.parent / shard.filename, shard)}\n".encode())
    return digest.hexdigest()
