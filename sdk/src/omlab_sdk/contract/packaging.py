"""Checks of the distribution: the wheel builds, holds what it must, and installs in a clean environment."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from omlab_sdk.contract.base import Broken, Skipped, Subject


def wheel(subject: Subject) -> str:
    """The wheel builds, holds the manifest, and is discovered in a clean environment."""
    if subject.project is None:
        raise Skipped("the plugin is not installed from a folder; there is nothing to build")
    built = build_wheel(subject.project, subject.work / "wheel")
    manifest = f"{subject.plugin.package}/omlab.toml"
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
    if manifest not in names:
        raise Broken(f"the wheel lacks {manifest}", "Let the build backend include package data (hatchling does)")
    if not any("LICENSE" in name.upper() for name in names):
        raise Broken("the wheel holds no licence file", "Put a LICENSE file beside pyproject.toml")
    environment = subject.work / "clean"
    # Without a pip of its own, which takes longer to make than all the rest: this environment's installs into it.
    _call([sys.executable, "-m", "venv", "--without-pip", str(environment)], "an environment cannot be made")
    python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    _call([*pip, "install", "--quiet", "--no-deps", str(built)], "the wheel does not install")
    code = (
        "import sys, tomllib, pathlib\n"
        "from importlib.metadata import entry_points\nfrom importlib.util import find_spec\n"
        f"e, = [e for e in entry_points(group='omlab') if e.name == {subject.plugin.name!r}]\n"
        "p = pathlib.Path(find_spec(e.value).submodule_search_locations[0]) / 'omlab.toml'\n"
        "print(tomllib.loads(p.read_text())['api'])"
    )
    _call([str(python), "-c", code], "the installed wheel is not discovered")
    return f"{built.name} ({built.stat().st_size / 1000:.0f} kB) builds and installs"


def build_wheel(project: Path, folder: Path) -> Path:
    """Build the wheel of ``project``; with the build backend of this environment where it is installed."""
    import tomllib
    from importlib.util import find_spec

    backend = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["build-system"]["build-backend"]
    isolation = [] if find_spec(backend.partition(".")[0]) is None else ["--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _call([*command, *isolation, "--wheel-dir", str(folder), str(project)], "the wheel does not build")
    return next(iter(folder.glob("*.whl")))


def _call(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        told = [line for line in lines if "rror" in line] or lines
        raise Broken(f"{what}: {told[-1].strip()}", f"Try: {' '.join(command[1:4])} ...")
