"""Upstream's containers into the networks, and files that do not fit."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from omlab.errors import WeightsError  # noqa: E402
from omlab_endo_fm import checkpoint  # noqa: E402
from omlab_endo_fm.detection import Detector  # noqa: E402
from omlab_endo_fm.network import VideoTransformer  # noqa: E402
from omlab_endo_fm.segmentation import TransUNet  # noqa: E402

SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 1}


@pytest.fixture
def network() -> VideoTransformer:
    torch.manual_seed(0)
    network = VideoTransformer(**SMALL)
    torch.nn.init.normal_(network.time_embed)
    return network.eval()


def _prefixed(state: dict, prefix: str) -> dict:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize("form", ["teacher", "model_state", "bare", "encoder", "student"])
def test_encoders_of_every_container(tmp_path: Path, network: VideoTransformer, form: str) -> None:
    state = _prefixed(network.state_dict(), "backbone.") | {"head.mlp.0.weight": torch.zeros(3, 3)}
    beside = {"epoch": 7, "args": argparse.Namespace(lr=0.1), "fp16_scaler": {"scale": 65536.0}}
    content = {
        "teacher": {"teacher": state, "student": _prefixed(_prefixed(state, "x."), "module."), **beside},
        "model_state": {"model_state": state, "epoch": 3},
        "bare": state,
        "encoder": network.state_dict(),
        "student": {"student": _prefixed(state, "module."), **beside},
    }[form]
    torch.save(content, tmp_path / "f.pth")
    loaded = checkpoint.encoder(tmp_path / "f.pth")
    clip = torch.randn(1, 3, 8, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(clip), network(clip))


def test_a_classifier_brings_its_classes(tmp_path: Path, network: VideoTransformer) -> None:
    content = {
        "backbone_state_dict": _prefixed(network.state_dict(), "module."),
        "state_dict": {"module.linear.weight": torch.randn(3, 64), "module.linear.bias": torch.randn(3)},
        "epoch": 20, "best_f1": np.float64(0.915),
    }  # fmt: skip
    torch.save(content, tmp_path / "polypdiag.pth")
    loaded = checkpoint.classifier(tmp_path / "polypdiag.pth")
    assert torch.equal(loaded.linear.bias, content["state_dict"]["module.linear.bias"])
    assert torch.equal(loaded.network.time_embed, network.time_embed)
    torch.save({"teacher": network.state_dict()}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="holds no classifier, it has teacher"):
        checkpoint.classifier(tmp_path / "other.pth")


def test_segmentation_and_detection_networks(tmp_path: Path) -> None:
    segmenter = TransUNet(
        hidden_size=64, depth=1, heads=1, resnet_units=(1, 2, 1), width_factor=0.5, decoder_channels=(32, 32, 16, 16),
        skip_channels=(256, 128, 32, 16),
    )  # fmt: skip
    torch.save(segmenter.state_dict(), tmp_path / "cvc.pth")
    loaded = checkpoint.segmenter(tmp_path / "cvc.pth")
    for name, value in segmenter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    detector = Detector(out_channels=32, classes=2, **SMALL)
    state = {n: v for n, v in detector.state_dict().items() if ".fpn1." not in n}
    torch.save({"model": _prefixed(state, "module."), "iteration": 96000}, tmp_path / "kumc.pth")
    found = checkpoint.detector(tmp_path / "kumc.pth").state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    for read, other, what in (
        (checkpoint.segmenter, "kumc.pth", "holds no tensors|no segmentation network"),
        (checkpoint.detector, "cvc.pth", "no encoder of Endo-FM"),
        (checkpoint.encoder, "cvc.pth", "no encoder of Endo-FM"),
    ):
        with pytest.raises(WeightsError, match=what):
            read(tmp_path / other)


def test_what_does_not_fit_is_said(tmp_path: Path, network: VideoTransformer) -> None:
    state = dict(network.state_dict())
    del state["blocks.1.temporal_fc.weight"]
    torch.save({"teacher": _prefixed(state, "backbone.")}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"1 entry missing, first 'blocks\.1\.temporal_fc\.weight'"):
        checkpoint.encoder(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match="damaged or no weights file|cannot be read safely"):
        checkpoint.encoder(tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="does not exist"):
        checkpoint.encoder(tmp_path / "c.pth")
