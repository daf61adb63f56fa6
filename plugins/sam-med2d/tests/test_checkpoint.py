"""Upstream's containers into the network, and files that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from omlab.cards import Asset  # noqa: E402
from omlab.errors import WeightsError  # noqa: E402
from omlab_sam_med2d import checkpoint, network  # noqa: E402
from omlab_sam_med2d.network import Sam  # noqa: E402
from omlab_sdk.golden import seed_module, weight  # noqa: E402

ASSET = Asset(id="net", source="by-hand", file="f.pth", instructions="bring it", key="model")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest encoder that has both kinds of block."""
    size = {"embed_dim": 24, "depth": 2, "num_heads": 2, "global_attn_indexes": (1,)}
    monkeypatch.setitem(network.SIZES, "vit_b", size)


def _state(**arguments: object) -> dict:
    return dict(seed_module(Sam.of_size(**arguments)).state_dict())


def test_the_published_container(tmp_path: Path) -> None:
    state = _state()
    torch.save({"model": state}, tmp_path / "sam-med2d_b.pth")
    sam = checkpoint.load(tmp_path / "sam-med2d_b.pth", ASSET)
    assert not sam.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in sam.state_dict().items())


def test_adapters_may_be_left_out_of_the_same_file(tmp_path: Path) -> None:
    torch.save({"model": _state()}, tmp_path / "f.pth")
    sam = checkpoint.load(tmp_path / "f.pth", ASSET, adapter=False)
    assert not any("Adapter" in name for name in sam.state_dict())
    torch.save({"model": _state(adapter=False)}, tmp_path / "g.pth")
    with pytest.raises(WeightsError, match=r"missing, first 'image_encoder\.blocks\.0\.Adapter"):
        checkpoint.load(tmp_path / "g.pth", ASSET)  # a file without them is another model


def test_a_bare_state_dict(tmp_path: Path) -> None:
    torch.save(_state(img_size=1024, adapter=False), tmp_path / "sam_vit_b.pth")
    sam = checkpoint.load(tmp_path / "sam_vit_b.pth", ASSET, img_size=1024, adapter=False)
    assert sam.image_encoder.pos_embed.shape == (1, 64, 64, 24)
    with pytest.raises(WeightsError, match="is of a network for frames of 1024 pixels, this variant takes 256"):
        checkpoint.load(tmp_path / "sam_vit_b.pth", ASSET)


class _Evil:
    """What a pickle must never be able to run."""

    def __reduce__(self) -> object:
        return (print, ("executed",))


def test_a_training_checkpoint_is_read_and_nothing_in_it_is_run(tmp_path: Path, capsys) -> None:
    """Upstream's script saves its optimiser whole."""
    state = _state()
    optimiser = torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))], lr=1e-4)
    for number, extra in enumerate((optimiser, _Evil())):
        path = tmp_path / f"epoch{number}_sam.pth"
        torch.save({"model": state, "optimizer": extra}, path)
        sam = checkpoint.load(path, ASSET)
        assert all(torch.equal(tensor, state[name]) for name, tensor in sam.state_dict().items())
    assert "executed" not in capsys.readouterr().out
    torch.save({"optimizer": optimiser}, tmp_path / "bare.pth")
    with pytest.raises(WeightsError, match="holds no state dict under 'model'"):
        checkpoint.load(tmp_path / "bare.pth", ASSET)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    torch.save({"state": {"x.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="has no entry 'model'"):
        checkpoint.load(tmp_path / "other.pth", ASSET)
    (tmp_path / "page.pth").write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(WeightsError, match=r"page\.pth"):
        checkpoint.load(tmp_path / "page.pth", ASSET)
    with pytest.raises(WeightsError, match="does not exist"):
        checkpoint.load(tmp_path / "none.pth", ASSET)


def test_a_start_from_another_size_leaves_the_heads_alone() -> None:
    """Upstream's rule: tables are resampled, everything shared is taken, three heads keep their random start."""
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in Sam.of_size(img_size=512, adapter=False).state_dict().items()}
    state = {name: torch.from_numpy(weight(name, shape)) for name, shape in shapes.items()}
    sam = Sam.of_size(img_size=256, adapter=True)
    before = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    checkpoint.start(sam, state)
    for name, tensor in sam.state_dict().items():
        kept = "Adapter" in name or any(head in name for head in checkpoint.HEADS)
        if kept:
            assert torch.equal(tensor, before[name]), name
        elif tensor.shape == state[name].shape:
            assert torch.equal(tensor, state[name]), name
        else:
            assert "pos" in name, name
    table = state["image_encoder.blocks.1.attn.rel_pos_h"]  # of a global block: 63 rows become 31
    expected = torch.nn.functional.interpolate(table[None, None], size=(31, 12), mode="bilinear")[0, 0]
    torch.testing.assert_close(sam.image_encoder.blocks[1].attn.rel_pos_h.detach(), expected)
