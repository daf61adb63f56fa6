"""The contract as tests, for contributors.

With ``omlab_plugin = "my-plugin"`` under ``[tool.pytest.ini_options]`` a test that asks for the fixture
``omlab_contract`` runs once for every check::

    def test_contract(omlab_contract):
        omlab_contract()

Networks are checked in the small size that the plugin gives for it; ``pytest --omlab-full`` takes the published one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from omlab_sdk.contract import Subject


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("omlab")
    group.addoption("--omlab-full", action="store_true", help="Check networks of omlab plugins at the published size.")
    group.addoption("--omlab-variant", action="append", default=[], help="Check only this variant; several allowed.")
    parser.addini("omlab_plugin", "Name of the omlab plugin whose contract the fixture omlab_contract runs.")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "omlab_contract" in metafunc.fixturenames:
        from omlab_sdk.contract import checks_for, subject_of

        name = str(metafunc.config.getini("omlab_plugin"))
        checks = checks_for(subject_of(name, Path()))
        metafunc.parametrize("omlab_contract", checks, indirect=True, ids=[check.name for check in checks])


@pytest.fixture(scope="session")
def omlab_subject(pytestconfig: pytest.Config) -> Iterator[Subject]:
    """The plugin under test with a scratch folder that all of its checks share."""
    from omlab_sdk.contract import subject_of

    name, options = str(pytestconfig.getini("omlab_plugin")), pytestconfig.option
    with tempfile.TemporaryDirectory(prefix="omlab-check-") as folder:
        yield subject_of(name, Path(folder), full=options.omlab_full, variants=options.omlab_variant)


@pytest.fixture
def omlab_contract(request: pytest.FixtureRequest, omlab_subject: Subject) -> Callable[[], None]:
    """Call it to run one check of the contract."""
    from omlab_sdk.contract.run import run_check

    check: Any = request.param

    def run() -> None:
        finding = run_check(check, omlab_subject)
        if finding.status == "skipped":
            pytest.skip(finding.detail)
        assert finding.status == "good", f"{finding.detail}. {finding.remedy}"

    return run
