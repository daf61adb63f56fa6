"""Containers in, and words that a person can act on where something does not fit."""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from omlab.errors import WeightsError  # noqa: E402
from omlab_sdk.checkpoints import load_into, read_checkpoint, rename  # noqa: E402

STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}


class Evil:
    """What a pickle must never be able to run."""

    def __reduce__(self):
        return (print, ("executed",))


def test_nested_prefixed_renamed(tmp_path: Path) -> None:
    content = {"state": {"net": {f"module.{k}": v for k, v in STATE.items()}}, "epoch": 3}
    torch.save(content | {"args": argparse.Namespace(lr=1)}, tmp_path / "f.pth")
    state = read_checkpoint(
        tmp_path / "f.pth", key="state/net", prefix="module.", rules=[("a.", "b."), (re.compile("bias$"), "offset")]
    )
    assert set(state) == {"b.weight", "b.offset"}


def test_safetensors_and_bare(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "f.safetensors")
    torch.save(STATE, tmp_path / "f.pt")
    for name in ("f.safetensors", "f.pt"):
        state = read_checkpoint(tmp_path / name)
        assert torch.equal(state["a.weight"], STATE["a.weight"])


def test_old_container(tmp_path: Path) -> None:
    torch.save({"model": STATE}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert set(read_checkpoint(tmp_path / "old.pth", key="model")) == set(STATE)


def test_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": STATE, "extra": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "evil.pkl"):
        with pytest.raises(WeightsError, match="cannot be read safely"):
            read_checkpoint(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


def test_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    torch.save({"model": STATE, "optimizer": {}}, tmp_path / "f.pth")
    with pytest.raises(WeightsError, match="has no entry 'state_dict', it has model, optimizer"):
        read_checkpoint(tmp_path / "f.pth", key="state_dict")
    with pytest.raises(WeightsError, match="holds no tensors at 'its top', there is model, optimizer"):
        read_checkpoint(tmp_path / "f.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "f.pth").read_bytes()[:300])
    with pytest.raises(WeightsError, match=r"damaged|cannot be read safely"):
        read_checkpoint(tmp_path / "cut.pth")
    save_file(STATE, tmp_path / "f.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "f.safetensors").read_bytes()[:-5])
    with pytest.raises(WeightsError, match="is damaged"):
        read_checkpoint(tmp_path / "cut.safetensors")


def test_two_names_become_one() -> None:
    with pytest.raises(WeightsError, match="two entries of the weights become 'x'"):
        rename({"a.x": 1, "x": 2}, prefix="a.")


def test_what_does_not_fit() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 4))
    own = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(WeightsError, match="1 entry missing, first '1.bias'") as caught:
        load_into(module, {k: v for k, v in own.items() if k != "1.bias"}, name="f.pth")
    assert "another model" in caught.value.remedy
    with pytest.raises(WeightsError, match="1 entry unexpected, first 'head.weight'"):
        load_into(module, own | {"head.weight": torch.ones(1)}, name="f.pth")
    with pytest.raises(WeightsError, match=r"of another shape, first '0.bias' \(5,\), expected \(2,\)") as caught:
        load_into(module, own | {"0.bias": torch.ones(5)}, name="f.pth")
    assert "another size" in caught.value.remedy
    with pytest.raises(WeightsError) as caught:
        load_into(module, {f"net.{k}": v for k, v in own.items()}, name="f.pth")
    assert 'prefix = "net."' in caught.value.remedy


def test_ignored_and_allowed() -> None:
    module = torch.nn.Linear(3, 2)
    weight = torch.full((2, 3), 5.0)
    load_into(
        module, {"weight": weight, "head.bias": torch.ones(1)}, name="f", ignore=[r"head\..*"], allow_missing=["bias"]
    )
    assert torch.equal(module.weight, weight)
