"""Progress on a terminal: one line that is rewritten; in a log, a line a stage that takes long."""

from __future__ import annotations

import sys
import time

from omlab.progress import Progress

_WORDS = {
    "download": "fetching",
    "export": "exporting the network (once)",
    "build": "building the engine (once)",
    "parity": "comparing the engine with the reference (once)",
    "read": "reading",
    "prepare": "preparing",
    "network": "running the network",
    "restore": "going back to the scan's grid",
    "write": "writing",
    "train": "training",
    "embed": "embedding",
    "index": "indexing (once)",
    "verify": "verifying",
    "count": "counting",
    "score": "scoring",
}


class TerminalListener:
    """Shows events on standard error; quiet when it is no terminal or when told to be."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._live = not quiet and sys.stderr.isatty()
        self._quiet = quiet
        self._last = 0.0
        self._shown = ""
        self._told: set[str] = set()

    def __call__(self, event: Progress) -> None:
        words = _WORDS.get(event.stage, event.stage)
        if not self._live:
            # Without a terminal only what may take minutes is told, once.
            line = f"{event.what.partition(':')[0]}: {words}"
            if (
                not self._quiet
                and event.stage in {"download", "export", "build", "train", "index"}
                and line not in self._told
            ):
                self._told.add(line)
                sys.stderr.write(line + "\n")
            return
        now = time.monotonic()
        if event.total and now - self._last < 0.1 and event.done < event.total:
            return
        self._last = now
        part = ""
        if event.total and event.unit:
            if event.unit == "bytes":
                part = f" {event.done / 1e6:.1f} of {event.total / 1e6:.1f} MB"
            else:
                part = f" {event.done:.0f} of {event.total:.0f} {event.unit}"
        line = f"{event.what}: {words}{part}"[:118]
        sys.stderr.write("\r" + line.ljust(len(self._shown)))
        sys.stderr.flush()
        self._shown = line

    def clear(self) -> None:
        """Take the line away before other output."""
        if self._shown:
            sys.stderr.write("\r" + " " * len(self._shown) + "\r")
            sys.stderr.flush()
            self._shown = ""
