"""The plugins of this repository, all installed together, against the parts of the contract that need no weights."""

from __future__ import annotations

import pytest

from omlab.plugins import Registry
from omlab_sdk.contract import CHECKS, check_plugin
from support import ROOT

OURS = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml"))
QUICK = ("card", "discovery", "hooks", "licence", "weights", "scores")


def test_all_of_ours_are_installed_and_sound() -> None:
    registry = Registry.discover()
    assert registry.broken == []
    assert {f"omlab-{name}" for name in OURS} <= {plugin.distribution for plugin in registry.plugins.values()}


@pytest.mark.parametrize("name", OURS)
def test_the_contract_holds(name: str) -> None:
    assert set(QUICK) <= {check.name for check in CHECKS}
    findings = list(check_plugin(f"omlab-{name}", QUICK))
    assert {"card", "discovery", "hooks", "licence"} <= {finding.check for finding in findings}
    assert [f"{f.check}: {f.detail}" for f in findings if f.status == "broken"] == []
