"""Upstream's blurs. Those that golden files have (Gaussian, mean, median) are proved there to the grey level."""

from __future__ import annotations

import numpy as np
import pytest

from omlab.errors import UsageError
from omlab_d_mim import blurs, protocol


@pytest.fixture
def point() -> np.ndarray:
    grey = np.zeros((41, 41), np.uint8)
    grey[20, 20] = 255
    return grey


def test_defocus_is_the_mean_of_a_disk(point: np.ndarray) -> None:
    rows, columns = np.mgrid[-20:21, -20:21]
    inside = rows**2 + columns**2 <= 25
    assert inside.sum() == 81
    np.testing.assert_array_equal(blurs.defocus(point), np.where(inside, round(255 / 81), 0))
    weights = blurs.disk(5)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(weights[weights > 0], 1 / 81, rtol=1e-6)
    assert blurs.disk(5, 1.0)[6, 0] > 0  # a rim that is softened reaches farther


def test_motion_is_the_mean_along_a_line() -> None:
    generator = np.random.default_rng(0)
    seen = [blurs.streak(generator) for _ in range(300)]
    for weights in seen:
        there = weights > 0
        count = int(there.sum())
        assert 2 <= count <= 5  # a line through a square of five has no more pixels
        np.testing.assert_allclose(weights[there], 1 / count)
        rows, columns = np.nonzero(there)
        assert max(np.ptp(rows), np.ptp(columns)) == count - 1  # without gaps
    assert len({weights.tobytes() for weights in seen}) > 100
    assert all(any(w[r, c] > 0 for w in seen) for r in range(5) for c in range(5))
    grey = np.random.default_rng(1).integers(0, 256, (30, 30), dtype=np.uint8)
    one, again, other = (blurs.motion(grey, np.random.default_rng(n)) for n in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.parametrize("name", list(blurs.BLURS))
def test_every_blur_keeps_what_is_flat_and_takes_away_detail(name: str) -> None:
    blur, generator = blurs.BLURS[name], np.random.default_rng(0)
    np.testing.assert_array_equal(blur(np.full((20, 30), 117, np.uint8), generator), 117)
    noise = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    found = blur(noise, generator)
    assert found.shape == noise.shape
    assert found.dtype == np.uint8
    assert found.std() < 0.9 * noise.std()


@pytest.mark.parametrize("name", list(blurs.BLURS))
def test_pairs_of_any_blur_are_aligned(name: str) -> None:
    columns = np.arange(200, dtype=np.uint8)
    ramp = np.repeat(np.tile(columns, (160, 1))[:, :, None], 3, axis=2)
    blurred, original = protocol.Pairs(size=48, blur=name, seed=2)(ramp)
    assert np.abs(blurred - original).max() < 0.15  # a ramp stays where it is
    again = protocol.Pairs(size=48, blur=name, seed=2)(ramp)
    np.testing.assert_array_equal(again[0], blurred)


def test_a_pair_takes_a_blur_of_ones_own() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    black, original = protocol.Pairs(size=32, blur=np.zeros_like, seed=1)(picture)
    assert np.ptp(black[0]) == 0
    assert np.ptp(original[0]) > 1
    with pytest.raises(UsageError, match="no blur 'srad'"):
        protocol.Pairs(blur="srad")
