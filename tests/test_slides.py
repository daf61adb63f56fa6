"""Whole slides: every way in which TIFF holds them, places, scales, damage, memory."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

tifffile = pytest.importorskip("tifffile")

from omlab.cases import Slide, read  # noqa: E402
from omlab.cases import slide as slides  # noqa: E402
from omlab.cases.slide_openslide import OpenSlidePixels  # noqa: E402
from omlab.cases.slide_tiff import TiffPixels  # noqa: E402
from omlab.cases.sniff import Family, family_of  # noqa: E402
from omlab.errors import InputError, UsageError  # noqa: E402
from omlab.prompts import make  # noqa: E402
from omlab.vocabulary import InputKind  # noqa: E402
from omlab_sdk.contract import pyramids  # noqa: E402

KINDS = (InputKind.IMAGE, InputKind.SLIDE)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    rows, columns = np.mgrid[:700, :900]
    return np.stack([rows % 251, columns % 241, (rows + columns) % 239], axis=2).astype(np.uint8)


def _pyramid(path: Path, pixels: np.ndarray, *, subifds: bool = False, **options) -> Path:
    levels = [np.ascontiguousarray(pixels[::f, ::f]) for f in (1, 4, 16)]
    options = {"tile": (128, 128), "photometric": "rgb"} | options
    with tifffile.TiffWriter(path, bigtiff=options.pop("bigtiff", False)) as file:
        for number, level in enumerate(levels):
            # Levels as further pages, or as sub-directories of the first.
            more = {"subifds": 2} if subifds and not number else {}
            file.write(level, subfiletype=int(number > 0), **options, **more)
    return path


@pytest.mark.parametrize("subifds", [False, True])
@pytest.mark.parametrize("options", [
    {}, {"compression": "zlib"}, {"compression": "lzw", "predictor": True}, {"bigtiff": True}, {"tile": (64, 192)},
])  # fmt: skip
def test_every_level_is_read_as_it_was_written(tmp_path: Path, pixels, options: dict, subifds: bool) -> None:
    slide = slides.read(_pyramid(tmp_path / "s.tif", pixels, subifds=subifds, **options))
    assert slide.levels == ((900, 700), (225, 175), (57, 44))
    np.testing.assert_array_equal(slide.region(100, 60, 300, 200), pixels[60:260, 100:400])
    np.testing.assert_array_equal(slide.region(100, 60, 50, 40, 1), pixels[::4, ::4][15:55, 25:75])
    assert slide.downsamples[1] == (4.0, 4.0)
    assert slide.downsamples[2] == (900 / 57, 700 / 44)  # each axis has its own where they differ
    assert [slide.best_level(d) for d in (0.5, 1, 3.9, 4, 15, 64)] == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(("change", "options"), [
    (lambda p: p[:, :, 0], {"photometric": "minisblack"}),
    (lambda p: 255 - p[:, :, 0], {"photometric": "miniswhite"}),
    (lambda p: np.dstack([p, p[:, :, :1]]), {"extrasamples": ["unassalpha"]}),
    (lambda p: p.astype(np.uint16) * 257, {}),
    (lambda p: np.ascontiguousarray(np.moveaxis(p, 2, 0)), {"planarconfig": "separate"}),
    (lambda p: p, {"tile": None, "rowsperstrip": 16, "compression": "zlib"}),
    (lambda p: p, {"tile": None}),
])  # fmt: skip
def test_grey_alpha_deep_planar_and_striped(tmp_path: Path, pixels, change, options: dict) -> None:
    given = change(pixels)
    tifffile.imwrite(tmp_path / "s.tif", given, **({"tile": (128, 128), "photometric": "rgb"} | options))
    slide = slides.read(tmp_path / "s.tif")
    expected = np.repeat(pixels[:, :, :1], 3, axis=2) if given.ndim == 2 else pixels
    np.testing.assert_array_equal(slide.region(5, 300, 600, 300), expected[300:600, 5:605])
    assert slide.mpp is None
    assert "neither its magnification" in slide.source.warnings[0]


def test_places_outside_are_black(tmp_path: Path, pixels) -> None:
    slide = slides.read(_pyramid(tmp_path / "s.tif", np.maximum(pixels, 1)))
    box = slide.region(800, 650, 200, 100)
    assert (box[:50, :100] > 0).all()
    assert not box[50:].any()
    assert not box[:, 100:].any()
    assert (slide.region(-50, -50, 100, 100)[50:, 50:] > 0).all()
    assert not slide.region(5000, 5000, 10, 10).any()
    with pytest.raises(IndexError, match="has levels 0 to 2, asked for 3"):
        slide.region(0, 0, 1, 1, 3)


def test_tifffile_and_openslide_agree(tmp_path: Path) -> None:
    path = pyramids.write(tmp_path / "s.tif", (4000, 3000), pyramids.disc((2000, 1500), 900), downsamples=(1, 4))
    ours, theirs = TiffPixels(path), OpenSlidePixels(path)
    assert [tuple(level) for level in ours.levels] == theirs.levels == [(4000, 3000), (1000, 750)]
    assert ours.mpp == pytest.approx((0.5, 0.5))
    assert theirs.mpp == pytest.approx((0.5, 0.5))
    for level in (0, 1):
        found = [reader.read(level, 300, 200, 333, 277).astype(int) for reader in (ours, theirs)]
        assert np.abs(found[0] - found[1]).max() <= 1


def test_what_the_scanner_tells(tmp_path: Path, pixels) -> None:
    told = "Aperio Image Library v1\n900x700 (256x256) JPEG/RGB Q=70|AppMag = 40|MPP = 0.2525"
    aperio = slides.read(_pyramid(tmp_path / "a.svs", pixels, description=told, metadata=None))
    assert (aperio.mpp, aperio.magnification) == ((0.2525, 0.2525), 40)
    assert aperio.source.warnings == ()
    plain = {"resolution": (10000 / 0.5, 10000 / 0.5), "resolutionunit": "CENTIMETER"}
    scaled = slides.read(_pyramid(tmp_path / "b.tif", pixels, **plain))
    assert (scaled.mpp, scaled.magnification) == ((0.5, 0.5), 20)
    assert "about 20x" in scaled.source.warnings[0]
    printed = slides.read(_pyramid(tmp_path / "c.tif", pixels, resolution=(72, 72), resolutionunit="INCH"))
    assert printed.mpp is None  # 72 dots an inch is no microscope
    stated = printed.stated(mpp=0.25)
    assert (stated.mpp, stated.magnification) == ((0.25, 0.25), 40)
    assert printed.stated(magnification=10).mpp == (1.0, 1.0)
    np.testing.assert_allclose(stated.to_pixels([[25.0, 50.0]]), [[100, 200]])
    np.testing.assert_allclose(stated.to_micrometres([[100, 200]]), [[25, 50]])
    with pytest.raises(InputError, match="does not say how many micrometres"):
        printed.to_pixels([[1, 1]])
    with pytest.raises(UsageError, match="positive"):
        printed.stated(mpp=-1)


def test_prompts_in_micrometres(tmp_path: Path, pixels) -> None:
    slide = slides.read(_pyramid(tmp_path / "s.tif", pixels)).stated(mpp=0.5)
    placed = make(boxes=[[10, 20, 60, 70]], space="um").on(slide)
    assert placed.objects[0].boxes[0].low == (20, 40)
    assert placed.objects[0].boxes[0].high == (120, 140)
    with pytest.raises(InputError, match="outside of the 900 x 700 pixels"):
        make(points=[[1000, 10]]).on(slide)
    with pytest.raises(InputError, match="prompts in millimetres .* need a volume"):
        make(points=[[10, 10]], space="ras-mm").on(slide)


def test_a_tiff_is_a_slide_to_those_who_take_slides(tmp_path: Path, pixels) -> None:
    patch, pyramid = tmp_path / "patch.tif", _pyramid(tmp_path / "s.tif", pixels)
    tifffile.imwrite(patch, pixels[:256, :256], photometric="rgb")
    assert family_of(patch, KINDS) is Family.PICTURE
    assert family_of(patch, {InputKind.SLIDE}) is Family.SLIDE
    assert family_of(pyramid, KINDS) is Family.SLIDE
    assert family_of(pyramid) is Family.PICTURE
    assert isinstance(read(pyramid, kind=KINDS), Slide)
    big = _pyramid(tmp_path / "b.tif", pixels, bigtiff=True)
    with pytest.raises(InputError, match="is a whole slide, expected PNG"):
        read(big, kind=InputKind.IMAGE)


def test_damage_is_told(tmp_path: Path, pixels) -> None:
    path = _pyramid(tmp_path / "s.tif", pixels, compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = bytes(40)
    path.write_bytes(content)
    slide = slides.read(path)
    with pytest.raises(InputError, match=r"is damaged at \(0, 0\) of the level of 900 x 700 pixels"):
        slide.region(0, 0, 10, 10)
    slide.region(256, 256, 10, 10)  # the rest can be read
    for cut in (10, 200, len(content) - 60):
        path.write_bytes(content[:cut])
        with pytest.raises(InputError, match="damaged"):
            slides.read(path).overview(downsample=1)
    path.write_bytes(b"no slide")
    with pytest.raises(InputError, match="is no slide"):
        slides.read(path)


def test_one_giant_strip_is_refused_or_read_in_part(tmp_path: Path, monkeypatch) -> None:
    from omlab.cases import slide_tiff

    monkeypatch.setattr(slide_tiff, "LARGEST_SEGMENT", 100_000)
    tall = np.zeros((600, 500, 3), np.uint8)
    tifffile.imwrite(tmp_path / "z.tif", tall, rowsperstrip=600, compression="zlib", photometric="rgb")
    with pytest.raises(InputError, match="is not tiled: 600 rows of 500 pixels are stored as one piece"):
        slides.read(tmp_path / "z.tif")
    tifffile.imwrite(tmp_path / "raw.tif", tall + 7, rowsperstrip=600, photometric="rgb")
    assert (slides.read(tmp_path / "raw.tif").region(100, 100, 50, 50) == 7).all()


def test_a_slide_of_one_level_is_shrunk(tmp_path: Path, pixels, monkeypatch) -> None:
    tifffile.imwrite(tmp_path / "s.tif", pixels, tile=(128, 128), photometric="rgb")
    slide = slides.read(tmp_path / "s.tif")
    monkeypatch.setattr(slides, "WHOLE_PIXELS", 100_000)
    rgb, downsample = slide.overview(downsample=8)
    assert downsample == (8, 8)
    assert rgb.shape == (700 // 8, 900 // 8, 3)
    mean = pixels[: 87 * 8, : 112 * 8].reshape(87, 8, 112, 8, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(rgb, mean, atol=0.51)
    assert max(slide.thumbnail(50).shape[:2]) <= 50


def test_threads_read_the_same(tmp_path: Path) -> None:
    path = pyramids.write(tmp_path / "s.tif", (6000, 6000), pyramids.disc((3000, 3000), 2500))
    slide = Slide(name="s", pixels_from=TiffPixels(path, cache_bytes=2**20))  # so small that tiles are dropped
    places = [(x, y) for x in range(0, 6000, 700) for y in range(0, 6000, 700)]
    alone = [slide.region(x, y, 300, 300) for x, y in places]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda p: slide.region(*p, 300, 300), places * 3))
    for number, box in enumerate(together):
        np.testing.assert_array_equal(box, alone[number % len(places)])


def test_neighbouring_columns_of_patches_share_their_tiles(tmp_path: Path, monkeypatch) -> None:
    """Of a slide as high as they get, each tile is decoded once, though each holds parts of four patches."""
    from omlab.cases import slide_tiff

    path = pyramids.write(tmp_path / "s.tif", (2000, 100_000), pyramids.disc((0, 0), 0), downsamples=(1,))
    decoded, decode = [], slide_tiff._Level.decode
    monkeypatch.setattr(slide_tiff._Level, "decode", lambda *a: decoded.append(a[1]) or decode(*a))
    slide = slides.read(path)
    for x in (16, 272):
        for y in range(16, 99_500, 256):
            slide.region(x, y, 256, 256)
    assert len(decoded) == len(set(decoded)) > 1000


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    path = pyramids.write(tmp_path / "s.tif", (40_000, 40_000), pyramids.disc((20_000, 20_000), 19_000))
    tile = 256 * 256 * 3
    reader = TiffPixels(path, cache_bytes=20 * tile)
    slide = Slide(name="s", pixels_from=reader)
    slide.region(0, 0, 256, 256)
    tracemalloc.start()
    try:
        for x in range(0, 40_000, 1000):
            slide.region(x, 20_000, 256, 256)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30 * tile
