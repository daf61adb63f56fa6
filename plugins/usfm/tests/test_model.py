"""The pipeline around the networks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as Pillow

from omlab.cases import read
from omlab.errors import InputError
from omlab.model import Context
from omlab.plugins import Registry
from omlab.vocabulary import Kind
from omlab_usfm import preprocess
from omlab_usfm.model import SIDES, Usfm, best_on


@pytest.fixture(scope="module")
def model() -> Usfm:
    return Usfm(Registry.discover().card(Kind.MODEL, "usfm"))


class _Engine:
    """Gives what it is told and keeps what it was given."""

    def __init__(self, answer: np.ndarray) -> None:
        self.answer = answer
        self.given = np.empty(0)

    def __call__(self, inputs):
        self.given = inputs["image"]
        return dict.fromkeys(("feature", "logits", "scores"), self.answer[None])


def _context(model: Usfm, variant: str, engine: _Engine, names: str = "") -> Context:
    chosen = next(v for v in model.card.variants if v.name == variant)
    return Context(variant=chosen, engines={model.graphs(chosen)[0].name: engine}, options={"names": names})


@pytest.fixture
def scan(tmp_path: Path):
    """A speckled fan with a dark cyst, grey, wider than high."""
    rows, columns = np.mgrid[:300, :420]
    fan = np.hypot(rows + 60, columns - 210) < 340
    cyst = np.hypot(rows - 150, columns - 300) < 40
    speckle = np.random.default_rng(0).rayleigh(40, (300, 420))
    Pillow.fromarray(np.clip(speckle * fan * (1 - 0.9 * cyst), 0, 255).astype(np.uint8)).save(tmp_path / "scan.png")
    return read(tmp_path / "scan.png")


@pytest.mark.parametrize("variant", ["mean", "token"])
def test_embedding(model: Usfm, scan, variant: str) -> None:
    engine = _Engine(np.arange(768, dtype=np.float32))
    result = model.predict(scan, _context(model, variant, engine))
    np.testing.assert_array_equal(result.vector, np.arange(768))
    assert engine.given.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(engine.given[0], preprocess.classification(scan.rgb8()))


def test_classes(model: Usfm, scan) -> None:
    result = model.predict(scan, _context(model, "classifier", _Engine(np.array([0, 3, 1], np.float32))))
    assert result.best == "class 1"
    assert float(result.probabilities.sum()) == pytest.approx(1)


@pytest.mark.parametrize(("variant", "classes"), [("segvit", 2), ("upernet", 4)])
def test_a_label_map_lies_on_the_grid_of_the_image(model: Usfm, scan, variant: str, classes: int) -> None:
    side = SIDES["segmentation"]
    scores = np.zeros((classes, side, side), np.float32)
    scores[0] = 0.5
    scores[classes - 1, :, side // 2 :] = 1  # the right half
    engine = _Engine(scores)
    result = model.predict(scan, _context(model, variant, engine))
    assert engine.given.shape == (1, 3, side, side)
    assert result.labels.shape == (300, 420)
    assert result.labels.dtype == np.uint8
    expected = np.zeros((300, 420), np.uint8)
    expected[:, 210:] = classes - 1
    np.testing.assert_array_equal(result.labels, expected)
    assert [one.name for one in result.structures] == (
        ["foreground"] if classes == 2 else ["class 1", "class 2", "class 3"]
    )
    given = ",".join(["background", "cyst", "nodule", "duct"][:classes])
    named = model.predict(scan, _context(model, variant, engine, given))
    assert [one.name for one in named.structures] == given.split(",")[1:]


def test_many_classes_fit() -> None:
    scores = np.zeros((300, 4, 4), np.float32)
    scores[299] = 1
    assert (best_on(scores, 9, 7) == 299).all()


def test_bilinear_keeps_what_has_the_size_and_takes_two_neighbours() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert preprocess.bilinear(pixels, 6, 8) is pixels
    half = preprocess.bilinear(pixels, 3, 4).astype(int)
    means = pixels.reshape(3, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - means).max() <= 1
    flat = np.full((5, 7, 3), 201, np.uint8)
    assert (preprocess.bilinear(flat, 11, 3) == 201).all()
    larger = preprocess.bilinear(pixels, 24, 32)
    np.testing.assert_array_equal(larger[0, 0], pixels[0, 0])
    np.testing.assert_array_equal(larger[-1, -1], pixels[-1, -1])


def test_what_cannot_be_seen_is_refused(model: Usfm, tmp_path: Path) -> None:
    Pillow.fromarray(np.zeros((10, 300), np.uint8)).save(tmp_path / "strip.png")
    context = _context(model, "mean", _Engine(np.zeros(768, np.float32)))
    with pytest.raises(InputError, match="has 10 x 300 pixels, expected at least 32"):
        model.predict(read(tmp_path / "strip.png"), context)
    with pytest.raises(InputError, match="takes an image, found volume"):
        model.predict(SimpleNamespace(name="x", kind="volume"), context)


@pytest.mark.parametrize("variant", ["mean", "token", "classifier", "segvit", "upernet"])
def test_every_variant_has_a_small_network(model: Usfm, variant: str) -> None:
    torch = pytest.importorskip("torch")
    small = model.small(model.card.variant(variant))
    (graph,) = model.graphs(small)
    with torch.inference_mode():
        found = model.untrained(graph, small)(torch.zeros(1, 3, 128, 128))
    assert len(found) == 1
    assert torch.isfinite(found).all()
