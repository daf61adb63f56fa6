"""Streaming inference against the whole computation, on random shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from omlab.errors import EngineError
from omlab.inference import preparing, resampling
from omlab.inference.segmenting import segment
from omlab.inference.sliding import Head, plan, stream
from omlab.inference.windows import gaussian, mirrorings, padding, window_starts

CLASSES = 7
_random = np.random.default_rng(0)
HEAD = Head(
    (2 * _random.standard_normal((CLASSES, 5))).astype(np.float32),
    _random.standard_normal(CLASSES).astype(np.float32),
)


def features(windows: np.ndarray) -> np.ndarray:
    """A network whose answer at a voxel depends on where in the window it lies."""
    found = []
    for window in windows:
        v = window[0]
        found.append(
            np.stack([v, np.tanh(np.roll(v, 1, 0)), np.roll(v, 1, 1) * v, np.cumsum(v, 2) * 0.05, np.sin(3 * v)])
        )
    return np.stack(found).astype(np.float32)


def logits(windows: np.ndarray) -> np.ndarray:
    return np.einsum("cf,bfxyz->bcxyz", HEAD.weight, features(windows)) + HEAD.bias[:, None, None, None]


def softmax(scores: np.ndarray) -> np.ndarray:
    exponents = np.exp(scores - scores.max(0))
    return exponents / exponents.sum(0)


def whole(
    volume: np.ndarray, patch: Sequence[int], mirror: Sequence[int], weighted: bool, probabilities: bool
) -> np.ndarray:
    """Scores [classes, a, b, c] as nnU-Net makes them: all at once."""
    cut = padding(volume.shape[1:], patch)
    padded = np.pad(volume, ((0, 0), *cut))
    starts = window_starts(padded.shape[1:], patch)
    many = np.prod([len(s) for s in starts]) > 1
    weight = gaussian(patch) if weighted and many else np.ones(patch, np.float32)
    sums, weights = np.zeros((CLASSES, *padded.shape[1:])), np.zeros(padded.shape[1:])
    views = mirrorings(mirror)
    for a in starts[0]:
        for b in starts[1]:
            for c in starts[2]:
                place = tuple(slice(s, s + p) for s, p in zip((a, b, c), patch, strict=True))
                for flips in views:
                    axes = tuple(axis + 1 for axis in flips)
                    found = logits(np.flip(padded[(slice(None), *place)], axes)[None])[0]
                    found = np.flip(softmax(found) if probabilities else found, axes)
                    sums[(slice(None), *place)] += found * weight / len(views)
                weights[place] += weight
    inside = tuple(slice(before, n - after) for n, (before, after) in zip(padded.shape[1:], cut, strict=True))
    return (sums / weights)[(slice(None), *inside)]


def restored(scores: np.ndarray, shape: Sequence[int], apart: int | None) -> np.ndarray:
    for axis in range(3):
        along = resampling.matrix(scores.shape[axis + 1], shape[axis], 0 if axis == apart else 1)
        scores = resampling.along(np.ascontiguousarray(scores), along, axis + 1)
    return scores


@pytest.mark.parametrize("seed", range(30))
def test_labels_are_those_of_the_whole_computation(seed: int) -> None:
    """Shapes, patches, grids, mirroring, memory: whatever is drawn, only ties may fall differently."""
    random = np.random.default_rng(seed)
    shape = tuple(int(n) for n in random.integers(6, 34, 3))
    patch = tuple(int(n) for n in random.choice([8, 12, 13, 16], 3))
    factors = random.choice([0.3, 0.5, 0.77, 1, 1, 1.4, 2.3], 3)
    target = tuple(max(1, int(n * f)) for n, f in zip(shape, factors, strict=True))
    mirror = [(), (0, 1, 2), (1,)][random.integers(3)]
    weighted, probabilities, headed = (bool(random.integers(4)) for _ in range(3))
    apart = [None, 0, 1, 2][random.integers(4)]
    memory = [1e9, 30000, 3000][seed % 3]
    volume = random.standard_normal((1, *shape)).astype(np.float32)
    if seed % 2:
        volume[:, : shape[0] // 2] = 0.3
    expected = restored(whole(volume, patch, mirror, weighted, probabilities), target, apart)
    out = np.zeros(target, np.uint8)
    report = segment(
        volume, out, patch, features if headed else logits, classes=CLASSES, features=len(HEAD.weight[0]),
        head=HEAD if headed else None, apart=apart, mirror=mirror, weighted=weighted, softmax=probabilities,
        memory=memory,
    )  # fmt: skip
    ordered = np.sort(expected, axis=0)
    gap = (ordered[-1] - ordered[-2])[expected.argmax(0) != out]
    assert gap.max(initial=0) < (1e-4 if report.compact else 1e-5) * (1 if probabilities else 10)
    if memory == 3000 and probabilities:
        assert report.compact


def test_slices_that_may_not_be_skipped_are_counted() -> None:
    """Half of the volume is one value: its windows run once, mirrored or not, and the labels are those of all."""
    volume = np.random.default_rng(0).standard_normal((1, 48, 16, 16)).astype(np.float32)
    volume[:, :33] = -1.0
    runs = []

    def network(windows: np.ndarray) -> np.ndarray:
        runs.append(len(windows))
        return logits(windows)

    how = {"classes": CLASSES, "mirror": (0, 2)}
    found, plain = np.zeros((48, 16, 16), np.uint8), np.zeros((48, 16, 16), np.uint8)
    report = segment(volume, found, (16, 16, 16), network, **how)  # type: ignore[arg-type]
    with_reuse = sum(runs)
    runs.clear()
    assert segment(volume, plain, (16, 16, 16), network, reuse=False, **how).reused == 0  # type: ignore[arg-type]
    assert np.array_equal(found, plain)
    assert (report.windows, report.reused) == (5, 2)
    assert with_reuse == 1 + 2 * 4
    assert sum(runs) == 5 * 4


def test_windows_where_a_model_wants_them() -> None:
    """Starts of a model's own; one that is named twice counts twice."""
    volume = np.random.default_rng(0).standard_normal((1, 12, 9, 9)).astype(np.float32)
    starts = ((0, 3, 4, 4), (0, 1), (0, 1))
    weights, sums = np.zeros((12, 9, 9)), np.zeros((2, 12, 9, 9))
    importance = gaussian((8, 8, 8)).astype(np.float64)
    calls = []

    def network(windows: np.ndarray) -> np.ndarray:
        """Scores that tell where in a window a voxel lies, so that it matters how windows overlap."""
        calls.append(len(windows))
        ramp = np.arange(8, dtype=np.float32)[None, None, :, None, None]
        return np.concatenate([windows + ramp, windows * ramp], axis=1)

    for a, b, c in np.array(np.meshgrid(*starts, indexing="ij")).reshape(3, -1).T.tolist():
        place = (slice(a, a + 8), slice(b, b + 8), slice(c, c + 8))
        sums[(slice(None), *place)] += network(volume[(slice(None), *place)][None])[0] * importance
        weights[place] += importance
    calls.clear()
    laid = plan((12, 9, 9), (8, 8, 8), starts=starts, axis=0)
    planes = list(stream(volume, laid, network, softmax=False, reuse=False))
    found = np.stack([plane.scores.transpose(1, 0, 2) for plane in planes], axis=1)
    assert sum(calls) == 16
    assert np.allclose(found, sums / weights, atol=1e-5)


def test_skipped_windows_are_background() -> None:
    volume = np.ones((1, 40, 8, 8), np.float32)
    out = np.full((40, 8, 8), 9, np.uint8)

    def second(windows: np.ndarray) -> np.ndarray:
        found = np.zeros((len(windows), 2, 8, 8, 8), np.float32)
        found[:, 1] = 5
        return found

    report = segment(volume, out, (8, 8, 8), second, classes=2, skip=lambda place: place[0].start >= 16, step=1)
    assert (out[:16] == 1).all()
    assert (out[16:] == 0).all()
    assert (report.windows, report.skipped) == (5, 3)


def test_windows_are_batched() -> None:
    volume = np.random.default_rng(1).standard_normal((1, 30, 24, 20)).astype(np.float32)
    sizes = []

    def network(windows: np.ndarray) -> np.ndarray:
        sizes.append(len(windows))
        return logits(windows)

    one, four = np.zeros((30, 24, 20), np.uint8), np.zeros((30, 24, 20), np.uint8)
    segment(volume, one, (12, 12, 12), network, classes=CLASSES)
    assert set(sizes) == {1}
    sizes.clear()
    segment(volume, four, (12, 12, 12), network, classes=CLASSES, batch=4)
    assert max(sizes) == 4
    assert np.array_equal(one, four)


@pytest.mark.parametrize("softmax", [True, False])
def test_numbers_that_are_not_finite_are_an_engine_error(softmax: bool) -> None:
    def broken(windows: np.ndarray) -> np.ndarray:
        found = logits(windows)
        found[0, 2, 3, 4, 5] = np.nan
        return found

    with pytest.raises(EngineError, match="not finite"):
        segment(
            np.ones((1, 9, 9, 9), np.float32), np.zeros((9, 9, 9), np.uint8), (8, 8, 8), broken, classes=CLASSES,
            softmax=softmax,
        )  # fmt: skip


def test_planes_in_work_do_not_grow_with_the_volume() -> None:
    """A volume of twice the length needs as much memory: planes are handed out when their last window is done."""
    depths = [plan((n, 64, 64), (32, 32, 32)).depth for n in (64, 128, 512)]
    assert depths[0] == depths[1] == depths[2] == 32
    assert plan((40, 60, 500), (32, 32, 32)).axis == 2
    volume = np.zeros((1, 96, 8, 8), np.float32)
    seen = []
    laid = plan((96, 8, 8), (8, 8, 8), axis=0)
    for plane in stream(volume, laid, logits, reuse=False, done=lambda done, _: seen.append(done)):
        assert plane.number < 4 * seen[-1] or seen[-1] == laid.windows
    assert plane.number == 95


def test_peak_memory_does_not_grow_with_the_volume() -> None:
    """The same scan twice and four times as long: beyond the scan and its labels, the peak stays where it was."""
    import tracemalloc

    peaks = []
    for times in (1, 2, 4):
        volume = np.random.default_rng(0).standard_normal((1, 48 * times, 24, 24)).astype(np.float32)
        out = np.zeros((48 * times, 48, 36), np.uint8)
        tracemalloc.start()
        segment(volume, out, (16, 16, 16), features, classes=CLASSES, head=HEAD)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.15 * peaks[0]
    whole_scores = 4 * CLASSES * 48 * 4 * 48 * 36
    assert peaks[2] < 0.5 * whole_scores


def test_sums_on_the_coarser_grid_take_less_memory() -> None:
    half = resampling.matrix(64, 32, 1)
    coarse = plan((64, 64, 64), (32, 32, 32), onto=(half, half, half))
    assert coarse.cells == (32, 32, 32)
    assert coarse.scores * 7 < plan((64, 64, 64), (32, 32, 32)).scores


def test_wrong_steps_and_missing_planes_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        plan((8, 8, 8), (4, 4, 4), step=0)
    laid = plan((8, 8, 8), (4, 4, 4))
    with pytest.raises(ValueError, match="16 bits"):
        next(stream(np.zeros((1, 8, 8, 8), np.float32), laid, logits, softmax=False, compact=True))


@pytest.mark.parametrize(("n_in", "n_out"), [(10, 23), (31, 12), (7, 7), (2, 9), (1, 4), (40, 1)])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_resampling_is_that_of_scipy(n_in: int, n_out: int, order: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    values = np.random.default_rng(0).standard_normal(n_in)
    expected = ndimage.zoom(values, n_out / n_in, order=order, mode="nearest", grid_mode=True)
    assert np.allclose(resampling.matrix(n_in, n_out, order) @ values, expected, atol=1e-6)


def test_a_scan_is_resampled_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = np.random.default_rng(0).integers(-1000, 1000, (23, 19, 17)).astype(np.int16)
    at_once = resampling.resample_image(volume, (30, 10, 17))
    monkeypatch.setattr(resampling, "_PART", 100)
    # In which order a matrix product adds depends on the processor and on the size of a part.
    np.testing.assert_allclose(resampling.resample_image(volume, (30, 10, 17)), at_once, rtol=0, atol=1e-3)
    assert at_once.dtype == np.float32


def test_box_of_what_is_not_zero() -> None:
    volume = np.zeros((2, 9, 8, 7), np.int16)
    assert preparing.nonzero_box(volume) is None
    volume[0, 2, 3, 4] = 5
    volume[1, 6, 1, 4] = -5
    assert preparing.nonzero_box(volume) == (slice(2, 7), slice(1, 4), slice(4, 5))
    assert preparing.nonzero_box(volume[0]) == (slice(2, 3), slice(3, 4), slice(4, 5))
