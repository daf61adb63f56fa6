"""One event type through which everything long tells how far it is."""

from __future__ import annotations

import threading
from collections.abc import Callable

import attrs

from omlab.errors import Cancelled


@attrs.frozen
class Progress:
    """How far something is.

    Attributes
    ----------
    what : the thing, ``"scan.nii.gz"`` or ``"deepbet 1.0.2 (wheel)"``.
    stage : ``"download"``, ``"build"``, ``"read"``, ``"prepare"``, ``"network"``, ``"restore"``, ``"write"``.
    done, total : in ``unit``; ``total`` is ``None`` where it is not known.
    unit : ``"bytes"``, ``"windows"``, ``"cases"`` ...
    """

    what: str
    stage: str
    done: float = 0.0
    total: float | None = None
    unit: str = ""


Listener = Callable[[Progress], None]


def silent(event: Progress) -> None:
    """The listener of those who do not care."""


class CancelToken:
    """Lets another thread stop a run between two of its steps."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask the run to stop."""
        self._event.set()

    def check(self) -> None:
        """Raise :class:`omlab.errors.Cancelled` if the run was cancelled."""
        if self._event.is_set():
            raise Cancelled("the run was cancelled")
