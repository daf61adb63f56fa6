"""What a segmenter learns from: windows by chance, and the same again for the same seed."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest

pytest.importorskip("torch")

from omlab_segmenter_tuning.windows import Scan, Windows, intensities


def scan(tmp_path: Path, shape: tuple[int, int, int] = (20, 24, 28)) -> Scan:
    labels = np.zeros(shape, np.int16)
    labels[2:5, 3:6, 4:7] = 2
    labels[-2:, -2:, -2:] = 5
    labels[0, 0, 0] = -1
    image = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32) + labels
    return Scan.store("case", image, labels, tmp_path / "case")


def windows(tmp_path: Path, **changes: object) -> Windows:
    given = {
        "scans": [scan(tmp_path)], "patch": (8, 12, 16), "batch_size": 2, "batches": 5, "foreground": 0.67,
        "augment": "none", "mirror": (0, 1, 2), "seed": 0,
    }  # fmt: skip
    return Windows(**(given | changes))  # type: ignore[arg-type]


def test_structures_are_found(tmp_path: Path) -> None:
    found = scan(tmp_path)
    assert found.structures == (2, 5)
    assert len(found.middles[2]) == 27
    assert (found.labels[tuple(found.middles[5].T)] == 5).all()


@pytest.mark.parametrize("augment", ["none", "intensity", "full"])
def test_a_batch_follows_from_its_number(tmp_path: Path, augment: str) -> None:
    one, other = windows(tmp_path, augment=augment), windows(tmp_path, augment=augment)
    for index in range(5):
        images, labels = one.batch(3, index)
        assert images.shape == (2, 1, 8, 12, 16)
        assert labels.shape == (2, 1, 8, 12, 16)
        assert labels.min() >= 0
        again = other.batch(3, index)
        assert (images == again[0]).all()
        assert (labels == again[1]).all()
    assert not (one.batch(3, 0)[0] == one.batch(4, 0)[0]).all()


def test_the_second_of_two_windows_lies_over_a_structure(tmp_path: Path) -> None:
    found = windows(tmp_path)
    assert all(found.batch(0, index)[1][1].any() for index in range(5))
    without = attrs.evolve(found, foreground=0.0, batches=50)
    share = np.mean([without.batch(0, index)[1][n].any() for index in range(25) for n in range(2)])
    assert share < 1


def test_image_and_labels_stay_together(tmp_path: Path) -> None:
    """Without noise the image tells the label, wherever the window lies and however it is turned."""
    labels = np.zeros((20, 24, 28), np.int16)
    labels[5:15, 6:18, 7:21] = 1
    image = labels[None].astype(np.float32) * 100
    given = Scan.store("case", image, labels, tmp_path / "plain")
    found = windows(tmp_path, scans=[given], augment="none")
    for index in range(5):
        images, truth = found.batch(0, index)
        assert ((images > 50) == truth.bool()).all()
    turned = 0
    for seed in range(40):
        window, truth_window = attrs.evolve(found, augment="full", seed=seed).window(np.random.default_rng(seed), True)
        inside = window[0][truth_window > 0]
        outside = window[0][truth_window == 0]
        turned += not set(np.unique(window)) <= {0.0, 100.0}
        if inside.size and outside.size:
            assert inside.mean() > outside.mean() + 20
    assert turned > 5


def test_windows_of_an_image_turn_in_their_plane(tmp_path: Path) -> None:
    """A bar of an image stays a bar, with its label, and is turned and scaled now and then."""
    labels = np.zeros((1, 48, 60), np.int16)
    labels[0, 20:28, 6:54] = 1
    given = Scan.store("image", labels[None].astype(np.float32) * 100, labels, tmp_path / "image")
    found = windows(tmp_path, scans=[given], patch=(1, 40, 40), augment="full", mirror=(1, 2))
    sizes = set()
    for seed in range(40):
        window, truth = attrs.evolve(found, seed=seed).window(np.random.default_rng(seed), True)
        assert window.shape == (1, 1, 40, 40) and truth.shape == (1, 40, 40)
        inside, outside = window[0][truth > 0], window[0][truth == 0]
        assert inside.mean() > outside.mean() + 20
        sizes.add(int(truth.sum()))
    assert len(sizes) > 5


def test_a_scan_smaller_than_a_window_is_surrounded_by_nothing(tmp_path: Path) -> None:
    image = np.ones((1, 4, 5, 6), np.float32)
    labels = np.ones((4, 5, 6), np.int16)
    given = Scan.store("case", image, labels, tmp_path / "small")
    images, truth = windows(tmp_path, scans=[given], patch=(8, 8, 8)).batch(0, 0)
    assert images.sum(dim=(1, 2, 3, 4)).tolist() == [120, 120]
    assert truth.sum(dim=(1, 2, 3, 4)).tolist() == [120, 120]


def test_intensities_keep_shape_and_stay_finite() -> None:
    image = np.random.default_rng(1).standard_normal((2, 6, 7, 8)).astype(np.float32)
    changed = [intensities(image, np.random.default_rng(seed)) for seed in range(30)]
    assert all(found.shape == image.shape and np.isfinite(found).all() for found in changed)
    assert sum(not np.array_equal(found, image) for found in changed) > 15
    assert np.array_equal(intensities(np.zeros_like(image), np.random.default_rng(7)).shape, image.shape)
