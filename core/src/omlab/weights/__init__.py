"""Files of models and datasets: where they come from, whether they are here, and fetching them when asked.

Nothing in here opens a connection unless the caller's :class:`Grant` allows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omlab.weights.consent import Consents
    from omlab.weights.fetch import Grant, LazyFiles, ensure, missing, owner_assets
    from omlab.weights.index import shards_of, weight_map
    from omlab.weights.state import state_of
    from omlab.weights.store import digest_of_all, locate

_HOMES = {
    "Consents": "consent", "Grant": "fetch", "LazyFiles": "fetch", "digest_of_all": "store", "ensure": "fetch",
    "locate": "store", "missing": "fetch", "owner_assets": "fetch", "shards_of": "index", "state_of": "state",
    "weight_map": "index",
}  # fmt: skip

__all__ = [
    "Consents", "Grant", "LazyFiles", "digest_of_all", "ensure", "locate", "missing", "owner_assets", "shards_of",
    "state_of", "weight_map",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Listing asks only for the state of files; it must not pay for what fetches them.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"omlab.weights.{_HOMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
