"""The small vision transformer: the same numbers for everyone, and what it takes."""

from __future__ import annotations

import numpy as np
import pytest

from omlab.cases import Image
from omlab.errors import InputError
from omlab.model import Context
from omlab.plugins import Registry
from omlab.vocabulary import Kind
from omlab_small_vit.model import SmallVit, prepare

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def card():
    return Registry.discover().card(Kind.MODEL, "small-vit")


@pytest.mark.parametrize(("name", "channels", "side"), [("grey-28", 1, 28), ("rgb-32", 3, 32)])
def test_everyone_begins_with_the_same_numbers(card, name, channels, side):
    model, variant = SmallVit(card), card.variant(name)
    (graph,) = model.graphs(variant)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = model.network(graph, variant, {})
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = model.untrained(graph, variant)
    images = torch.randn(2, channels, side, side)
    with torch.no_grad():
        feature = first(images)
        assert torch.equal(feature, second(images))
    assert feature.shape == (2, 128)
    assert 1.1e6 < sum(p.numel() for p in first.parameters()) < 1.3e6
    assert not torch.allclose(feature[0], feature[1], atol=1e-3)
    with pytest.raises(ValueError, match="the network takes"):
        first(torch.zeros(1, channels, side + 4, side + 4))


def test_images_become_tensors_of_one_size():
    pixels = np.arange(56 * 42, dtype=np.uint8).reshape(56, 42)
    grey = prepare(Image(name="a", pixels=pixels), 28, 1)
    assert (grey.shape, grey.dtype) == ((1, 28, 28), np.float32)
    white = prepare(Image(name="w", pixels=np.full((32, 32, 3), 255, np.uint8)), 32, 3)
    assert white.shape == (3, 32, 32)
    assert (white == 2.0).all()
    same = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    exact = prepare(Image(name="s", pixels=same), 28, 1)  # nothing is resampled at its own size
    np.testing.assert_allclose(exact[0], (same / 255 - 0.5) / 0.25, atol=1e-6)


def test_a_tiny_image_is_refused(card):
    context = Context(variant=card.variant(None), engines={})
    with pytest.raises(InputError, match="has 7 x 30 pixels, expected at least 8"):
        SmallVit(card).predict(Image(name="t", pixels=np.zeros((7, 30), np.uint8)), context)
