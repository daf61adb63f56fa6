"""The NumPy arithmetic against the torch calls that deepbet makes."""

from __future__ import annotations

import numpy as np
import pytest

from omlab_deepbet import sampling

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("target", [128, 256])
def test_nearest_exact_equals_torch(target: int) -> None:
    for size in [*range(1, 40), *range(120, 140), 188, 190, 255, 256, 257, 319, 511, 512, 777]:
        line = torch.arange(size, dtype=torch.float32)[None, None]
        expected = torch.nn.functional.interpolate(line, target, mode="nearest-exact")[0, 0].numpy()
        assert np.array_equal(sampling.nearest_exact(size, target), expected), size
        back = torch.arange(target, dtype=torch.float32)[None, None]
        expected = torch.nn.functional.interpolate(back, size, mode="nearest-exact")[0, 0].numpy()
        assert np.array_equal(sampling.nearest_exact(target, size), expected), size


@pytest.mark.parametrize("count", [1, 2, 7, 1000, 128**3])
def test_quantile_equals_torch(count: int) -> None:
    values = np.random.default_rng(count).standard_normal(count).astype(np.float32) * 100
    for q in (0.005, 0.5, 0.995):
        assert sampling.quantile(values, q) == torch.from_numpy(values).quantile(q).item()


@pytest.mark.parametrize("shape", [(20, 31, 64), (70, 33, 48)])
def test_normalised_equals_torch(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(3).gamma(2.0, 50.0, shape).astype(np.float32)
    low, high = sampling.quantile(values, 0.005), sampling.quantile(values, 0.995)
    target = (64, 40, 48)
    found = sampling.normalised(values, low, high, sampling.indices(shape, target))
    x = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], target, mode="nearest-exact")[0, 0]
    x = ((x - low.item()) / (high - low).item()).clamp(0, 1)
    x = 0.226 * ((x - x.mean()) / x.std()) + 0.449
    assert np.abs(found - x.numpy()).max() < 2e-6


@pytest.mark.parametrize("shape", [(8, 12, 16), (5, 7, 9), (20, 17, 33)])
def test_above_equals_putting_the_blocks_in_order(shape: tuple[int, ...]) -> None:
    from omlab_deepbet.network import blocks_to_volume

    blocks = np.random.default_rng(5).random((1, 4, 6, 4, 16), dtype=np.float32)
    volume = blocks_to_volume(torch.from_numpy(blocks))
    expected = torch.nn.functional.interpolate(volume, shape, mode="nearest-exact")[0, 0].numpy() > 0.4
    found = sampling.above(blocks, 0.4, shape)
    assert found.dtype == bool
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("order", ["C", "F"])
def test_gather_equals_plain_indexing(order: str) -> None:
    volume = np.asarray(np.random.default_rng(2).integers(0, 99, (7, 9, 11)), order=order)  # type: ignore[call-overload]
    for view in (volume, volume[::-1, 1:8], volume.transpose(1, 2, 0)[:, ::-1, :]):
        at = sampling.indices(view.shape, (12, 5, 16))
        found = sampling.gather(view, at)
        assert found.flags.c_contiguous
        assert np.array_equal(found, view[np.ix_(*at)])
