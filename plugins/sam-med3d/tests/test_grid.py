"""Cubes of a scan and the way back: orientation, spacing, borders, sizes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from omlab.geometry import Geometry
from omlab_sam_med3d import protocol
from omlab_sam_med3d.grid import Grid, around, box_of, centred, normalised
from omlab_sam_med3d.predictor import as_logits, upsampled
from omlab_sam_med3d.windows import windows_of


def _geometry(shape: tuple[int, ...], spacing: tuple[float, ...], order=(0, 1, 2), signs=(1, 1, 1)) -> Geometry:
    affine = np.zeros((4, 4))
    for axis in range(3):
        affine[order[axis], axis] = spacing[axis] * signs[axis]
    affine[:, 3] = [-30, 44, 10, 1]
    return Geometry(shape, affine)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_a_point_stays_where_it_is(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """In millimetres, through resampling and turning; and the cube shows there what the scan has."""
    geometry = _geometry((20, 24, 18), (2.0, 1.0, 3.0), order, signs)
    grid = Grid.of(geometry)
    place = (7, 11, 5)
    at = grid.into(place)
    world = grid.turn.target.to_world(at)
    assert np.allclose(world, geometry.to_world(place))
    scan = np.zeros(geometry.shape, np.float32)
    scan[5:10, 9:14, 4:7] = 1
    begin = centred(np.round(at), np.round(at), (16, 16, 16))
    cube = grid.image(scan, begin, (16, 16, 16))
    x, y, z = (np.round(at) - begin).astype(int)
    assert cube[x, y, z] == 1
    assert cube.min() == 0


def test_oblique_scans_get_no_further_voxel() -> None:
    """Twice as many voxels of half the size, however the scan is turned in the patient."""
    for seed in range(20):
        turned, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
        affine = np.eye(4)
        affine[:3, :3] = 3 * turned
        assert sorted(Grid.of(Geometry((20, 30, 40), affine)).shape) == [40, 60, 80]
    assert sorted(Grid.of(Geometry((20, 30, 40), np.diag([float(np.float32(1.2))] * 3 + [1]))).shape) == [17, 25, 33]


def test_cube_there_and_back() -> None:
    """A mask that is resampled and restored overlaps with itself, on a turned, anisotropic grid."""
    geometry = _geometry((40, 36, 12), (1.1, 0.9, 4.0), (2, 0, 1), (1, -1, -1))
    grid = Grid.of(geometry)
    mask = np.zeros(geometry.shape, bool)
    mask[10:30, 8:28, 3:9] = True
    begin = around(grid.labels(mask, (0, 0, 0), grid.shape).astype(bool), (64,) * 3)
    cube = grid.labels(mask, begin, (64,) * 3)
    box, index, turned = grid.restore(begin, cube.shape)
    back = np.zeros_like(mask)
    back[box] = cube.transpose(turned)[np.ix_(*index)]
    assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > 0.97


def test_a_single_slice_keeps_its_values() -> None:
    """Also where the slice is thinner than a voxel of the network."""
    for thickness in (0.3, 5.0):
        geometry = _geometry((30, 30, 1), (1.5, 1.5, thickness))
        grid = Grid.of(geometry)
        assert grid.shape == (30, 30, 1)
        scan = np.full(geometry.shape, 7, np.int16)
        cube = grid.image(scan, (0, 0, -8), (30, 30, 16))
        assert cube[:, :, 8].min() == 7 and cube[:, :, 7].max() == 0
        box, _, _ = grid.restore((0, 0, -8), (30, 30, 16))
        assert [s.stop - s.start for s in box] == [30, 30, 1]


def test_a_cube_beside_the_scan_is_empty() -> None:
    grid = Grid.of(_geometry((10, 10, 10), (1.5, 1.5, 1.5)))
    assert not grid.image(np.ones((10, 10, 10), np.float32), (50, 0, 0), (8, 8, 8)).any()
    assert not grid.labels(np.ones((10, 10, 10), np.uint8), (50, 0, 0), (8, 8, 8)).any()
    box, _, _ = grid.restore((50, 0, 0), (8, 8, 8))
    assert np.zeros((10, 10, 10))[box].size == 0


def test_fine_scans_are_not_resampled_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the neighbours of a cube's voxels are read: at most two planes for each of its own."""
    geometry = _geometry((600, 500, 400), (0.1, 0.1, 0.1))

    class Watched(np.ndarray):
        def __getitem__(self, key):
            found = np.asarray(super().__getitem__(key))
            assert found.size <= (2 * 16) ** 3
            return found

    scan = np.broadcast_to(np.int16(3), geometry.shape).view(Watched)
    cube = Grid.of(geometry).image(scan, (4, 4, 4), (16, 16, 16))
    assert (cube == 3).all()


def test_integers_stay_integers() -> None:
    grid = Grid.of(_geometry((4, 1, 1), (1.0, 1.5, 1.5)))
    scan = np.array([0, 10, 21, 33], np.int16).reshape(4, 1, 1)
    whole = grid.image(scan, (0, 0, 0), grid.shape)
    real = grid.image(scan.astype(np.float32), (0, 0, 0), grid.shape)
    assert np.array_equal(whole, np.trunc(real)) and not np.array_equal(whole, real)


def test_centres() -> None:
    assert centred((10, 10, 10), (19, 20, 10), (8, 8, 8)) == (11, 11, 6)
    assert centred((10, 10, 10), (19, 20, 10), (7, 7, 7)) == (11, 12, 7)
    assert around(np.zeros((11, 4, 8), bool), (8, 8, 8)) == (2, -2, 0)
    assert box_of(np.zeros((3, 3, 3), bool)) is None


def test_normalisation_counts_what_is_above_zero() -> None:
    cube = np.zeros((4, 4, 4), np.float32)
    cube[0] = np.arange(16).reshape(4, 4)
    found = normalised(cube)
    assert found is not None
    inside = found[cube > 0]
    assert abs(inside.mean()) < 1e-6 and abs(inside.std(ddof=1) - 1) < 1e-6
    assert found[1, 1, 1] == pytest.approx(-cube[cube > 0].mean() / cube[cube > 0].std(ddof=1))
    assert normalised(np.zeros((4, 4, 4), np.float32)) is None
    assert normalised(np.full((4, 4, 4), 9, np.float32)) is None


def test_masks_become_logits_and_back() -> None:
    mask = np.zeros((32, 32, 32), bool)
    mask[4:24, 8:20, 12:28] = True
    low = as_logits(mask)
    assert low.shape == (8, 8, 8)
    assert ((upsampled(low) > 0) == mask).mean() > 0.99


def test_windows_cover_three_by_three_by_three() -> None:
    """Each window adds its outer part; together they fill the region, the centre last."""
    windows = list(windows_of((400, 400, 400), (136, 136, 136), (128,) * 3))
    assert len(windows) == 27 and windows[-1].begin == (136, 136, 136)
    written = np.zeros((400, 400, 400), np.uint8)
    for window in windows:
        written[tuple(slice(a, b) for a, b in window.volume)] += 1
    assert (written[104:296, 104:296, 104:296] > 0).all()
    assert written.astype(bool).sum() == 192**3


def test_clicks() -> None:
    pytest.importorskip("scipy")
    random = np.random.RandomState(0)
    truth = np.zeros((20, 20, 20), np.uint8)
    truth[4:12, 4:12, 4:12] = 1
    none = np.zeros(truth.shape, bool)
    place, label = protocol.random_click(none, truth, random)
    assert truth[place] == 1 and label == 1
    place, label = protocol.random_click(np.ones(truth.shape, bool), truth, random)
    assert truth[place] == 0 and label == 0
    place, label = protocol.random_click(truth.astype(bool), truth, random)
    assert truth[place] == 1 and label == 1
    region, label = protocol.ritm_region(none, truth)
    assert label == 1 and region.sum() == 4**3  # deeper than half of 4
    assert protocol.ritm_click(truth.astype(bool), truth, random) == ((10, 10, 10), 0)
    with pytest.raises(Exception, match="empty mask"):
        protocol.random_click(none, none, random)
