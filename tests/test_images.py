"""Pictures in: what the file shows is what a model sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from omlab.cases import Image, read
from omlab.errors import InputError

RNG = np.random.default_rng(3)
GREY8 = RNG.integers(0, 256, (12, 17), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (12, 17), dtype=np.uint16)
RGB = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp"])
@pytest.mark.parametrize("pixels", [GREY8, RGB], ids=["grey", "rgb"])
def test_eight_bits(tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
    path = tmp_path / f"a.{suffix}"
    Pillow.fromarray(pixels).save(path)
    image = read(path)
    assert isinstance(image, Image)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert image.bits == 8


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        Pillow.fromarray(GREY16).save(path)
    else:
        tifffile.imwrite(path, GREY16)
    image = read(path)
    np.testing.assert_array_equal(image.pixels, GREY16)
    assert image.bits == 16
    np.testing.assert_allclose(image.rgb8()[..., 0], GREY16 / 257, atol=0.51)


def test_big_endian_tiff(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY16, byteorder=">")
    np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels, GREY16)


def test_jpeg_and_its_rotation_tag(tmp_path: Path) -> None:
    picture = Pillow.fromarray(np.repeat(np.linspace(0, 255, 40).astype(np.uint8)[None], 20, axis=0))
    exif = Pillow.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = read(tmp_path / "a.jpg").pixels
    assert pixels.shape == (40, 20)
    assert pixels[0].mean() < 20 < 235 < pixels[-1].mean()


def test_palettes_and_transparency(tmp_path: Path) -> None:
    picture = Pillow.fromarray(RGB).quantize(16)
    picture.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read(tmp_path / "p.png").pixels, np.asarray(picture.convert("RGB")))
    alpha = np.dstack([RGB, np.zeros((12, 17), np.uint8)])
    alpha[:6, :, 3] = 255
    Pillow.fromarray(alpha).save(tmp_path / "a.png")
    pixels = read(tmp_path / "a.png").pixels
    np.testing.assert_array_equal(pixels[:6], RGB[:6])
    assert not pixels[6:].any()


def test_pages(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([GREY8, GREY8 // 2]), photometric="minisblack")
    with pytest.raises(InputError, match=r"has 2 pages, expected one.*--frame"):
        read(tmp_path / "stack.tif")
    np.testing.assert_array_equal(read(tmp_path / "stack.tif", frame=1).pixels, GREY8 // 2)
    with pytest.raises(InputError, match="has no page 2"):
        read(tmp_path / "stack.tif", frame=2)


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    Pillow.fromarray(GREY8).save(tmp_path / "really.png")
    (tmp_path / "really.png").rename(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(read(tmp_path / "scan.nii.gz").pixels, GREY8)


@pytest.mark.parametrize(("keep", "message"), [(0, "is empty"), (60, "damaged|cannot be read"), (-30, "damaged")])
def test_damaged(tmp_path: Path, keep: int, message: str) -> None:
    Pillow.fromarray(RGB).save(tmp_path / "a.png")
    raw = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(raw[:keep])
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a.png")


def test_others_are_named(tmp_path: Path) -> None:
    (tmp_path / "report.png").write_bytes(b"%PDF-1.7 ...")
    with pytest.raises(InputError, match="is a PDF, expected NIfTI, DICOM, NRRD, MetaImage, PNG, JPEG or TIFF"):
        read(tmp_path / "report.png")


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Pillow.fromarray(GREY8).save(tmp_path / "a.png")
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(InputError, match="too large for a picture"):
        read(tmp_path / "a.png")
