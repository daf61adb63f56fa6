"""The pipeline around the network."""

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
from omlab_pathoduet import preprocess
from omlab_pathoduet.model import PathoDuet


@pytest.fixture(scope="module")
def model() -> PathoDuet:
    return PathoDuet(Registry.discover().card(Kind.MODEL, "pathoduet"))


class _Engine:
    """Gives what it is told and keeps what it was given."""

    def __init__(self, answer: np.ndarray) -> None:
        self.answer = answer
        self.given = np.empty(0)

    def __call__(self, inputs):
        self.given = inputs["image"]
        return dict.fromkeys(("feature", "logits"), self.answer[None])


def _context(model: PathoDuet, variant: str, engine: _Engine, view: str = "evaluation", names: str = "") -> Context:
    chosen = next(v for v in model.card.variants if v.name == variant)
    return Context(
        variant=chosen, engines={model.graphs(chosen)[0].name: engine}, options={"view": view, "names": names}
    )


@pytest.fixture
def tile(tmp_path: Path):
    """Purple nuclei on a pink ground."""
    rows, columns = np.mgrid[:300, :420]
    nuclei = (np.sin(rows / 9) * np.sin(columns / 11) > 0.6)[:, :, None]
    pixels = np.where(nuclei, [88, 52, 130], [232, 170, 205]).astype(np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / "tile.png")
    return read(tmp_path / "tile.png")


def test_embedding(model: PathoDuet, tile) -> None:
    engine = _Engine(np.arange(768, dtype=np.float32))
    result = model.predict(tile, _context(model, "he", engine))
    np.testing.assert_array_equal(result.vector, np.arange(768))
    assert engine.given.shape == (1, 3, 224, 224)
    assert engine.given.dtype == np.float32
    # Values in 0..1 as they are: no mean is taken away.
    assert engine.given.min() == pytest.approx(52 / 255, abs=0.1)
    assert engine.given.max() == pytest.approx(232 / 255, abs=0.01)


def test_the_view_decides_what_is_seen(model: PathoDuet, tile) -> None:
    seen = {}
    for view in ("evaluation", "whole"):
        engine = _Engine(np.zeros(768, np.float32))
        model.predict(tile, _context(model, "ihc", engine, view))
        seen[view] = engine.given
    assert seen["whole"].shape == seen["evaluation"].shape == (1, 3, 224, 224)
    assert not np.allclose(seen["whole"], seen["evaluation"], atol=0.05)
    corner = tile.pixels.copy()
    corner[:10, :10] = 0  # outside of the crop
    np.testing.assert_array_equal(preprocess.evaluation(corner), preprocess.evaluation(tile.pixels))
    assert preprocess.whole(corner)[:, 0, 0].max() < 0.1


def test_classes_have_the_names_of_the_card(model: PathoDuet, tile) -> None:
    logits = np.array([0, 0, 0, 4, 0, 0, 0, 0, 1], np.float32)
    result = model.predict(tile, _context(model, "nct-crc-he", _Engine(logits)))
    assert result.best == "LYM (lymphocytes)"
    assert float(result.probabilities.sum()) == pytest.approx(1)
    own = model.predict(tile, _context(model, "classifier", _Engine(np.zeros(3, np.float32))))
    assert own.classes == ("class 0", "class 1", "class 2")
    named = _context(model, "classifier", _Engine(np.zeros(3, np.float32)), names="tumour, stroma, other")
    assert model.predict(tile, named).classes == ("tumour", "stroma", "other")


def test_what_cannot_be_seen_is_refused(model: PathoDuet, tmp_path: Path) -> None:
    Pillow.fromarray(np.zeros((10, 300, 3), np.uint8)).save(tmp_path / "strip.png")
    context = _context(model, "he", _Engine(np.zeros(768, np.float32)))
    with pytest.raises(InputError, match="has 10 x 300 pixels, expected at least 32"):
        model.predict(read(tmp_path / "strip.png"), context)
    with pytest.raises(InputError, match="takes an image of a tile, found volume"):
        model.predict(SimpleNamespace(name="x", kind="volume"), context)
