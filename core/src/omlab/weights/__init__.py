"""Files of models and datasets: where they come from, whether they are here, and fetching them when asked.

Nothing in here opens a connection unless the caller's :class:`Grant` allows it.
"""

from __future__ import annotations

from omlab.weights.consent import Consents
from omlab.weights.fetch import Grant, LazyFiles, ensure, missing, owner_assets
from omlab.weights.state import state_of
from omlab.weights.store import digest_of_all, locate

__all__ = ["Consents", "Grant", "LazyFiles", "digest_of_all", "ensure", "locate", "missing", "owner_assets", "state_of"]
