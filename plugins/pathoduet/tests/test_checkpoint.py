"""Upstream's containers into the network, and files that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from omlab.errors import WeightsError  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab_pathoduet import checkpoint  # noqa: E402
from omlab_pathoduet.model import PathoDuet  # noqa: E402
from omlab_pathoduet.network import VisionTransformer  # noqa: E402
from omlab_pathoduet.pretraining import Bridge  # noqa: E402

SMALL = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": checkpoint.HEADS, "global_pool": "avg"}


def _network(**arguments) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(**(SMALL | {"num_classes": 0} | arguments)).eval()


def _save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("wrap", ["bare", "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.base_encoder."])
@pytest.mark.parametrize("head", [False, True])
def test_every_container_loads(tmp_path: Path, wrap: str, prefix: str, head: bool) -> None:
    network = _network()
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    if head:  # published files may have one, which an encoder has no use for
        state[f"{prefix}head.weight"] = torch.zeros(1000, 48)
    path = _save(tmp_path / "net.pth", state if wrap == "bare" else {wrap: state, "epoch": 3})
    loaded = checkpoint.encoder(path)
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image)[1], network(image)[1])


def test_the_base_encoder_is_taken_from_a_training_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stage = Bridge(lambda: VisionTransformer(**SMALL), dim=16, mlp_dim=32)
    with torch.no_grad():
        stage.momentum_encoder.cls_token.fill_(7)
    optimiser = torch.optim.AdamW(stage.predictor.parameters())
    content = {
        "epoch": 20, "arch": "vit_base", "optimizer": optimiser.state_dict(), "scaler": {"scale": 65536.0},
        "state_dict": {f"module.{name}": tensor for name, tensor in stage.state_dict().items()},
    }  # fmt: skip
    path = _save(tmp_path / "checkpoint_0020.pth.tar", content)
    loaded = checkpoint.encoder(path)
    assert torch.equal(loaded.cls_token, stage.base_encoder.cls_token)
    assert torch.equal(loaded.fc_norm.weight, stage.base_encoder.fc_norm.weight)
    with pytest.raises(WeightsError, match=r"holds no classifier, 'head\.weight' is missing"):
        checkpoint.classifier(path)


@pytest.mark.parametrize("arguments", [{}, {"global_pool": "token"}, {"stem": "conv"}, {"depth": 3, "embed_dim": 96}])
def test_a_classifier_brings_its_classes_pooling_and_shape(tmp_path: Path, arguments: dict) -> None:
    network = _network(num_classes=4, **arguments)
    loaded = checkpoint.classifier(_save(tmp_path / "best.pth.tar", {"state_dict": network.state_dict()}))
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image)[1], network(image)[1])


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    state = dict(_network().state_dict())
    with pytest.raises(WeightsError, match="is no encoder of PathoDuet, it has no 'pretext_token'"):
        checkpoint.encoder(_save(tmp_path / "a.pth", {k: v for k, v in state.items() if k != "pretext_token"}))
    with pytest.raises(WeightsError, match="'pos_embed' is missing or malformed"):
        checkpoint.encoder(_save(tmp_path / "b.pth", {k: v for k, v in state.items() if k != "pos_embed"}))
    del state["blocks.1.attn.qkv.weight"]
    with pytest.raises(WeightsError, match=r"1 entry missing, first 'blocks\.1\.attn\.qkv\.weight'"):
        checkpoint.encoder(_save(tmp_path / "c.pth", state))
    (tmp_path / "d.pth").write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(WeightsError, match="damaged or no weights file|cannot be read safely"):
        checkpoint.encoder(tmp_path / "d.pth")


def test_a_file_that_does_not_fit_the_graph_is_refused(tmp_path: Path) -> None:
    model = PathoDuet(Registry.discover().card(Kind.MODEL, "pathoduet"))
    variants = {variant.name: variant for variant in model.card.variants}

    def load(name: str, **arguments) -> None:
        path = _save(tmp_path / "net.pth", _network(**arguments).state_dict())
        model.network(model.graphs(variants[name])[0], variants[name], {"net": path})

    with pytest.raises(WeightsError, match="was trained on 32 pixels, expected 224"):
        load("he")
    with pytest.raises(WeightsError, match="has 48 features, expected 768"):
        load("he", img_size=224)
    with pytest.raises(WeightsError, match="tells 4 classes apart, variant 'nct-crc-he' has 9"):
        load("nct-crc-he", img_size=224, num_classes=4)
    load("classifier", img_size=224, num_classes=4)
