"""Values of the libraries that define each convention, kept in tests/goldens/segmentation_metrics.*."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from omlab_segmentation import metrics, surfaces, surfels
from omlab_segmentation.lattice import Lattice

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"


def _cases():
    described = json.loads((GOLDENS / "segmentation_metrics.json").read_text())["cases"]
    with np.load(GOLDENS / "segmentation_metrics.npz") as masks:
        for case in described:
            prediction, reference = masks[f"{case['name']}/pred"], masks[f"{case['name']}/ref"]
            if "classes" in case:
                for label, values in case["classes"].items():
                    yield pytest.param(
                        case, values, prediction == int(label), reference == int(label), id=f"{case['name']}-{label}"
                    )
            else:
                yield pytest.param(case, case, prediction > 0, reference > 0, id=case["name"])


def _equal(ours: float, theirs: object, tolerance: float) -> None:
    if isinstance(theirs, dict):
        assert theirs["raises"] == "RuntimeError"
        assert not np.isfinite(ours)
        return
    theirs = float(theirs)
    if np.isfinite(theirs):
        assert ours == pytest.approx(theirs, abs=tolerance, rel=tolerance)
    else:
        assert not np.isfinite(ours)


@pytest.mark.parametrize(("case", "values", "prediction", "reference"), list(_cases()))
class TestAgainstLibraries:
    def test_overlap(self, case, values, prediction, reference):
        counts = metrics.joint_counts(prediction.astype(np.uint8), reference.astype(np.uint8))
        counts = counts.get(1, metrics.Counts(0, 0, 0))
        assert (counts.prediction, counts.reference, counts.both) == tuple(values["counts"].values())
        _equal(counts.dice, values["surface_distance"]["dice"], 1e-12)
        _equal(counts.dice, values["nnunet"]["Dice"], 1e-12)
        _equal(counts.iou, values["nnunet"]["IoU"], 1e-12)

    def test_hausdorff(self, case, values, prediction, reference):
        voxels = metrics.Surfaces.of_voxels(prediction, reference, case["spacing"])
        elements = metrics.Surfaces.of_surfels(prediction, reference, case["spacing"])
        _equal(metrics.hausdorff(voxels), values["monai"]["hd95"], 1e-6)
        _equal(metrics.hausdorff(voxels, 100), values["monai"]["hd"], 1e-6)
        _equal(metrics.hausdorff(voxels, rule="pooled"), values["medpy"]["hd95"], 1e-9)
        _equal(metrics.hausdorff(elements, rule="surfel"), values["surface_distance"]["hd95"], 1e-9)
        _equal(metrics.hausdorff(elements, 100, rule="surfel"), values["surface_distance"]["hd"], 1e-9)
        _equal(metrics.average_surface_distance(voxels), values["medpy"]["assd"], 1e-9)

    def test_surface_dice(self, case, values, prediction, reference):
        elements = metrics.Surfaces.of_surfels(prediction, reference, case["spacing"])
        voxels = metrics.Surfaces.of_voxels(prediction, reference, case["spacing"])
        for tolerance, theirs in values["surface_distance"]["nsd"].items():
            _equal(metrics.surface_dice(elements, float(tolerance)), theirs, 1e-9)
            _equal(metrics.surface_dice(voxels, float(tolerance)), values["monai"]["nsd_voxels"][tolerance], 1e-6)

    def test_areas(self, case, values, prediction, reference):
        for mask, key in ((prediction, "area_pred"), (reference, "area_ref")):
            lattice = Lattice.of(mask.shape, case["spacing"])
            area = surfaces.elements(lattice.filled(mask.view(np.uint8)), lattice).sizes.sum()
            assert area == pytest.approx(values["surface_distance"][key], rel=1e-9, abs=1e-12)


def test_every_code_has_an_area():
    table = surfels.areas((1.0, 2.0, 3.0))
    assert table[0] == table[255] == 0
    assert (table[1:255] > 0).all()


def test_empty_against_full_is_infinitely_far_and_counts_as_zero():
    full, empty = np.ones((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    surfaces = metrics.Surfaces.of_voxels(full, empty, (1, 1, 1))
    assert metrics.hausdorff(surfaces) == np.inf
    assert metrics.surface_dice(surfaces, 1.0) == 0
    assert np.isnan(metrics.hausdorff(metrics.Surfaces.of_voxels(empty, empty, (1, 1, 1))))


@pytest.mark.parametrize(
    ("shape", "spacing", "dtype"),
    [((17, 14, 11), (1.0, 1.0, 1.0), np.uint8), ((9, 16, 21), (7.5, 0.8, 0.8), np.uint16),
     ((33, 1, 12), (0.7, 3.0, 1.2), np.int32), ((40, 37), (0.5, 1.5), np.uint8)],
)  # fmt: skip
@pytest.mark.parametrize("find", [surfaces.voxels, surfaces.elements])
def test_distances_of_many_structures_equal_all_pairs(shape, spacing, dtype, find):
    generator = np.random.default_rng(3)
    coarse = generator.choice([0, 0, 1, 2, 5, 9, 250], size=[-(-n // 4) for n in shape])
    reference = coarse
    for axis, count in enumerate(shape):
        reference = np.repeat(reference, 4, axis).take(range(count), axis)
    prediction = np.roll(reference, 1, axis=0)
    prediction[prediction == 5] = 0
    # One structure lies beyond the places that are looked up, another is on one side only.
    reference[reference == 9] = 0
    prediction[prediction == 9] = 0
    reference.flat[0], prediction.flat[-1], prediction.flat[-2] = 9, 9, 7
    both = metrics.Between.of(prediction.astype(dtype), reference.astype(dtype), spacing, find)
    seen = set()
    for label in (1, 2, 5, 7, 9, 250, 3):
        found = both[label]
        places = [s.lattice.indices(s.places[s.of(label)]) for s in (both.prediction, both.reference)]
        a, b = (p * np.asarray(spacing) for p in places)
        seen.add((len(a) > 0, len(b) > 0))
        apart = np.linalg.norm(a[:, None] - b[None], axis=2)
        np.testing.assert_allclose(found.from_prediction, apart.min(axis=1, initial=np.inf), rtol=1e-12)
        np.testing.assert_allclose(found.from_reference, apart.min(axis=0, initial=np.inf), rtol=1e-12)
        lattice = both.prediction.lattice
        for mask, wanted in ((prediction == label, places[0]), (reference == label, places[1])):
            one = find(lattice.filled(mask.view(np.uint8)), lattice)
            assert sorted(map(tuple, lattice.indices(one.places))) == sorted(map(tuple, wanted))
    assert seen == {(True, True), (False, True), (True, False), (False, False)}


def test_percentiles_equal_numpys():
    generator = np.random.default_rng(0)
    for count in (1, 2, 3, 20, 21, 1000):
        values = generator.random(count)
        for percent in (0, 50, 95, 99.9, 100):
            assert metrics.percentile(values, percent) == pytest.approx(np.percentile(values, percent), rel=1e-14)
    assert metrics.percentile(np.array([1.0, np.inf]), 95) == np.inf
