"""Upstream's containers into the networks: pre-training, classifiers, pickled segmenters, mmsegmentation's; files that
do not fit."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from omlab.errors import WeightsError  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab_d_mim import checkpoint  # noqa: E402
from omlab_d_mim.model import DMim  # noqa: E402
from omlab_d_mim.network import ConvViT, VisionTransformer  # noqa: E402
from omlab_d_mim.pretraining import ConvAutoencoder, VisionAutoencoder  # noqa: E402
from omlab_d_mim.segmenter import ConvEncoder, UNet, UPerNet, VisionEncoder  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402

DECODER = {"decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2}
WIDTHS = (16, 12, 8, 8)


def _conv(side: int) -> dict:
    return {
        "img_size": (side, side // 4, side // 8), "embed_dim": (8, 12, 16), "depth": (1, 2, 2), "num_heads": 2,
        "mlp_ratio": (8, 8, 4),
    }  # fmt: skip


def _vit(side: int) -> dict:
    return {"img_size": side, "embed_dim": 24, "depth": 12, "num_heads": 3}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "HEADS", {16: 2, 24: 3})


@pytest.fixture(scope="module")
def model() -> DMim:
    return DMim(Registry.discover().card(Kind.MODEL, "d-mim"))


def _save(path: Path, state: dict) -> Path:
    """As upstream's pre-training and fine-tuning write it."""
    arguments = argparse.Namespace(batch_size=64, model="dconvmae_convvit_base_patch16", lr=None)
    torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 799, "scaler": {}, "args": arguments}, path)
    return path


def _asset(model: DMim, variant: str):
    chosen = next(v for v in model.card.variants if v.name == variant)
    return chosen, chosen.weights[0]


@pytest.mark.parametrize("kind", ["convmae", "mae"])
def test_a_pretraining_file_gives_the_mean_token(model: DMim, tmp_path: Path, kind: str) -> None:
    conv = kind == "convmae"
    trained = ConvAutoencoder(**_conv(64), **DECODER) if conv else VisionAutoencoder(**_vit(64), **DECODER)
    path = _save(tmp_path / "checkpoint-799.pth", seed_module(trained.eval()).state_dict())
    network = checkpoint.embedder(path, _asset(model, kind)[1])
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        if conv:
            tokens = trained.transform(trained.stages(image)[2])
        else:
            tokens = trained.patch_embed(image) + trained.pos_embed[:, 1:]
            token = (trained.cls_token + trained.pos_embed[:, :1]).expand(2, -1, -1)
            tokens = torch.cat([token, tokens], dim=1)
            for block in trained.blocks:
                tokens = block(tokens)
            tokens = tokens[:, 1:]
        mean = tokens.mean(dim=1)
        expected = torch.nn.functional.layer_norm(mean, mean.shape[1:], eps=1e-6)
        torch.testing.assert_close(network(image), expected)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("kind", [ConvViT, VisionTransformer])
def test_a_classifier_brings_encoder_pooling_and_classes(tmp_path: Path, kind: type, pooled: bool) -> None:
    shape = _conv(64) if kind is ConvViT else _vit(64)
    network = seed_module(kind(num_classes=5, global_pool=pooled, **shape).eval())
    loaded = checkpoint.classifier(_save(tmp_path / "checkpoint-3.pth", network.state_dict()))
    assert type(loaded) is kind
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image), network(image))


@pytest.mark.parametrize("kind", [ConvViT, VisionTransformer])
def test_fine_tuning_begins_from_a_pretraining_file(kind: type) -> None:
    conv = kind is ConvViT
    shape = _conv(64) if conv else _vit(64)
    state = seed_module((ConvAutoencoder if conv else VisionAutoencoder)(**shape, **DECODER)).state_dict()
    network = kind(num_classes=3, **shape)
    checkpoint.load_pretrained(network, state | {"head.weight": torch.zeros(1000, 7)}, name="file")
    assert torch.equal(network.pos_embed, state["pos_embed"])
    assert network.pos_embed.requires_grad
    assert 0 < network.head.weight.abs().max() < 1e-3
    del state["pos_embed"]
    with pytest.raises(WeightsError, match="1 entry missing, first 'pos_embed'"):
        checkpoint.load_pretrained(network, state, name="file")


@pytest.mark.parametrize("encoder", ["convmae", "mae"])
def test_a_segmenter_begins_from_a_pretraining_file(encoder: str) -> None:
    conv = encoder == "convmae"
    if conv:
        state = seed_module(ConvAutoencoder(**_conv(64), **DECODER)).state_dict()
        network: torch.nn.Module = ConvEncoder(**_conv(128))
    else:
        state = seed_module(VisionAutoencoder(**_vit(64), **DECODER)).state_dict()
        network = VisionEncoder(**_vit(128))
    checkpoint.load_encoder(network, state, name="file")
    block = "blocks3.1" if conv else "blocks.1"
    own = network.state_dict()
    assert torch.equal(own[f"{block}.attn.qkv.weight"], state[f"{block}.attn.qkv.weight"])
    assert (own[f"{block}.gamma_1"] == 1).all()
    assert (own[f"{block}.attn.relative_position_bias_table"] == 0).all()
    assert own["pos_embed"].shape[1] == 64 + (0 if conv else 1)
    torch.testing.assert_close(own["pos_embed"].mean(), state["pos_embed"].mean(), atol=0.02, rtol=0)


def _segmenters() -> dict[str, torch.nn.Module]:
    return {
        "unetpp": UNet(ConvEncoder(**_conv(64)), nested=True, widths=WIDTHS),
        "unet": UNet(ConvEncoder(**_conv(64)), nested=False, widths=WIDTHS),
        "unetpp-mae": UNet(VisionEncoder(**_vit(64)), nested=True, widths=WIDTHS),
        "unet-mae": UNet(VisionEncoder(**_vit(64)), nested=False, widths=WIDTHS),
        "upernet": UPerNet(classes=3, channels=12, auxiliary_channels=8, **_conv(64)),
    }


@pytest.mark.parametrize("kind", ["unetpp", "unet", "unetpp-mae", "unet-mae", "upernet"])
def test_a_segmenter_brings_its_kind_size_and_classes(model: DMim, tmp_path: Path, kind: str) -> None:
    network = seed_module(_segmenters()[kind].eval())
    path = tmp_path / "best.pth"
    if kind == "upernet":  # as mmsegmentation 0.x writes it
        torch.save(
            {"meta": {"epoch": 1, "CLASSES": ("background", "nodule")}, "state_dict": network.state_dict()}, path
        )
    else:  # the whole network, as upstream's U-Net code saves it
        torch.save(torch.nn.DataParallel(network), path)
    loaded = checkpoint.segmenter(path, _asset(model, kind)[1])
    assert type(loaded) is type(network)
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image), network(image))


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.pth", ConvAutoencoder(**_conv(64), **DECODER).state_dict())
    with pytest.raises(WeightsError, match=r"holds no classifier, 'head\.weight' is missing"):
        checkpoint.classifier(path)
    with pytest.raises(WeightsError, match="holds no segmentation network of D-MIM, its first entry is 'pos_embed'"):
        checkpoint.segmenter(path)
    other = _save(tmp_path / "b.pth", torch.nn.Linear(2, 2).state_dict())
    with pytest.raises(WeightsError, match=r"has no entry 'patch_embed\.proj\.weight', its first is 'weight'"):
        checkpoint.embedder(other)
    strange = _save(tmp_path / "c.pth", ConvViT(**(_conv(64) | {"embed_dim": (8, 12, 20)})).state_dict())
    with pytest.raises(WeightsError, match="has tokens of 20 features, expected 16, 24"):
        checkpoint.embedder(strange)
    (tmp_path / "d.pth").write_bytes(b"<html>quota exceeded</html>")
    for read in (checkpoint.embedder, checkpoint.segmenter):
        with pytest.raises(WeightsError, match="damaged or no weights file|cannot be read safely"):
            read(tmp_path / "d.pth")
    with pytest.raises(WeightsError, match="does not exist"):
        checkpoint.segmenter(tmp_path / "none.pth")


def test_a_file_of_another_variant_is_refused(model: DMim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, content: object) -> torch.nn.Module:
        variant, _ = _asset(model, name)
        torch.save(content, tmp_path / "net.pth")
        return model.network(model.graphs(variant)[0], variant, {"net": tmp_path / "net.pth"})

    def pretrained(side: int) -> dict:
        return {"model": ConvAutoencoder(**_conv(side), **DECODER).state_dict()}

    with pytest.raises(WeightsError, match="holds the encoder convmae, expected mae"):
        load("mae", pretrained(224))
    with pytest.raises(WeightsError, match="was trained on 64 pixels, expected 224"):
        load("convmae", pretrained(64))
    with pytest.raises(WeightsError, match="has features of 16 numbers, expected 768"):
        load("convmae-deblurring", pretrained(224))
    networks = _segmenters()
    with pytest.raises(WeightsError, match="holds unet on the encoder mae, expected unetpp on convmae") as told:
        load("tn3k", networks["unet-mae"])
    assert told.value.remedy == "Use --variant unet-mae"
    with pytest.raises(WeightsError, match="was trained on 64 pixels, expected 512"):
        load("tn3k", networks["unetpp"])
    monkeypatch.setattr("omlab_d_mim.model.SIDES", {"segmentation": 64, "embedding": 64, "classification": 64})
    with pytest.raises(WeightsError, match="has 2 classes, expected one foreground"):
        load("unetpp", UNet(ConvEncoder(**_conv(64)), nested=True, classes=2, widths=WIDTHS))
    assert isinstance(load("unetpp", networks["unetpp"]), UNet)
    assert isinstance(load("classifier", {"model": ConvViT(num_classes=4, **_conv(64)).state_dict()}), ConvViT)
