"""Single steps: scans, points, places in files of any orientation, slices."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from omlab.cases import Volume
from omlab.errors import InputError, WeightsError
from omlab.geometry import Geometry, Turn
from omlab_medlsam import scans, segmenting, slices, templates
from omlab_medlsam.localising import boxes, in_source, locate, look
from omlab_medlsam.metrics import box_iou, dice, hd95
from omlab_medlsam.points import bounds, corners, extreme_points, part_bounds, part_points, parts_of


def volume(shape: tuple[int, int, int] = (20, 24, 16), spacing: tuple[float, ...] = (4.0, 3.0, 5.0)) -> Volume:
    generator = np.random.default_rng(0)
    voxels = generator.integers(-1000, 1000, shape).astype(np.int16)
    return Volume(name="scan", voxels=voxels, geometry=Geometry(shape, np.diag([*spacing, 1.0])))


def test_resampling_is_scipys() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    values = np.random.default_rng(0).normal(size=(17, 20, 13))
    for zoom in ((1.3, 0.7, 0.9), (1.0, 1.0, 1.0), (0.1, 2.0, 1.5)):
        expected = ndimage.zoom(values, zoom, order=3)
        found = scans.resampled(values, zoom)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-5


def test_a_scan_of_3_mm_stays() -> None:
    case = volume(spacing=(3.0, 3.0, 3.0))
    found = scans.prepare(case)
    assert found.zoom == (1.0, 1.0, 1.0)
    assert found.image.shape == case.voxels.shape[::-1]
    assert found.image.max() <= 1
    mapped = attrs.evolve(case, voxels=np.full(case.voxels.shape, 0.5, np.float32))
    assert (scans.prepare(mapped).image == 0.5).all()  # is mapped already


@pytest.mark.parametrize(
    ("spacing", "message"),
    [((0.0, 3.0, 3.0), "spacing of 0 mm along i"), ((3.0, 400.0, 3.0), "spacing of 400 mm along j"),
     ((3.0, 3.0, float("nan")), "spacing of nan mm along k"), ((0.06, 3.0, 3.0), "less than one voxel")],
)  # fmt: skip
def test_impossible_spacing(spacing: tuple[float, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        scans.prepare(volume(spacing=spacing))


def test_an_impossible_extent_and_values() -> None:
    with pytest.raises(InputError, match="3200 mm long along i"):
        scans.check_geometry(Geometry((160, 4, 4), np.diag([20.0, 3, 3, 1])), "scan")
    case = volume()
    with pytest.raises(InputError, match="no numbers"):
        scans.prepare(attrs.evolve(case, voxels=np.full(case.voxels.shape, np.nan, np.float32)))


@pytest.mark.parametrize("codes", ["LAS", "RAS", "LPI", "PIR", "SLA", "ASL"])
def test_points_lie_at_the_same_place_in_any_file(codes: str) -> None:
    """Six points of a box, in a file of any orientation: the file's order, the patient's places."""
    case = volume()
    straight = scans.prepare(case)
    turn = Turn.to(case.geometry, codes)
    turned = attrs.evolve(case, voxels=turn.apply(case.voxels), geometry=turn.target)
    prepared = scans.prepare(turned)
    np.testing.assert_allclose(prepared.image, straight.image, atol=1e-6)
    mask = np.zeros(straight.image.shape, bool)
    mask[5:15, 6:12, 8:18] = True
    mask[5, 6, 8:18] = False
    points = extreme_points(mask)
    world = case.geometry.to_world(in_source(points, straight)[0][:, ::-1])
    found = in_source(points, prepared)
    low, high = boxes(points, prepared)[0]
    assert (low <= high).all()
    again = turned.geometry.to_world(found[0][:, ::-1])
    assert sorted(map(tuple, np.round(again, 3).tolist())) == sorted(map(tuple, np.round(world, 3).tolist()))
    for axis in range(3):
        assert found[0, axis, axis] == low[axis] == found[0, :, axis].min()
        assert found[0, axis + 3, axis] == high[axis] == found[0, :, axis].max()
    shown = Turn.to(turned.geometry, segmenting.ORIENTATION)
    expected = segmenting.turned_boxes(boxes(points, straight), Turn.to(case.geometry, segmenting.ORIENTATION))
    assert np.array_equal(segmenting.turned_boxes(boxes(points, prepared), shown), expected)


def test_parts_of_an_organ() -> None:
    mask = np.zeros((30, 12, 12), bool)
    mask[4:9, 2:5, 2:5] = True  # a gap follows
    mask[20:26, 6:9, 7:10] = True
    found = part_bounds(mask, 3)
    assert found[:, :, 0].tolist() == [[4, 11], [11, 18], [18, 25]]
    assert np.array_equal(found[1][:, 1:], found[0][:, 1:])  # empty: bounds of the part before
    assert found[2][:, 1:].tolist() == [[6, 7], [8, 9]]
    points = part_points(mask, 3).reshape(3, 6, 3)
    assert points[1, 0].tolist() == [11, 7, 8]  # keeps its bound, and the middle of the next plane that has a voxel
    assert np.array_equal(corners(points), found)
    assert parts_of([mask], 2) == 6
    assert parts_of([mask], 21) == 0
    assert parts_of([mask, mask[:9]], 3) == 1
    with pytest.raises(ValueError, match="empty"):
        bounds(np.zeros((3, 3, 3), bool))


def test_measures() -> None:
    mask = np.zeros((12, 12, 12), bool)
    mask[3:9, 3:9, 3:9] = True
    assert hd95(mask, mask, (3, 1, 1)) == 0
    assert dice(mask, mask) == pytest.approx(1, abs=1e-5)
    assert dice(mask, ~mask) == 0
    assert box_iou([0, 0, 0, 4, 4, 4], [0, 0, 0, 4, 4, 2]) == 0.5
    with pytest.raises(ValueError, match="no surface"):
        hd95(mask, np.zeros_like(mask), (1, 1, 1))


def test_slices_are_scikit_images() -> None:
    transform = pytest.importorskip("skimage.transform")
    generator = np.random.default_rng(0)
    for shape in ((30, 41), (90, 120), (30, 120)):
        plane = slices.grey(generator.integers(-900, 1500, shape), (-500.0, 1000.0))
        expected = transform.resize(plane, (64, 64), order=2, preserve_range=True, mode="constant")
        gap = np.abs(slices.framed(plane, 64).astype(int) - expected.astype(np.uint8).astype(int))
        assert gap.max() <= 1


def test_grey_levels() -> None:
    values = np.array([[-2000, -500, 0, 250, 3000]])
    assert slices.grey(values, slices.grey_levels(values)).tolist() == [[0, 0, 0, 127, 255]]
    flat = np.full((2, 2), 40)
    assert slices.grey(flat, slices.grey_levels(flat)).max() == 0


def test_only_air_in_the_middle() -> None:
    with pytest.raises(InputError, match="there is only air around its middle"):
        look(lambda given: {}, np.zeros((40, 40, 40), np.float32), 32)


def test_a_scan_smaller_than_a_patch_and_places_beyond_it() -> None:
    """Coarse places are clamped into the scan; the highest similarity moves them."""
    image = np.full((3, 5, 4), 0.5, np.float32)
    query = look(lambda given: {"fc_position": np.zeros((1, 3), np.float32)}, image, 32)
    assert (query.margin == 16).all()
    kernels = tuple(np.zeros((6, 1, k, k, k), np.float32) for k in (2, 4, 8))
    template = templates.Template(np.full((6, 3), 9, np.float32), kernels)

    def match(given: dict) -> dict:
        similarity = np.ones((1, 32, 32, 32), np.float32)
        similarity[0, 15, 16, 14] = 2
        return {"similarity": similarity}

    found = locate(match, query, template, 32)
    assert found.coarse.min() > 150  # metres away
    assert (found.offsets == [0, 1, -1]).all()
    assert (found.points == np.array([2, 5, 2])).all()
    assert (found.similarity == 2).all()
    coarse = locate(None, query, template, 32, scales=())
    assert np.array_equal(coarse.points, coarse.coarse)


def test_boxes_as_a_label_map() -> None:
    found = {1: np.array([[[0, 0, 0], [9, 9, 9]]]), 2: np.array([[[-3, 2, 2], [1, 4, 4]], [[5, 5, 5], [5, 20, 5]]])}
    labels = segmenting.filled(found, (10, 10, 10))
    assert labels[0, 0, 0] == 1
    assert (labels == 2).sum() == 2 * 9 + 5


def test_damaged_templates(tmp_path) -> None:
    kernels = tuple(np.zeros((6, 1, k, k, k), np.float32) for k in (2, 4, 8))
    path = tmp_path / templates.FILE
    templates.save({3: templates.Template(np.zeros((6, 3), np.float32), kernels)}, path)
    assert templates.load(path, [3])[3].parts == 1
    with pytest.raises(WeightsError, match="no template of label 4"):
        templates.load(path, [4])
    templates.save({3: templates.Template(np.zeros((5, 3), np.float32), kernels)}, path)
    with pytest.raises(WeightsError, match="has positions"):
        templates.load(path, [3])
    path.write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match="cannot be read"):
        templates.load(path, [3])
