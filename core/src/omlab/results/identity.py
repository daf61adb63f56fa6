"""Identifiers of DICOM objects that follow from what they hold."""

from __future__ import annotations

import hashlib
from uuid import UUID, uuid5

import numpy as np

#: Made once, at random: the name space of omlab's objects.
_NAMESPACE = UUID("6f3c2f0e-9d3b-4c55-8a0e-5c2f0c1e7b42")


def uid_of(what: str, *parts: str | np.ndarray) -> str:
    """A UID of the root 2.25 (PS3.5 B.2) for an object with these parts: the same for the same, on any machine."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else memoryview(np.ascontiguousarray(part)).cast("B"))
        digest.update(b"\0")
    return f"2.25.{uuid5(_NAMESPACE, what + digest.hexdigest()).int}"
