"""A model directory becomes a plugin that others install."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import pytest

import omlab
from omlab.cli.main import main
from omlab.plugins import Registry
from omlab.vocabulary import Kind
from omlab_sdk.contract.packaging import build_wheel
from test_adapting import photos, probe  # noqa: F401


def test_it_runs_by_its_name_once_installed(probe, photos, tmp_path, monkeypatch, capsys):  # noqa: F811
    folder, _ = probe
    made = tmp_path / "plugin"
    command = ["package", str(folder), "--name", "warm-cold", "-o", str(made), "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["name"] == "warm-cold"
    project = (made / "pyproject.toml").read_text()
    assert "omlab-linear-probe>=" in project
    assert "meancolour" in project
    assert "test accuracy" in (made / "README.md").read_text()
    built = build_wheel(made, tmp_path / "wheel")
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert "omlab_warm_cold/omlab.toml" in names
    assert "omlab_warm_cold/model/head.safetensors" in names
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    registry = Registry.discover()
    assert registry.card(Kind.MODEL, "warm-cold").title == "meancolour, linear probe"
    path = photos / "test" / "warm" / "0.png"
    result = omlab.load("warm-cold", registry=registry)(path)
    assert result.best == "warm"
    assert result.probabilities == pytest.approx(omlab.load(folder, registry=registry)(path).probabilities)


def test_its_card_is_shown(probe, tmp_path, capsys):  # noqa: F811
    folder, _ = probe
    assert main(["info", str(folder)]) == 0
    assert "meancolour, linear probe" in capsys.readouterr().out
    assert main(["info", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"]
    assert main(["info", f"{tmp_path}/nothing"]) == 1
    assert "is no model directory" in capsys.readouterr().err


def test_what_cannot_be_packaged_is_told(probe, tmp_path, capsys):  # noqa: F811
    folder, _ = probe
    assert main(["package", str(tmp_path), "-o", str(tmp_path / "x")]) == 1
    assert "no model directory" in capsys.readouterr().err
    assert main(["package", str(folder), "--name", "Not A Name", "-o", str(tmp_path / "x")]) == 2
    assert main(["package", str(folder), "--name", "meancolour", "-o", str(tmp_path / "x")]) == 2
    assert "a model 'meancolour' already" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    assert main(["package", str(folder), "--name", "other", "-o", str(tmp_path / "full")]) == 2
    assert not (tmp_path / "x").exists()


def test_the_package_imports_nothing_heavy(probe, tmp_path):  # noqa: F811
    folder, _ = probe
    assert main(["package", str(folder), "--name", "light", "-o", str(tmp_path / "plugin")]) == 0
    code = "import sys, omlab_light; print(sorted(set(sys.modules) & {'numpy', 'torch', 'omlab.api'}))"
    source = str(tmp_path / "plugin" / "src")
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": source, "PATH": ""}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
