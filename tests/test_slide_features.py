"""From a slide to the features of its patches: outlines, grid, streaming, the file, and memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

cv2 = pytest.importorskip("cv2")
h5py = pytest.importorskip("h5py")

from omlab.cards import Variant  # noqa: E402
from omlab.cases import Slide, read  # noqa: E402
from omlab.cases.slide import of_pixels  # noqa: E402
from omlab.errors import Cancelled, InputError, UsageError  # noqa: E402
from omlab.inference.ahead import ahead  # noqa: E402
from omlab.inference.patches import GridRules, grid  # noqa: E402
from omlab.inference.polygons import locate  # noqa: E402
from omlab.inference.slides import UNFINISHED, Plan, extract, plan  # noqa: E402
from omlab.inference.tissue import PRESETS, Tissue, TissueRules, mask, segment  # noqa: E402
from omlab.model import Context  # noqa: E402
from omlab.progress import CancelToken  # noqa: E402
from omlab.results import SlideFeatures, headline, summarise, write  # noqa: E402
from omlab.vocabulary import InputKind  # noqa: E402
from omlab_sdk.contract.samples import slide as sample  # noqa: E402

SMALL = PRESETS["bwh_biopsy"]
corner = st.tuples(st.integers(0, 12), st.integers(0, 12))


@given(st.lists(corner, min_size=1, max_size=9), st.lists(corner, min_size=1, max_size=30))
def test_points_are_located_as_by_opencv(contour: list, points: list) -> None:
    ring = np.array(contour, np.int32)
    expected = [np.sign(cv2.pointPolygonTest(ring, (float(x), float(y)), False)) for x, y in points]
    assert locate(ring, np.array(points)).tolist() == expected


def test_tissue_of_two_discs_with_a_hole() -> None:
    found = segment(sample(), SMALL)
    assert len(found.contours) == 2
    assert [len(holes) for holes in found.holes] == [1, 0]
    inside = mask(found, (256, 192), (16, 16))
    rows, columns = np.mgrid[:192, :256] * 16 + 8
    true = ((rows - 1500) ** 2 + (columns - 1300) ** 2 < 900**2) & (
        (rows - 1500) ** 2 + (columns - 1100) ** 2 > 330**2
    ) | ((rows - 1000) ** 2 + (columns - 3000) ** 2 < 600**2)
    assert (inside != true).mean() < 0.03
    filled = mask(found, (256, 192), (16, 16), holes=False)
    assert filled[1500 // 16, 1100 // 16]
    assert not inside[1500 // 16, 1100 // 16]
    shifted = mask(found, (100, 100), (16, 16), offset=(800, 800))
    np.testing.assert_array_equal(shifted, inside[50:150, 50:150])
    only = segment(sample(), TissueRules(**{**_settings(SMALL), "keep": (0, 1), "leave_out": (0,)}))
    np.testing.assert_array_equal(only.contours[0], found.contours[1])


def _settings(rules: TissueRules) -> dict:
    import attrs

    return attrs.asdict(rules)


def test_a_slide_without_tissue_is_refused() -> None:
    with pytest.raises(InputError, match="no tissue was found"):
        segment(_flat(240))
    with pytest.raises(InputError, match="no tissue was found"):
        segment(_flat(240), TissueRules(otsu=True))
    with pytest.raises(UsageError, match="odd number"):
        TissueRules(median=4)
    with pytest.raises(InputError, match="has no level 7"):
        segment(sample(), TissueRules(level=7))


class _Flat:
    mpp = magnification = None
    details, warnings = {}, []

    def __init__(self, value: int, size: tuple[int, int] = (2000, 1500)) -> None:
        self.value, self.levels = value, (size,)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        return np.full((height, width, 3), self.value, np.uint8)


def _flat(value: int) -> Slide:
    return of_pixels(_Flat(value), "flat")


def _square(left: int, top: int, side: int) -> np.ndarray:
    ends = (left, left + side - 1, top, top + side - 1)
    return np.array([(ends[0], ends[2]), (ends[0], ends[3]), (ends[1], ends[3]), (ends[1], ends[2])], np.int32)


def test_rules_of_the_grid() -> None:
    tissue = Tissue(contours=[_square(100, 100, 400), _square(700, 100, 40)], holes=[(_square(250, 250, 100),), ()])
    size = (800, 600)
    everything = grid(tissue, size, GridRules(patch=100, step=100, inside="basic"))
    # Columns outside, rows inside; the patch whose middle lies in the hole is left out.
    assert everything[:5].tolist() == [[100, 100], [100, 200], [100, 300], [100, 400], [200, 100]]
    assert [250, 250] not in everything.tolist()
    assert everything[-1].tolist() == [700, 100]
    dropped = grid(tissue, size, GridRules(patch=100, step=100, inside="basic", single=False))
    assert len(dropped) == len(everything) - 1
    unpadded = grid(tissue, (480, 600), GridRules(patch=100, step=100, padding=False, single=False))
    assert unpadded[:, 0].max() + 100 <= 480
    part = grid(tissue, size, GridRules(patch=100, step=100, region=(150, 150, 400, 400)))
    assert part.min() >= 150
    assert part.max() < 400
    hard = grid(tissue, size, GridRules(patch=100, step=50, inside="four_pt_hard"))
    some = grid(tissue, size, GridRules(patch=100, step=50, inside="four_pt"))
    assert set(map(tuple, hard.tolist())) < set(map(tuple, some.tolist()))
    scaled = grid(tissue, size, GridRules(patch=50, step=50, inside="basic"), (2.0, 2.0))
    np.testing.assert_array_equal(scaled, everything)
    with pytest.raises(UsageError, match="at least 1"):
        GridRules(patch=0)


def test_magnification_is_met_or_refused() -> None:
    slide = sample()  # 20x
    half = plan(slide, tissue=SMALL, magnification=10)
    assert (half.level, half.read_size, half.side) == (0, (512, 512), (512, 512))
    assert half.read(slide, half.coords[0]).shape == (256, 256, 3)
    fifth = plan(slide, tissue=SMALL, magnification=5, rules=GridRules(patch=64, step=64))
    assert (fifth.level, fifth.read_size, fifth.side) == (1, (64, 64), (256, 256))
    with pytest.raises(InputError, match="was scanned at 20x, patches at 40x would have to be invented"):
        plan(slide, tissue=SMALL, magnification=40)
    with pytest.raises(InputError, match="does not tell its magnification"):
        plan(_flat(100), tissue=_whole((2000, 1500)), magnification=20)
    with pytest.raises(InputError, match="has no level 3"):
        plan(slide, tissue=SMALL, level=3)
    with pytest.raises(InputError, match="no patch of 256 pixels"):
        plan(slide, tissue=SMALL, rules=GridRules(region=(0, 0, 1, 1)))


def _whole(size: tuple[int, int]) -> Tissue:
    width, height = size
    ring = np.array([(0, 0), (0, height - 1), (width - 1, height - 1), (width - 1, 0)], np.int32)
    return Tissue(contours=[ring], holes=[()])


def _context(scratch: Path | None = None, **more) -> Context:
    return Context(variant=Variant(name="x"), engines={}, scratch=scratch, **more)


def _mean(tiles: np.ndarray) -> np.ndarray:
    return tiles.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)


def _extract(slide: Slide, made: Plan, context: Context, **more) -> SlideFeatures:
    options = {"prepare": _mean, "compute": lambda x: x, "width": 3, "identity": {"weights": 1}, "batch": 8}
    return extract(slide, made, context, **(options | more))


def test_features_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    slide = sample()
    made = plan(slide, tissue=SMALL, rules=GridRules(patch=128, step=128))
    result = _extract(slide, made, _context(), readers=3)
    expected = [slide.region(int(x), int(y), 128, 128).mean(axis=(0, 1)) for x, y in made.coords]
    np.testing.assert_allclose(result.features(), expected, rtol=1e-6)
    assert headline(result) == f"{len(expected)} patches, 3 features each"
    assert summarise(result)["patch_size_level0"] == [128, 128]
    assert result.measurements["tissue_mm2"] == pytest.approx(0.833, abs=0.03)

    temporary = result.file
    files = write(result, slide, tmp_path, formats=["h5", "npz", "json"])
    assert not temporary.exists()  # it moved
    with h5py.File(files["h5"]) as file:
        assert set(file) == {"features", "coords"}
        assert (file["features"].dtype, file["features"].chunks) == (np.float32, (1, 3))
        assert (file["coords"].dtype, file["coords"].chunks, file["coords"].maxshape) == (np.int32, (1, 2), (None, 2))
        assert not file.attrs
    with h5py.File(tmp_path / "patches.h5") as file:
        table = file["coords"]
        assert (table.dtype, table.chunks, table.maxshape) == (np.int64, (1, 2), (None, 2))
        told = {key: np.asarray(value).tolist() for key, value in table.attrs.items()}
        assert told["patch_size"] == 128
        assert told["downsample"] == [1, 1]
        assert told["level_dim"] == told["downsampled_level_dim"] == [4096, 3072]
        assert told["name"] == "sample"
        assert told["save_path"] == str(tmp_path)
    case = read(files["h5"], kind=InputKind.FEATURES)
    np.testing.assert_array_equal(case.coords, made.coords)
    assert case.side == (128, 128)
    outlines = json.loads((tmp_path / "tissue.geojson").read_text())["features"]
    assert [len(piece["geometry"]["coordinates"]) for piece in outlines] == [2, 1]
    ring = np.array(outlines[1]["geometry"]["coordinates"][0])
    assert (ring[0] == ring[-1]).all()
    assert cv2.contourArea(ring.astype(np.int32)) == cv2.contourArea(made.tissue.contours[1])
    with pytest.raises(UsageError, match="cannot be written as csv"):
        write(result, slide, tmp_path, formats=["csv"])
    assert result.illustration("title").width > 400


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    slide = sample()
    made = plan(slide, tissue=SMALL)
    whole = _extract(slide, made, _context()).features()
    token, seen = CancelToken(), []

    def compute(inputs: np.ndarray) -> np.ndarray:
        seen.append(len(inputs))
        if len(seen) == 3:
            token.cancel()
        return inputs

    with pytest.raises(Cancelled):
        _extract(slide, made, _context(tmp_path, cancel=token), compute=compute)
    assert (tmp_path / UNFINISHED).is_file()
    seen = []
    again = _extract(slide, made, _context(tmp_path), compute=lambda x: seen.append(len(x)) or x)
    assert sum(seen) == len(made.coords) - 3 * 8
    np.testing.assert_array_equal(again.features(), whole)
    # What other weights left behind is not gone on with, nor what is damaged.
    with pytest.raises(Cancelled):
        _extract(slide, made, _context(tmp_path, cancel=token), identity={"weights": 2})
    seen = []
    _extract(slide, made, _context(tmp_path), compute=lambda x: seen.append(len(x)) or x)
    assert sum(seen) == len(made.coords)
    (tmp_path / UNFINISHED).write_bytes((tmp_path / UNFINISHED).read_bytes()[:900])
    np.testing.assert_array_equal(_extract(slide, made, _context(tmp_path)).features(), whole)


def test_features_that_are_no_numbers_are_refused() -> None:
    slide = sample()
    made = plan(slide, tissue=SMALL)
    with pytest.raises(ValueError, match="not finite"):
        _extract(slide, made, _context(), compute=lambda x: x * np.nan)


def test_a_temporary_file_goes_with_its_result() -> None:
    slide = sample()
    result = _extract(slide, plan(slide, tissue=SMALL), _context())
    path = result.file
    assert path.is_file()
    del result
    assert not path.exists()


@pytest.mark.parametrize(("content", "told"), [
    ({"imgs": np.zeros(3)}, "holds no features"),
    ({"features": np.zeros((0, 4), np.float32)}, "was expected"),
    ({"features": np.full((2, 4), np.nan, np.float32)}, "8 of 8 features are NaN"),
    ({"features": np.zeros((2, 4)), "coords": np.zeros((3, 2))}, "do not belong together"),
])  # fmt: skip
def test_bad_files_of_features(tmp_path: Path, content: dict, told: str) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, values in content.items():
            file[name] = values
    with pytest.raises(InputError, match=told):
        read(tmp_path / "x.h5", kind=InputKind.FEATURES)
    (tmp_path / "x.h5").write_bytes((tmp_path / "x.h5").read_bytes()[:600])
    with pytest.raises(InputError, match="damaged"):
        read(tmp_path / "x.h5", kind=InputKind.FEATURES)


def test_work_ahead_is_bounded_in_order_and_fails_in_its_place() -> None:
    made: list[int] = []

    def job(number: int) -> int:
        made.append(number)
        if number == 7:
            raise ValueError("seven")
        return number

    found = ahead(job, range(100), workers=2)
    assert next(found) == 0
    assert max(made) <= 3
    assert [next(found) for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="seven"):
        next(found)
    assert max(made) <= 10


class _Virtual:
    """A slide that nobody could hold in memory; its pixels are computed."""

    mpp, magnification = (0.25, 0.25), 40.0

    def __init__(self, side: int) -> None:
        self.levels = tuple((side // d, side // d) for d in (1, 4, 16, 64))
        self.details, self.warnings = {}, []

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        side = self.levels[level][0]
        rows, columns = (np.ogrid[y : y + height, x : x + width][axis] / side for axis in (0, 1))
        tissue = (rows - 0.5) ** 2 + (columns - 0.5) ** 2 < 0.16
        return np.where(tissue[:, :, None], np.array([200, 90, 150]), 240).astype(np.uint8)


def test_memory_does_not_grow_with_the_slide() -> None:
    """A slide of 100,000 x 100,000 pixels takes as much as one of 25,000 x 25,000, but for the list of its places."""
    peaks, counts = [], []
    for side in (25_000, 100_000):
        slide = of_pixels(_Virtual(side), "virtual")
        made = plan(slide, rules=GridRules(patch=64, step=1600))
        assert slide.size == (side, side)
        tracemalloc.start()
        try:
            result = _extract(slide, made, _context(), batch=16, readers=2)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        counts.append(result.patches)
        assert np.allclose(result.features()[0], [200, 90, 150], atol=60)
    assert counts[1] > 12 * counts[0]
    assert peaks[1] < peaks[0] + 1e6
