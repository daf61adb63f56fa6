"""Whole modules that torch.save pickled: their tensors come, their code does not run."""

from __future__ import annotations

import functools
import os
import sys
import types
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from omlab.errors import WeightsError  # noqa: E402
from omlab_sdk.modules import read_beside_objects, read_module  # noqa: E402


@pytest.fixture
def foreign():
    """A module of a package that is gone when the file is read, with what foreign networks hold beside tensors."""
    package = types.ModuleType("foreign_network")
    source = """
import torch
from torch import nn

class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("kept", torch.arange(6).reshape(2, 3).t())
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.scale = nn.Parameter(torch.full((4,), 0.5))
        self.size = torch.Size([1, 2])

class Sized(list):
    pass

class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(Inner(), nn.GELU())
        self.again = self.inner[0].conv
        self.shapes = Sized([1, 2])
"""
    exec(compile(source, "foreign_network", "exec"), package.__dict__)
    for name in ("Inner", "Outer", "Sized"):
        getattr(package, name).__module__ = "foreign_network"
    sys.modules["foreign_network"] = package
    yield package
    sys.modules.pop("foreign_network", None)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("parallel", [False, True])
def test_every_tensor_comes_by_its_name(tmp_path: Path, foreign, zipped: bool, parallel: bool) -> None:
    module = foreign.Outer()
    module.make = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    module.activation = torch.nn.functional.gelu
    if parallel:
        module = torch.nn.DataParallel(module)
    torch.save(module, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    expected = module.state_dict()
    del sys.modules["foreign_network"]
    found = read_module(tmp_path / "net.pth")
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)
        assert not found[name].requires_grad
    assert "foreign_network" not in sys.modules


class _Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_code_runs(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    module.trap = _Harmful(tmp_path / "ran")
    torch.save(module, tmp_path / "net.pth")
    assert list(read_module(tmp_path / "net.pth")) == ["weight", "bias"]
    assert not (tmp_path / "ran").exists()


def test_what_is_no_module_is_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        read_module(tmp_path / "none.pth")
    (tmp_path / "a.pth").write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(WeightsError, match="is damaged or no file of torch.save"):
        read_module(tmp_path / "a.pth")
    torch.save({"model": {"w": torch.zeros(2)}}, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="holds no pickled module, there is dict"):
        read_module(tmp_path / "b.pth")


def test_a_state_dict_beside_objects_comes_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    state = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2), "note": "no tensor"}
    torch.save({"model": state, "optimizer": Evil()}, tmp_path / "f.pth")
    found = read_beside_objects(tmp_path / "f.pth", "model")
    assert set(found) == {"a.weight", "a.bias"}
    assert torch.equal(found["a.weight"], torch.ones(2, 3))
    with pytest.raises(WeightsError, match="holds no state dict under 'state_dict'"):
        read_beside_objects(tmp_path / "f.pth", "state_dict")
    with pytest.raises(WeightsError, match="does not exist"):
        read_beside_objects(tmp_path / "none.pth", "model")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "f.pth").read_bytes()[:200])
    with pytest.raises(WeightsError, match="damaged"):
        read_beside_objects(tmp_path / "cut.pth", "model")
    assert "executed" not in capsys.readouterr().out
