"""Views for pre-training."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as Pillow

from omlab_pathoduet.views import Views
from omlab_sdk.views import hue_turned


@pytest.fixture
def tile() -> np.ndarray:
    rows, columns = np.mgrid[:256, :300]
    nuclei = (np.sin(rows / 9) * np.sin(columns / 11) > 0.6)[:, :, None]
    return np.where(nuclei, [88, 52, 130], [232, 170, 205]).astype(np.uint8)


def test_views_have_the_sizes_of_their_stage(tile: np.ndarray) -> None:
    drawn = Views(0)
    large, small = (3, 224, 224), (3, 16, 16)
    assert [one.shape for one in drawn.contrast(tile)] == [large, large]
    assert [one.shape for one in drawn.bridge(tile, tile)] == [large, large, small, large]
    for one in (found := drawn.cross(tile, tile)):
        assert one.dtype == np.float32
        assert 0 <= one.min() <= one.max() <= 1
    assert [one.shape for one in found] == [large, large, small]


def test_a_seed_repeats_them(tile: np.ndarray) -> None:
    for first, again, other in zip(
        Views(3).bridge(tile, tile), Views(3).bridge(tile, tile), Views(4).bridge(tile, tile), strict=True
    ):
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def test_the_stain_has_the_colours_of_its_image() -> None:
    """Of a flat image, whatever the jitter does, the crop is as flat."""
    flat = np.full((256, 256, 3), [150, 110, 70], np.uint8)
    for seed in range(8):
        _, ihc, stain = Views(seed).cross(flat, flat)
        np.testing.assert_allclose(stain[:, 0, 0], ihc[:, 0, 0], atol=1e-6)


def test_hues_turn_and_turn_back() -> None:
    tile = np.full((4, 4, 3), [200, 60, 60], np.uint8)
    picture = Pillow.fromarray(tile)
    np.testing.assert_allclose(np.asarray(hue_turned(picture, 0.0)), tile, atol=2)
    third = np.asarray(hue_turned(picture, 1 / 3))
    np.testing.assert_allclose(third[0, 0], [60, 200, 60], atol=4)


def test_a_strip_has_a_part_too() -> None:
    strip = np.zeros((16, 400, 3), np.uint8)
    assert Views(0).contrast(strip)[0].shape == (3, 224, 224)
