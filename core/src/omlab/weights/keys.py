"""Folder of an asset below a root of fetched files."""

from __future__ import annotations

from omlab.cards import Asset


def key_of(asset: Asset) -> str:
    """Folder of an asset below a root."""
    if asset.sha256:
        return asset.sha256[:20]
    import hashlib
    import json

    import attrs

    from omlab.cards import as_table

    described = as_table(attrs.evolve(asset, instructions="-" if asset.instructions else "", licence=None, size=None))
    return "source-" + hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:20]
