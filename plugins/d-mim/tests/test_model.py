"""The pipeline around the networks, and the steps beside them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as Pillow

from omlab.cases import read
from omlab.errors import InputError, UsageError
from omlab.model import Context
from omlab.plugins import Registry
from omlab.vocabulary import Kind
from omlab_d_mim import preprocess, protocol
from omlab_d_mim.model import SIDES, DMim, foreground


@pytest.fixture(scope="module")
def model() -> DMim:
    return DMim(Registry.discover().card(Kind.MODEL, "d-mim"))


class _Engine:
    """Gives what it is told and keeps what it was given."""

    def __init__(self, answer: np.ndarray) -> None:
        self.answer = answer
        self.given: list[np.ndarray] = []

    def __call__(self, inputs):
        self.given += list(inputs["image"])
        many = np.repeat(self.answer[None], len(inputs["image"]), axis=0)
        return dict.fromkeys(("feature", "logits", "scores", "probability"), many)


def _context(model: DMim, variant: str, engine, *, names: str = "", blur: str = "auto") -> Context:
    chosen = next(v for v in model.card.variants if v.name == variant)
    (graph,) = model.graphs(chosen)
    return Context(variant=chosen, engines={graph.name: engine}, options={"names": names, "blur": blur})


@pytest.fixture
def scan(tmp_path: Path):
    """Speckle with a dark nodule, wider than high."""
    rows, columns = np.mgrid[:300, :420]
    nodule = np.hypot(rows - 150, columns - 300) < 40
    speckle = np.random.default_rng(0).rayleigh(40, (300, 420))
    Pillow.fromarray(np.clip(speckle * (1 - 0.9 * nodule), 0, 255).astype(np.uint8)).save(tmp_path / "scan.png")
    return read(tmp_path / "scan.png")


@pytest.mark.parametrize(
    ("variant", "blur", "blurred"),
    [
        ("convmae-deblurring", "auto", True), ("convmae", "auto", False), ("mae-deblurring", "auto", True),
        ("mae", "auto", False), ("convmae-deblurring", "no", False), ("convmae", "yes", True),
    ],
)  # fmt: skip
def test_deblurring_networks_see_a_blurred_image(model: DMim, scan, variant: str, blur: str, blurred: bool) -> None:
    engine = _Engine(np.arange(768, dtype=np.float32))
    result = model.predict(scan, _context(model, variant, engine, blur=blur))
    np.testing.assert_array_equal(result.vector, np.arange(768))
    seen = preprocess.as_trained(scan.rgb8()) if blurred else scan.rgb8()
    np.testing.assert_array_equal(engine.given[0], preprocess.classification(seen))


def test_classes(model: DMim, scan) -> None:
    engine = _Engine(np.array([0, 3], np.float32))
    result = model.predict(scan, _context(model, "classifier", engine, names="benign,malignant"))
    assert result.best == "malignant"
    with pytest.raises(UsageError, match="3 names are given, the network tells 2 classes apart"):
        model.predict(scan, _context(model, "classifier", engine, names="a,b,c"))


@pytest.mark.parametrize("variant", ["tn3k", "unet-mae"])
def test_a_nodule_lies_on_the_grid_of_the_image(model: DMim, scan, variant: str) -> None:
    side = SIDES["segmentation"] // 2
    probability = np.zeros((1, side, side), np.float32)
    probability[..., side // 2 :] = 1  # the right half
    engine = _Engine(probability)
    result = model.predict(scan, _context(model, variant, engine))
    assert engine.given[0].shape == (3, 512, 512)
    expected = np.zeros((300, 420), np.uint8)
    expected[:, 210:] = 1
    np.testing.assert_array_equal(result.labels, expected)
    assert [one.name for one in result.structures] == ["thyroid nodule" if variant == "tn3k" else "foreground"]


def test_the_threshold_is_upstreams() -> None:
    probability = np.array([[0.4999, 0.5], [0.5001, 1.0]], np.float32)
    np.testing.assert_array_equal(foreground(probability, 2, 2), [[0, 1], [1, 1]])


@pytest.mark.parametrize("shape", [(300, 420), (900, 1200), (200, 900)])
def test_windows_give_what_upstreams_order_gives(model: DMim, tmp_path: Path, shape: tuple[int, int]) -> None:
    """Scores that depend on the place in the window, averaged, resized and compared: against plain arrays and torch."""
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / "scan.png")
    tilt = np.linspace(-1, 1, 512, dtype=np.float32)

    def scores(image: np.ndarray) -> np.ndarray:
        smooth = np.cumsum(image, axis=-1) / 40
        return np.stack([smooth[:, 0] + tilt, smooth[:, 1] - tilt[:, None], smooth[:, 2] + 0 * tilt], axis=1)

    context = _context(model, "upernet", lambda inputs: {"scores": scores(inputs["image"])}, blur="no")
    result = model.predict(read(tmp_path / "scan.png"), context)
    image = preprocess.fitted(pixels)
    before = [(max(512 - n, 0) // 2, max(512 - n, 0) - max(512 - n, 0) // 2) for n in image.shape[1:]]
    padded = np.pad(image, ((0, 0), *before))
    total, count = np.zeros((3, *padded.shape[1:])), np.zeros(padded.shape[1:])
    for top in preprocess.starts(padded.shape[1]):
        for left in preprocess.starts(padded.shape[2]):
            place = (slice(None), slice(top, top + 512), slice(left, left + 512))
            total[place] += scores(padded[place][None])[0]
            count[place[1:]] += 1
    own = (slice(None), *(slice(a, a + n) for (a, _), n in zip(before, image.shape[1:], strict=True)))
    mean = torch.from_numpy((total / count)[own])[None]
    resized = torch.nn.functional.interpolate(mean, size=shape, mode="bilinear", align_corners=False)[0]
    assert result.labels.shape == shape
    assert np.mean(result.labels != resized.argmax(dim=0).numpy()) < 1e-3
    assert [one.name for one in result.structures] == ["class 1", "class 2"]


def test_windows_cover_and_stay_inside() -> None:
    assert preprocess.starts(512) == (0,)
    assert preprocess.starts(300) == (0,)
    assert preprocess.starts(513) == (0, 1)
    assert preprocess.starts(768) == (0, 256)
    assert preprocess.starts(1096) == (0, 341, 584)
    assert preprocess.starts(200, 128, 85) == (0, 72)


def test_the_largest_size_that_fits() -> None:
    assert preprocess.fitted(np.zeros((600, 800, 3), np.uint8)).shape == (3, 768, 1024)
    assert preprocess.fitted(np.zeros((400, 1000, 3), np.uint8)).shape == (3, 438, 1096)
    grey = preprocess.fitted(np.full((40, 50, 3), 128, np.uint8))
    np.testing.assert_allclose(grey[:, 0, 0], (128 - np.array([123.675, 116.28, 103.53])) / [58.395, 57.12, 57.375],
                               rtol=1e-5)  # fmt: skip


def test_u_net_sees_blue_first() -> None:
    red = np.zeros((10, 20, 3), np.uint8)
    red[..., 0] = 255
    image = preprocess.segmentation(red, 64)
    np.testing.assert_allclose(image[:, 0, 0], [-0.485 / 0.229, -0.456 / 0.224, (1 - 0.406) / 0.225], rtol=1e-6)


def test_a_pair_shares_its_crop_and_pictures_do_not() -> None:
    rows, columns = np.mgrid[:200, :260]
    picture = np.stack([rows, columns, rows], axis=2).clip(0, 255).astype(np.uint8)
    grey = np.repeat(picture[:, :, 1:2], 3, axis=2)
    draw = protocol.Pairs(size=64, seed=3)
    first, second = draw(grey), draw(grey)
    for blurred, original in (first, second):
        assert blurred.shape == original.shape == (3, 64, 64)
        assert np.abs(blurred - original).max() < 0.1  # a ramp stays where it is when blurred
    assert np.abs(first[1] - second[1]).max() > 0.1
    again = protocol.Pairs(size=64, seed=3)(grey)
    np.testing.assert_array_equal(again[1], first[1])


def test_rates_and_scores() -> None:
    assert protocol.rate("pretraining", 20, epochs=800, batch=512) == pytest.approx(1.5e-4)
    assert protocol.rate("pretraining", 800, epochs=800, batch=512) == 0
    assert protocol.rate("fine-tuning", 5, epochs=100, batch=64) == pytest.approx(2.5e-5)
    assert protocol.rate("fine-tuning", 100, epochs=100, batch=64) == 1e-6
    truth = np.array([[1, 1, 0, 0]])
    assert protocol.overlap(np.array([[0.9, 0.5, 0.6, 0.1]]), truth)["iou"] == pytest.approx(1 / 3)
    scores = protocol.image_overlap(np.array([[0.9, 0.5, 0.6, 0.1]]), truth)
    assert scores == {"iou": pytest.approx(2 / 3), "dice": pytest.approx(0.8)}
    nothing = protocol.image_overlap(np.array([[0.0, 0.0, 0.0, 0.9]]), truth)
    assert nothing["iou"] == pytest.approx(1 / 4)


def test_what_cannot_be_seen_is_refused(model: DMim, tmp_path: Path) -> None:
    Pillow.fromarray(np.zeros((10, 300), np.uint8)).save(tmp_path / "strip.png")
    context = _context(model, "mae", _Engine(np.zeros(768, np.float32)))
    with pytest.raises(InputError, match="has 10 x 300 pixels, expected at least 32"):
        model.predict(read(tmp_path / "strip.png"), context)
    with pytest.raises(InputError, match="takes an image, found volume"):
        model.predict(SimpleNamespace(name="x", kind="volume"), context)
