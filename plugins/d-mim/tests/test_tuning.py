"""Segmenters learn other structures: from a file to a model directory that segments, on small networks and images."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import numpy as np
import pytest
from PIL import Image as Pillow

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("omlab_segmenter_tuning")

import omlab  # noqa: E402
from omlab.cases import read  # noqa: E402
from omlab.cli.main import main  # noqa: E402
from omlab.errors import InputError, UsageError, WeightsError  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.results import Segmentation  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab_d_mim import checkpoint, losses, tuning  # noqa: E402
from omlab_d_mim.model import DMim  # noqa: E402
from omlab_d_mim.pretraining import ConvAutoencoder, VisionAutoencoder  # noqa: E402
from omlab_d_mim.segmenter import ConvEncoder, UNet, UPerNet, VisionEncoder  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402
from omlab_sdk.segmenters import Tunable, first_losses, window_of  # noqa: E402

SIDE = 64
CONV = {"embed_dim": (8, 12, 16), "depth": (1, 1, 2), "num_heads": 2, "mlp_ratio": (4, 4, 4)}
VIT = {"embed_dim": 24, "depth": 12, "num_heads": 3}
CONV_SIDES = {"img_size": (SIDE, SIDE // 4, SIDE // 8)}
WIDTHS = (16, 12, 8, 8)
NAMES = {1: "nodule", 3: "vessel"}
KINDS = ("unetpp", "unet", "unetpp-mae", "unet-mae", "upernet")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoint, "HEADS", {16: 2, 24: 3})
    monkeypatch.setattr("omlab_d_mim.model.SIDES", {"embedding": SIDE, "classification": SIDE, "segmentation": SIDE})
    monkeypatch.setenv("OMLAB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OMLAB_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def model() -> DMim:
    return DMim(Registry.discover().card(Kind.MODEL, "d-mim"))


def _network(kind: str, classes: int = 1) -> torch.nn.Module:
    if kind == "upernet":
        return UPerNet(classes=classes + 1, channels=12, auxiliary_channels=8, **CONV_SIDES, **CONV)
    encoder = VisionEncoder(img_size=SIDE, **VIT) if "mae" in kind else ConvEncoder(**CONV_SIDES, **CONV)
    return UNet(encoder, nested=kind.startswith("unetpp"), widths=WIDTHS)


def _file(path: Path, network: torch.nn.Module) -> Path:
    torch.save({"state_dict": network.state_dict()}, path)
    return path


def _variant(model: DMim, name: str):
    return next(variant for variant in model.card.variants if variant.name == name)


def _images(folder: Path, values: tuple[int, ...] = (1,)) -> Path:
    """Speckle with a dark disc of each value on the left or right."""
    (folder / "train" / "images").mkdir(parents=True)
    (folder / "train" / "masks").mkdir()
    (folder / "classes.json").write_text(json.dumps({value: NAMES[value] for value in values}))
    rows, columns = np.mgrid[:72, :90]
    for number in range(2):
        mask = np.zeros((72, 90), np.uint8)
        for at, value in zip((25, 62), values, strict=False):
            mask[np.hypot(rows - 30 - 3 * number, columns - at) < 14] = value
        speckle = np.random.default_rng(number).rayleigh(40, mask.shape)
        Pillow.fromarray(np.clip(speckle * (1 - 0.3 * mask), 0, 255).astype(np.uint8)).save(
            folder / "train" / "images" / f"{number}.png"
        )
        Pillow.fromarray(mask).save(folder / "train" / "masks" / f"{number}.png")
    return folder


@pytest.mark.parametrize(("kind", "values"), [("unetpp", (1,)), ("upernet", (1, 3))])
def test_from_the_command_line(tmp_path: Path, kind: str, values: tuple[int, ...]) -> None:
    path, images = _file(tmp_path / "net.pth", seed_module(_network(kind))), _images(tmp_path / "scans", values)
    accept = ["--accept-licence", "CC-BY-NC-4.0"]
    assert main(["pull", "d-mim", "--variant", kind, "--file", f"net={path}", *accept]) == 0
    options = ["--epochs", "2", "--batches", "2", "--batch", "2", "--device", "cpu", "--lr", "0.001"]
    learnt = ["--with", "segmenter-tuning", "--on", f"image-masks:{images}", *options]
    assert main(["adapt", "d-mim", "--variant", kind, *learnt, "-o", str(tmp_path / "mine")]) == 0
    loaded = omlab.load(tmp_path / "mine", engine="torch", threads=1)
    found = loaded(images / "train" / "images" / "0.png")
    assert found.labels.shape == (72, 90) and found.labels.max() <= max(values)
    assert [(one.value, one.name) for one in found.structures] == [(value, NAMES[value]) for value in values]
    assert main(["adapt", str(tmp_path / "mine"), *learnt, "-o", str(tmp_path / "more")]) == 0


@pytest.mark.parametrize("begins", ["trained", "pre-trained"])
@pytest.mark.parametrize("kind", KINDS)
def test_recipe_lowers_the_loss(model: DMim, tmp_path: Path, kind: str, begins: str) -> None:
    assert isinstance(model, Tunable)
    variant, outputs = _variant(model, kind), 4 if kind == "upernet" else 2
    if begins == "trained":
        before = seed_module(_network(kind)).state_dict()
        path = _file(tmp_path / "net.pth", _network(kind))
        torch.save({"state_dict": before}, path)
    else:
        heads = {"decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2}
        made = VisionAutoencoder(img_size=SIDE, **VIT, **heads) if "mae" in kind else ConvAutoencoder(
            **CONV_SIDES, **CONV, **heads
        )  # fmt: skip
        before = seed_module(made).state_dict()
        path = tmp_path / "checkpoint-799.pth"
        torch.save({"model": before}, path)
        shape = dict(VIT if "mae" in kind else CONV) | (
            {"channels": 12, "auxiliary_channels": 8} if kind == "upernet" else {}
        )
        variant = variant.configured(shape=shape)
    recipe = model.recipe(variant, {"net": path}, outputs)
    own = recipe.state.state_dict()
    block = "blocks.1.attn.qkv.weight" if "mae" in kind else "blocks3.1.attn.qkv.weight"
    prefix = "backbone." if kind == "upernet" else "encoder."
    assert torch.equal(own[prefix + block], before[block if begins == "pre-trained" else prefix + block])
    assert recipe.patch == (1, SIDE, SIDE) and recipe.multiple is None
    case = read(_images(tmp_path / "scans", (1, 3)) / "train" / "images" / "0.png")
    mask = np.asarray(Pillow.open(tmp_path / "scans" / "train" / "masks" / "0.png"))
    labels = mask if kind == "upernet" else (mask > 0).astype(np.uint8)
    prepared = recipe.prepare(case, Segmentation(labels=labels, structures=[]))
    assert prepared.image.shape[:2] == (3, 1) and prepared.image.shape[1:] == prepared.labels.shape
    assert set(np.unique(prepared.labels)) == set(np.unique(labels))
    # UPerNet is shown a larger picture, of which a coarse grid is as good here as a window.
    cut = (..., *(slice(0, SIDE * 12, 12) if kind == "upernet" else slice(SIDE) for _ in range(2)))
    window = attrs.evolve(prepared, image=prepared.image[cut], labels=prepared.labels[cut])
    values = first_losses(recipe, window, steps=20, rate=3e-3, copies=2)
    assert min(values[-3:]) < 0.9 * values[0]
    image, _ = window_of(window, 2)
    with torch.inference_mode():
        given = recipe.network(image)
    assert recipe.labels(given).shape == (2, 1, SIDE, SIDE)
    (graph,) = model.graphs(variant)
    tuned = model.tuned(graph, variant, recipe.state.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(tuned(image[:, :, 0]), given)


def test_the_target_is_a_mask_of_half_the_size() -> None:
    """As upstream makes it: from the mask itself, nearest."""
    import cv2

    mask = (np.random.default_rng(0).random((97, 131)) > 0.5).astype(np.uint8)
    whole = cv2.resize(mask, (512, 512), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(whole[::2, ::2], cv2.resize(mask, (256, 256), interpolation=cv2.INTER_NEAREST))


def test_rates_of_layers_fall_towards_the_image() -> None:
    network = tuning.Plane(_network("upernet"))
    optimiser = tuning.upernet_optimiser(network)
    scales = {}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            scales[names[id(parameter)]] = group["lr_scale"], group["weight_decay"]
    assert scales.keys() == set(names.values())
    assert scales["network.decode_head.conv_seg.weight"] == (1, 0.05)
    assert scales["network.auxiliary_head.conv_seg.bias"] == (1, 0)
    assert scales["network.backbone.blocks3.1.attn.qkv.weight"] == (0.75, 0.05)
    assert scales["network.backbone.blocks3.0.norm1.weight"] == (0.75**2, 0)
    assert scales["network.backbone.blocks1.0.conv1.weight"] == (0.75**3, 0.05)
    assert scales["network.backbone.pos_embed"] == (0.75**3, 0)
    assert tuning.upernet_rate(0, 100, 1e-4) < 1e-7
    assert tuning.upernet_rate(50, 100, 1e-4) == pytest.approx(5e-5)
    assert tuning.upernet_rate(100, 100, 1e-4) == 0


def test_the_second_head_counts_less() -> None:
    heads = [torch.randn(1, 3, 4, 4), torch.randn(1, 3, 2, 2)]
    labels = torch.randint(3, (1, 8, 8))
    first, second = (float(losses.heads_loss([head], labels)) for head in heads)
    assert float(losses.heads_loss(heads, labels)) == pytest.approx(first + 0.4 * second)


def test_what_cannot_be_learnt_from(model: DMim, tmp_path: Path) -> None:
    path = _file(tmp_path / "unet.pth", seed_module(_network("unet")))
    with pytest.raises(UsageError, match="'convmae' does not segment"):
        model.recipe(_variant(model, "convmae"), {"net": path}, 2)
    with pytest.raises(UsageError, match="one structure from the background, the dataset has labels up to 3"):
        model.recipe(_variant(model, "unet"), {"net": path}, 4)
    with pytest.raises(UsageError, match="no spacing"):
        model.recipe(_variant(model, "unet"), {"net": path}, 2, spacing_mm=(1, 1, 1))
    with pytest.raises(WeightsError, match="holds unet on the encoder convmae, expected unetpp on convmae"):
        model.recipe(_variant(model, "unetpp"), {"net": path}, 2)
    recipe = model.recipe(_variant(model, "unet"), {"net": path}, 2)
    case = read(_images(tmp_path / "scans") / "train" / "images" / "0.png")
    with pytest.raises(InputError, match=r"its label map has \(9, 9\) pixels, the image \(72, 90\)"):
        recipe.prepare(case, Segmentation(labels=np.zeros((9, 9), np.uint8), structures=[]))
