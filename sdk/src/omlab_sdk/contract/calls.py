"""Whom this process calls while a plugin is checked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from omlab_sdk.contract.base import Broken, Subject

_LOCAL = ("localhost", "127.0.0.1", "::1", "")
_watching: dict[object, list[str]] = {}


@contextmanager
def watched(told: list[str]) -> Iterator[None]:
    """Within it, what this process does to reach another machine is added to ``told``: names that it looks up and
    addresses that it connects to. What its threads do counts, what processes of their own do does not."""
    _add_hook()
    key = object()
    _watching[key] = told
    try:
        yield
    finally:
        del _watching[key]


@cache
def _add_hook() -> None:
    """Once: the interpreter takes no hook back, so the one rests between checks."""
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or event not in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect"):
        return
    where = arguments[1] if event == "socket.connect" else arguments[0]
    # Sockets of the machine's own have a path; those of networks an address and a port.
    host = where[0] if isinstance(where, tuple) else where if event != "socket.connect" else ""
    host = host.decode(errors="replace") if isinstance(host, bytes) else str(host or "")
    if host not in _LOCAL:
        for told in tuple(_watching.values()):
            told.append(host)


def silent(subject: Subject) -> str:
    """Nothing that the checks before this one did reached for another machine."""
    if subject.calls:
        hosts = ", ".join(dict.fromkeys(subject.calls))
        raise Broken(
            f"it, or a library that it uses, reached for {hosts} without being asked",
            "Leave downloads to the weights of the card, and turn reports of use off",
        )
    return "no other machine was called"
