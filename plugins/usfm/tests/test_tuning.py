"""Segmenters learn other structures, from the published encoder and from trained segmenters, on small networks."""

from __future__ import annotations

import json
from pathlib import Path

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
from omlab_sdk.golden import seed_module  # noqa: E402
from omlab_sdk.segmenters import Tunable, first_losses, window_of  # noqa: E402
from omlab_usfm import checkpoint, segmenter, tuning  # noqa: E402
from omlab_usfm.model import Usfm  # noqa: E402
from omlab_usfm.pretraining import MaskedEncoder  # noqa: E402

SIDE = 64
SMALL = {"embed_dim": 24, "depth": 12, "num_heads": 3}
NAMES = {1: "nodule", 3: "vessel"}
HEADS = {"segvit": segmenter.segvit, "upernet": segmenter.upernet}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (checkpoint, segmenter):
        monkeypatch.setattr(module, "BASE", SMALL)
    monkeypatch.setattr("omlab_usfm.model.SIDES", {"embedding": SIDE, "classification": SIDE, "segmentation": SIDE})
    monkeypatch.setenv("OMLAB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OMLAB_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def model() -> Usfm:
    return Usfm(Registry.discover().card(Kind.MODEL, "usfm"))


def _variant(model: Usfm, name: str):
    return next(variant for variant in model.card.variants if variant.name == name)


def _published(path: Path) -> Path:
    """The encoder at another size than the segmenters', as it is published."""
    torch.save(seed_module(MaskedEncoder(img_size=48, **SMALL)).state_dict(), path)
    return path


def _images(folder: Path, values: tuple[int, ...] = (1, 3)) -> Path:
    """Speckle with a disc of each value, dark or darker."""
    for place in ("images", "masks"):
        (folder / "train" / place).mkdir(parents=True)
    (folder / "classes.json").write_text(json.dumps({value: NAMES[value] for value in values}))
    rows, columns = np.mgrid[:72, :90]
    for number in range(2):
        mask = np.zeros((72, 90), np.uint8)
        for at, value in zip((25, 62), values, strict=False):
            mask[np.hypot(rows - 30 - 3 * number, columns - at) < 14] = value
        speckle = np.random.default_rng(number).rayleigh(40, mask.shape) * (1 - 0.3 * mask)
        Pillow.fromarray(np.clip(speckle, 0, 255).astype(np.uint8)).save(folder / f"train/images/{number}.png")
        Pillow.fromarray(mask).save(folder / f"train/masks/{number}.png")
    return folder


@pytest.mark.parametrize("kind", HEADS)
def test_from_the_command_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, images = _published(tmp_path / "USFM_latest.pth"), _images(tmp_path / "scans")
    accept = ["--accept-licence", "CC-BY-NC-4.0"]
    assert main(["pull", "usfm", "--variant", kind, "--file", f"net={path}", *accept]) == 0
    options = ["--epochs", "2", "--batches", "2", "--batch", "2", "--device", "cpu", "--lr", "0.001"]
    learnt = ["--with", "segmenter-tuning", "--on", f"image-masks:{images}", *options]
    made = main(["adapt", "usfm", "--variant", kind, *learnt, "-o", str(tmp_path / "mine")])
    assert made == 0, capsys.readouterr().err
    loaded = omlab.load(tmp_path / "mine", engine="torch", threads=1)
    found = loaded(images / "train" / "images" / "0.png")
    assert found.labels.shape == (72, 90) and found.labels.max() <= 3
    assert [(one.value, one.name) for one in found.structures] == [(1, "nodule"), (3, "vessel")]
    if kind == "upernet":
        assert main(["adapt", str(tmp_path / "mine"), *learnt, "-o", str(tmp_path / "more")]) == 0


@pytest.mark.parametrize("begins", ["trained", "published"])
@pytest.mark.parametrize("kind", HEADS)
def test_recipe_lowers_the_loss(model: Usfm, kind: str, begins: str, tmp_path: Path) -> None:
    assert isinstance(model, Tunable)
    variant = _variant(model, kind)
    if begins == "trained":
        before = seed_module(HEADS[kind](2, img_size=SIDE)).state_dict()
        path, prefix = tmp_path / "best.pth", ""
        torch.save({"model": before}, path)
    else:
        path, prefix = _published(tmp_path / "USFM_latest.pth"), "backbone."
        before = torch.load(path, weights_only=True)
    recipe = model.recipe(variant, {"net": path}, 4)
    block = "blocks.3.attn.qkv.weight" if prefix else "backbone.blocks.3.attn.qkv.weight"
    assert torch.equal(recipe.state.state_dict()[prefix + block], before[block])
    if begins == "published":
        assert torch.equal(recipe.state.state_dict()["backbone.blocks.3.gamma_1"], before["blocks.3.gamma_1"])
    assert recipe.patch == (1, SIDE, SIDE) and recipe.multiple is None
    images = _images(tmp_path / "scans")
    case, mask = read(images / "train/images/0.png"), np.asarray(Pillow.open(images / "train/masks/0.png"))
    prepared = recipe.prepare(case, Segmentation(labels=mask, structures=[]))
    assert prepared.image.shape == (3, 1, SIDE, SIDE) and prepared.labels.shape == (1, SIDE, SIDE)
    assert set(np.unique(prepared.labels)) == {0, 1, 3}
    values = first_losses(recipe, prepared, steps=6, rate=1e-3, copies=2)
    assert min(values[-3:]) < 0.9 * values[0], values
    image, _ = window_of(prepared, 2)
    with torch.inference_mode():
        given = recipe.network(image)
    assert recipe.labels(given).shape == (2, 1, SIDE, SIDE)
    (graph,) = model.graphs(variant)
    with torch.inference_mode():
        torch.testing.assert_close(model.tuned(graph, variant, recipe.state.state_dict())(image[:, :, 0]), given)


def test_rates_are_upstreams() -> None:
    assert pytest.approx(3e-4 * 16 / 512) == tuning.RATE
    assert tuning.schedule(0, 400) == pytest.approx(5e-5 * 16 / 512)
    assert tuning.schedule(20, 400, 1e-3) == pytest.approx(1e-3, rel=0.01)
    assert tuning.schedule(200, 400, 1e-3) == pytest.approx(5e-4)
    assert tuning.schedule(400, 400) == 0
    groups = tuning.optimiser(segmenter.segvit(2, img_size=SIDE)).param_groups
    assert {group["lr_scale"] for group in groups} == {1} and {g["weight_decay"] for g in groups} == {0, 0.05}


def test_what_cannot_be_learnt_from(model: Usfm, tmp_path: Path) -> None:
    path = _published(tmp_path / "USFM_latest.pth")
    with pytest.raises(UsageError, match="'mean' does not segment"):
        model.recipe(_variant(model, "mean"), {"net": path}, 2)
    with pytest.raises(UsageError, match="no spacing"):
        model.recipe(_variant(model, "upernet"), {"net": path}, 2, spacing_mm=(1, 1, 1))
    for size, kind, message in ((SIDE, "upernet", "holds upernet on 64"), (32, "segvit", "holds segvit on 32")):
        other = tmp_path / f"{kind}.pth"
        torch.save({"model": HEADS[kind](2, img_size=size).state_dict()}, other)
        with pytest.raises(WeightsError, match=message):
            model.recipe(_variant(model, "segvit"), {"net": other}, 2)
    recipe = model.recipe(_variant(model, "upernet"), {"net": path}, 2)
    case = read(_images(tmp_path / "scans") / "train" / "images" / "0.png")
    with pytest.raises(InputError, match=r"its label map has \(9, 9\) pixels, the image \(72, 90\)"):
        recipe.prepare(case, Segmentation(labels=np.zeros((9, 9), np.uint8), structures=[]))
