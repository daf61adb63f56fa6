"""Stacks of planes in every form that microscopes leave, whole and damaged, and label maps written plane by plane."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")

from omlab.cases import Stack, find, read  # noqa: E402
from omlab.cases.stack import ArrayPlanes, of_planes  # noqa: E402
from omlab.errors import InputError, UsageError  # noqa: E402
from omlab.results import StackSegmentation, headline, summarise, write  # noqa: E402
from omlab.results.stacks import ENDINGS, StackLabels, writer  # noqa: E402
from omlab.results.types import Label  # noqa: E402
from omlab.vocabulary import InputKind  # noqa: E402

VOXELS = np.random.default_rng(0).integers(0, 60000, (7, 30, 40), dtype=np.uint16)
PLAIN = {"metadata": None, "compression": "zlib"}


def opened(path: Path, frame: int | None = None) -> Stack:
    found = read(path, kind=InputKind.STACK, frame=frame)
    assert isinstance(found, Stack)
    return found


def folder_of(path: Path, planes: np.ndarray, name: str = "Z{:04d}.tif") -> Path:
    path.mkdir()
    for number, plane in enumerate(planes):
        tifffile.imwrite(path / name.format(number), plane)
    return path


@pytest.mark.parametrize(
    ("arguments", "spacing"),
    [
        ({}, None),
        ({"bigtiff": True}, None),
        (PLAIN, None),
        ({"byteorder": ">"}, None),
        (PLAIN | {"byteorder": ">"}, None),
        ({"imagej": True, "resolution": (2, 2), "metadata": {"spacing": 2.0, "unit": "um"}}, (2, 0.5, 0.5)),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.6, "PhysicalSizeY": 0.6, "PhysicalSizeZ": 3}}, (3, 0.6, 0.6)),
    ],
)  # fmt: skip
def test_files_of_many_pages(tmp_path: Path, arguments: dict, spacing: tuple | None) -> None:
    if arguments.get("metadata"):
        arguments = arguments | {"metadata": arguments["metadata"] | {"axes": "ZYX"}}
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, **arguments)
    stack = opened(tmp_path / "a.tif")
    assert stack.shape == VOXELS.shape and stack.dtype == np.uint16
    assert np.array_equal(stack.read(0, 7), VOXELS) and np.array_equal(stack[-1], VOXELS[-1])
    assert stack.spacing_um == pytest.approx(spacing) if spacing else stack.spacing_um is None
    assert [f.path for f in find([tmp_path], kinds={InputKind.STACK})] == [tmp_path / "a.tif"]


@pytest.mark.parametrize(("axes", "kind"), [("ZCYX", "imagej"), ("CZYX", "ome")])
def test_channels_are_chosen(tmp_path: Path, axes: str, kind: str) -> None:
    both = np.stack([VOXELS, VOXELS // 2], axis=axes.index("C"))
    tifffile.imwrite(tmp_path / "a.tif", both, metadata={"axes": axes}, **{kind: True})
    assert np.array_equal(opened(tmp_path / "a.tif", 1).read(0, 7), VOXELS // 2)
    with pytest.raises(InputError, match="holds 2 channels"):
        opened(tmp_path / "a.tif")
    with pytest.raises(InputError, match="no channel 2"):
        opened(tmp_path / "a.tif", 2)


def test_folder_of_pages(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "brain", VOXELS, "p{}.tif")
    (folder / "notes.txt").write_text("exposure 20 ms")
    assert np.array_equal(opened(folder).read(2, 5), VOXELS[2:5])
    (item,) = find([tmp_path], kinds={InputKind.STACK})
    assert item.name == "brain" and isinstance(item.read(kind=InputKind.STACK), Stack)
    with pytest.raises(IndexError):
        opened(folder).read(3, 8)


@pytest.mark.parametrize("form", [2, 3])
def test_zarr(tmp_path: Path, form: int) -> None:
    array = zarr.open_array(str(tmp_path / "a.zarr"), mode="w", shape=(2, 7, 30, 40), dtype="u2", chunks=(1, 3, 16, 16),
                            zarr_format=form)  # fmt: skip
    array[0], array[1] = VOXELS, VOXELS // 2
    assert np.array_equal(opened(tmp_path / "a.zarr", 1).read(1, 6), VOXELS[1:6] // 2)
    with pytest.raises(InputError, match="holds 2 channels or times"):
        opened(tmp_path / "a.zarr")
    with pytest.raises(InputError, match="without an OME description"):
        zarr.open_group(str(tmp_path / "b.zarr"), mode="w", zarr_format=form)
        opened(tmp_path / "b.zarr")


def test_damaged_zarr(tmp_path: Path) -> None:
    made = writer("zarr", tmp_path / "a.ome.zarr", VOXELS.shape, np.uint16)
    for plane in VOXELS:
        made.append(plane)
    made.finish()
    chunk = tmp_path / "a.ome.zarr" / "0" / "0" / "0" / "0"
    chunk.write_bytes(b"nothing")
    with pytest.raises(InputError, match="a chunk of the planes 0 to 6 is damaged"):
        opened(tmp_path / "a.ome.zarr").read(0, 7)
    chunk.unlink()
    assert "1 of its 1 chunks are not there" in opened(tmp_path / "a.ome.zarr").source.warnings[0]
    (tmp_path / "a.ome.zarr" / "0" / ".zarray").write_text("{")
    with pytest.raises(InputError, match="no Zarr volume that can be read"):
        opened(tmp_path / "a.ome.zarr")


def test_colour_and_sizes(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((5, 30, 40, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match="is in colour"):
        opened(tmp_path / "rgb.tif")
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as tiff:
        for plane in (VOXELS[0], VOXELS[1], VOXELS[2, :20]):
            tiff.write(plane, contiguous=False, metadata=None)
    with pytest.raises(InputError, match="page 2: is 20 x 40 pixels, page 0 is 30 x 40"):
        opened(tmp_path / "sizes.tif")
    folder = folder_of(tmp_path / "pages", VOXELS)
    tifffile.imwrite(folder / "Z0003.tif", VOXELS[3, :20])
    with pytest.raises(InputError, match=r"Z0003\.tif: is 20 x 40 pixels"):
        opened(folder)


def test_cut_short(tmp_path: Path) -> None:
    """Wherever a file ends too early, it is told when it is opened."""
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, **PLAIN)
    data = (tmp_path / "a.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        entries = [page.offset for page in tiff.pages]
    for length in (entries[3] - 1, entries[3] + 3, entries[3] + 200, entries[6] + 20, len(data) - 3):
        (tmp_path / "cut.tif").write_bytes(data[:length])
        with pytest.raises(InputError, match="cut short"):
            opened(tmp_path / "cut.tif")
    for arguments in ({"imagej": True}, {}, {"ome": True}, {"compression": "zlib"}):
        tifffile.imwrite(tmp_path / "b.tif", VOXELS, **arguments)
        data = (tmp_path / "b.tif").read_bytes()
        for length in (len(data) // 2, len(data) - 2000):
            (tmp_path / "cut.tif").write_bytes(data[:length])
            with pytest.raises(InputError, match="cut short"):
                opened(tmp_path / "cut.tif")


def test_damaged_page(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, **PLAIN)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        start = tiff.pages[4].dataoffsets[0]
    data[start : start + 40] = b"x" * 40
    (tmp_path / "a.tif").write_bytes(data)
    stack = opened(tmp_path / "a.tif")
    assert np.array_equal(stack[3], VOXELS[3])
    with pytest.raises(InputError, match="page 4 is damaged"):
        stack.read(0, 7)


def test_missing_planes(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "brain", VOXELS)
    (folder / "Z0003.tif").unlink()
    with pytest.raises(InputError, match="1 planes are missing, first between number 2 and number 4"):
        opened(folder)
    every_fifth = tmp_path / "fifth"
    every_fifth.mkdir()
    for number, plane in enumerate(VOXELS):  # numbered by micrometres
        tifffile.imwrite(every_fifth / f"brain_{5 * number:06d}_um.tif", plane)
    assert np.array_equal(opened(every_fifth).read(0, 7), VOXELS)
    mixed = folder_of(tmp_path / "mixed", VOXELS[:3], "C0_Z{}.tif")
    for number, plane in enumerate(VOXELS[:3]):
        tifffile.imwrite(mixed / f"C1_Z{number}.tif", plane)
    with pytest.raises(InputError, match="not numbered from plane to plane"):
        opened(mixed)


def test_nothing_there(tmp_path: Path) -> None:
    (item,) = find([tmp_path], kinds={InputKind.STACK})
    assert item.error is not None and "no file that can be a case" in item.error.message
    with pytest.raises(InputError, match="holds no TIFF page"):
        opened(tmp_path)


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    values = VOXELS.astype(np.float32)
    values[5, 3, 3] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", values)
    with pytest.raises(InputError, match="1 voxels that are NaN"):
        opened(tmp_path / "a.tif").read(4, 7)
    with pytest.raises(InputError, match="voxels of type complex64"):
        of_planes(ArrayPlanes(VOXELS.astype(np.complex64)), "x")
    huge = of_planes(ArrayPlanes(VOXELS, (1e6, 1, 1)), "x")
    assert huge.spacing_um is None and "which no microscope gives" in huge.source.warnings[0]


AXON = Label(value=1, name="axon")


@pytest.mark.parametrize("form", ENDINGS)
def test_label_maps_are_written_in_every_form(tmp_path: Path, form: str) -> None:
    """Made in one form; written as it is, and as each other one."""
    labels = (VOXELS > 30000).astype(np.uint8)
    made = writer(form, tmp_path / f"unfinished{ENDINGS[form]}", labels.shape, spacing_um=(2, 1, 1), structures=[AXON])
    for plane in labels:
        made.append(plane)
    made.finish()
    count = int(labels.sum())
    result = StackSegmentation(labels=StackLabels(made.path, form, {1: count}), structures=[AXON], start=(5, 0, 0))
    case = of_planes(ArrayPlanes(VOXELS), "x")
    assert summarise(result)["structures"][0]["voxels"] == count and "of the voxels" in headline(result)
    for other, ending in ENDINGS.items():
        (tmp_path / "out").mkdir(exist_ok=True)
        files = write(result, case, tmp_path / "out", formats=[other])
        assert files[other] == tmp_path / "out" / f"segmentation{ending}"
        assert np.array_equal(opened(files[other]).read(0, 7), labels)
    assert {f.name for f in (tmp_path / "out").iterdir()} == {f"segmentation{ending}" for ending in ENDINGS.values()}
    assert np.array_equal(np.asarray(result.labels), labels)
    with pytest.raises(UsageError, match="cannot be written as nifti"):
        write(result, case, tmp_path / "out", formats=["nifti"])


def test_a_writer_counts_its_planes(tmp_path: Path) -> None:
    for form, ending in ENDINGS.items():
        made = writer(form, tmp_path / f"a{ending}", VOXELS.shape, np.uint16)
        made.append(VOXELS[0])
        with pytest.raises(ValueError, match="was announced"):
            made.append(VOXELS[0, :3])
        with pytest.raises(ValueError, match="of 7 planes"):
            made.finish()
        made.abandon()
        assert not made.path.exists()
