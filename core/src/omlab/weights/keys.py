"""Folder of an asset below a root of fetched files."""

from __future__ import annotations

from omlab.cards import Asset


def key_of(asset: Asset) -> str:
    """Folder of an asset below a root.

    Without a digest all that is said of the file tells it from others, the instructions too: files that users bring
    are often called alike.
    """
    if asset.sha256:
        return asset.sha256[:20]
    import hashlib
    import json

    import attrs

    from omlab.cards import as_table

    described = as_table(attrs.evolve(asset, licence=None, size=None))
    for field in ("index", "shards"):  # they say nothing of the file itself
        described.pop(field, None)
    return "source-" + hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:20]
