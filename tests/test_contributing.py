"""CONTRIBUTING.md walks from an empty folder to a wheel; here its commands are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv

import pytest

from omlab.cli.main import main
from support import ROOT


def _commands() -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """A fresh environment that sees the installed packages of this one, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("contributor") / "env"
    venv.create(folder, with_pip=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "outer.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    binaries = folder / "bin"
    script = binaries / "omlab"
    script.write_text(f'#!/bin/sh\nexec "{binaries / "python"}" -m omlab "$@"\n')
    script.chmod(0o755)
    (site / "sources.pth").write_text(f"{ROOT / 'core/src'}\n{ROOT / 'sdk/src'}\n")
    return {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        # 0 is how pip spells "without build isolation" in its environment variable: the backend is installed here.
        "PIP_NO_BUILD_ISOLATION": "0",
        # Its plugin parses itself at the end, and Python 3.11 cannot parse on two threads at once: torch may do so too.
        "PYTEST_ADDOPTS": "-p no:hypothesispytest",
    }


def _shell(command, folder, environment):
    done = subprocess.run(command, check=False, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def test_the_walk_works_as_written(environment, tmp_path):
    environment = {**environment, "OMLAB_HOME": str(tmp_path / "home"), "PIP_NO_DEPS": "1"}
    for command in _commands():
        _shell(command, tmp_path, environment)
    assert list((tmp_path / "dist").glob("omlab_lung_nodules-*.whl"))


@pytest.mark.parametrize("kind", ["classifier", "evaluator", "dataset"])
def test_the_other_kinds_pass_the_contract_as_made(kind, environment, tmp_path):
    environment = {**environment, "OMLAB_HOME": str(tmp_path / "home"), "PIP_NO_DEPS": "1"}
    name = f"made-{kind}"
    for command in (
        f"omlab new {name} --kind {kind}",
        f"pip install -q -e omlab-{name}",
        f"omlab check {name}",
        f"cd omlab-{name} && python -m pytest -q -p no:cacheprovider -k 'card or scores or bad'",
    ):
        done = _shell(command, tmp_path, environment)
    assert "passed" in done.stdout


def test_bad_names_and_full_folders_are_refused(tmp_path, capsys):
    for name in ("Lung", "2d", "a_b", "class"):
        assert main(["new", name, "-o", str(tmp_path / name)]) == 2
        assert "is no name for a plugin" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("here")
    assert main(["new", "fine", "-o", str(tmp_path / "full")]) == 2
    assert "not empty" in capsys.readouterr().err


def test_templates_hold_no_leftovers(tmp_path):
    from omlab_sdk.scaffold import create

    for kind in ("classifier", "segmenter-3d", "evaluator", "dataset"):
        for path in create("some-thing", kind, tmp_path / kind):
            text = path.read_text("utf-8")
            assert "[[[" not in text
            assert "MODULE" not in str(path)
            if path.suffix == ".py":
                compile(text, str(path), "exec")
    assert (tmp_path / "segmenter-3d/src/omlab_some_thing/model.py").is_file()
