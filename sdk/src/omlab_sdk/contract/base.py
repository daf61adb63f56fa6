"""Values that the checks share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs

from omlab.cards import Card
from omlab.plugins import Plugin, Registry
from omlab.settings import Settings
from omlab.vocabulary import Kind


class Broken(Exception):
    """A rule does not hold."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy


class Skipped(Exception):
    """A check could not look."""


@attrs.frozen(eq=False)
class Subject:
    """A plugin under check.

    Attributes
    ----------
    project : folder with its pyproject.toml, where it is installed editable; else ``None``.
    work : scratch folder of this check run.
    settings : where weights are looked for; engines go to the scratch folder.
    """

    plugin: Plugin
    registry: Registry
    settings: Settings
    work: Path
    project: Path | None

    def cards(self, kind: Kind) -> list[Card]:
        """Cards of one kind that the plugin contributes."""
        return [self.registry.card(k, name) for k, name in self.plugin.contributions if k is kind]


@attrs.frozen
class Check:
    """One rule: name, what it asserts, which kinds of contribution it is about (all without any), and the code."""

    name: str
    rule: str
    code: Callable[[Subject], str]
    kinds: tuple[Kind, ...] = ()


@attrs.frozen
class Finding:
    """What came of a check: ``status`` is ``good``, ``broken`` or ``skipped``."""

    check: str
    status: str
    detail: str
    remedy: str = ""
    seconds: float = 0.0
