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
from omlab_retfound.model import RetFound


@pytest.fixture(scope="module")
def card():
    return Registry.discover().card(Kind.MODEL, "retfound")


class _Engine:
    """Gives what it is told and keeps what it was given."""

    def __init__(self, name: str, answer: np.ndarray) -> None:
        self.name, self.answer = name, answer
        self.given: np.ndarray | None = None

    def __call__(self, inputs):
        self.given = inputs["image"]
        return {self.name: self.answer[None]}


def _context(card, variant: str, engine: _Engine, preprocess: str = "auto") -> Context:
    chosen = next(v for v in card.variants if v.name == variant)
    graph = RetFound(card).graphs(chosen)[0]
    return Context(variant=chosen, engines={graph.name: engine}, options={"preprocess": preprocess})


@pytest.fixture
def photo(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / "eye.png")
    return read(tmp_path / "eye.png")


def test_embedding(card, photo) -> None:
    engine = _Engine("feature", np.arange(1024, dtype=np.float32))
    result = RetFound(card).predict(photo, _context(card, "cfp", engine))
    np.testing.assert_array_equal(result.vector, np.arange(1024))
    assert engine.given.shape == (1, 3, 224, 224)
    assert engine.given.dtype == np.float32
    assert abs(float(engine.given.mean())) < 1e-3  # each image is normalised by itself


def test_classes_have_the_names_of_the_card(card, photo) -> None:
    engine = _Engine("logits", np.array([0, 3, 1, 0, 0], np.float32))
    result = RetFound(card).predict(photo, _context(card, "idrid", engine))
    assert result.best == "mild DR"
    assert float(result.probabilities.sum()) == pytest.approx(1)
    own = RetFound(card).predict(photo, _context(card, "classifier", _Engine("logits", np.zeros(3, np.float32))))
    assert own.classes == ("class 0", "class 1", "class 2")


def test_classifiers_and_encoders_prepare_differently(card, photo) -> None:
    seen = []
    for how in ("zscore", "evaluation"):
        engine = _Engine("feature", np.zeros(1024, np.float32))
        RetFound(card).predict(photo, _context(card, "cfp", engine, how))
        seen.append(engine.given)
    assert not np.allclose(seen[0], seen[1])


def test_a_tiny_picture_is_refused(card, tmp_path: Path) -> None:
    Pillow.fromarray(np.zeros((10, 300), np.uint8)).save(tmp_path / "strip.png")
    with pytest.raises(InputError, match="has 10 x 300 pixels, expected at least 32"):
        RetFound(card).predict(
            read(tmp_path / "strip.png"), _context(card, "cfp", _Engine("feature", np.zeros(1024, np.float32)))
        )


def test_another_kind_of_case_is_refused(card) -> None:
    with pytest.raises(InputError, match="takes an image"):
        RetFound(card).predict(
            SimpleNamespace(name="x", kind="volume"),
            _context(card, "cfp", _Engine("feature", np.zeros(1024, np.float32))),
        )
