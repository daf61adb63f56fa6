"""Fixtures that tests across packages share."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from support import MODEL_TABLE, SHARED


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes what the user has."""
    home = tmp_path / "omlab-home"
    monkeypatch.setenv("OMLAB_HOME", str(home))
    monkeypatch.delenv("OMLAB_WEIGHTS", raising=False)
    monkeypatch.delenv("OMLAB_OFFLINE", raising=False)
    return home


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside the project, which a user's machine does not have."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the folder {SHARED.name} beside the project")
    return SHARED


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make and 'install' a plugin: a package, its manifest and the metadata of its distribution."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    made: list[str] = []

    def install(
        name: str, *, manifest: str | None = None, code: str = "", distribution: str | None = None, package: bool = True
    ) -> Path:
        distribution = distribution or f"omlab-{name}"
        module = "omlab_" + distribution.removeprefix("omlab-").replace("-", "_")
        folder = site / module
        if package:
            folder.mkdir(parents=True)
            (folder / "__init__.py").write_text(textwrap.dedent(code))
            if manifest is None:
                manifest = "api = 1\n" + MODEL_TABLE.format(name=name)
            (folder / "omlab.toml").write_text(manifest)
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[omlab]\n{name} = {module}\n")
        importlib.invalidate_caches()
        made.append(module)
        return folder

    yield install
    for module in [m for m in sys.modules if m.partition(".")[0] in made]:
        del sys.modules[module]
