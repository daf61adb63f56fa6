"""Values that the checks share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    settings : where weights are looked for; engines go to the scratch folder.
    work : scratch folder of this check run.
    project : folder with its pyproject.toml, where it is installed editable; else ``None``.
    full : networks are taken at their published size, not at the small one that a model gives for checks.
    variants : only these variants of its models; without any the contract chooses.
    ready, outlines : what checks made and share (:func:`omlab_sdk.contract.models.checked_models`,
        :func:`omlab_sdk.contract.sizes.outlined`).
    calls : machines that were reached for so far (:mod:`omlab_sdk.contract.calls`).
    """

    plugin: Plugin
    registry: Registry
    settings: Settings
    work: Path
    project: Path | None
    full: bool = False
    variants: tuple[str, ...] = ()
    ready: dict[Any, Any] = attrs.field(factory=dict, init=False)
    outlines: dict[str, Any] = attrs.field(factory=dict, init=False)
    calls: list[str] = attrs.field(factory=list, init=False)

    def cards(self, kind: Kind) -> list[Card]:
        """Cards of one kind that the plugin contributes."""
        return [self.registry.card(k, name) for k, name in self.plugin.contributions if k is kind]


@attrs.frozen
class Check:
    """One rule.

    Attributes
    ----------
    name : of the check.
    rule : what it asserts.
    code : gives a sentence on what it saw.
    kinds : of contribution that it is about; all without any.
    sized : it looks at networks, at the size that :class:`Subject` says.
    beside : it works in processes of its own, so that others may run at the same time.
    """

    name: str
    rule: str
    code: Callable[[Subject], str]
    kinds: tuple[Kind, ...] = ()
    sized: bool = False
    beside: bool = False


@attrs.frozen
class Finding:
    """What came of a check.

    Attributes
    ----------
    status : ``good``, ``broken`` or ``skipped``.
    size : ``small`` or ``full`` where it looked at networks, ``small and full`` where at both.
    """

    check: str
    status: str
    detail: str
    remedy: str = ""
    seconds: float = 0.0
    size: str = ""
