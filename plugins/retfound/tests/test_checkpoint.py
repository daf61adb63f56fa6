"""Upstream's containers into the networks, and files that do not fit."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from omlab.cards import Asset  # noqa: E402
from omlab.errors import WeightsError  # noqa: E402
from omlab_retfound import checkpoint  # noqa: E402
from omlab_retfound.network import VisionTransformer  # noqa: E402

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}
ASSET = Asset(id="net", source="by-hand", file="f.pth", instructions="bring it", key="model")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LARGE", SMALL)


def _save(path: Path, state: dict, **beside: object) -> Path:
    torch.save({"model": state, **beside}, path)
    return path


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("pooled", [False, True])
def test_a_classifier_brings_its_classes_and_pooling(tmp_path: Path, classes: int, pooled: bool) -> None:
    network = VisionTransformer(num_classes=classes, global_pool=pooled, **SMALL).eval()
    path = _save(tmp_path / "best.pth", network.state_dict(), epoch=3, args=argparse.Namespace(lr=1e-3))
    loaded = checkpoint.classifier(path, ASSET, double_norm=False)
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image), network(image))
    assert loaded(image).shape == (1, classes)


def test_an_encoder_from_a_pre_training_file(tmp_path: Path) -> None:
    network = VisionTransformer(num_classes=0, global_pool=False, **SMALL)
    state = dict(network.state_dict())
    state |= {"mask_token": torch.zeros(1, 1, 8), "decoder_pred.weight": torch.zeros(3, 8)}
    encoder = checkpoint.encoder(_save(tmp_path / "cfp.pth", state), ASSET, "mae")
    assert torch.equal(encoder.patch_embed.proj.weight, network.patch_embed.proj.weight)
    assert torch.equal(encoder.fc_norm.weight, torch.ones(48))


def test_positions_of_another_size_are_interpolated(tmp_path: Path) -> None:
    network = VisionTransformer(img_size=320, num_classes=2, global_pool=True, **SMALL)
    loaded = checkpoint.classifier(_save(tmp_path / "big.pth", network.state_dict()), ASSET, double_norm=False)
    assert loaded.pos_embed.shape == (1, 197, 48)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    state = dict(VisionTransformer(num_classes=2, global_pool=True, **SMALL).state_dict())
    headless = {key: value for key, value in state.items() if not key.startswith("head")}
    with pytest.raises(WeightsError, match="holds no classifier"):
        checkpoint.classifier(_save(tmp_path / "a.pth", headless), ASSET, double_norm=False)
    del state["blocks.1.attn.qkv.weight"]
    with pytest.raises(WeightsError, match=r"1 entry missing, first 'blocks\.1\.attn\.qkv\.weight'"):
        checkpoint.classifier(_save(tmp_path / "b.pth", state), ASSET, double_norm=False)
    (tmp_path / "c.pth").write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match="damaged or no weights file|cannot be read safely"):
        checkpoint.classifier(tmp_path / "c.pth", ASSET, double_norm=False)
