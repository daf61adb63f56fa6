"""Reading and writing scans against the libraries that everybody uses, on made scans of the usual sizes::

    python tools/bench/imaging.py --rounds 5

Each way reads into (or writes from) an array in memory; results are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import SimpleITK
from common import Row, interleaved, table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import dicom_factory  # noqa: E402
from omlab.cases import read  # noqa: E402
from omlab.geometry import Geometry  # noqa: E402
from omlab.results import Label, Segmentation, read_segmentation, write  # noqa: E402
from omlab.results.nifti import write_array  # noqa: E402


def scan(shape: tuple[int, int, int]) -> np.ndarray:
    """A CT-like volume, int16 [i, j, k]: smooth structures, noise inside the body and plain air around it."""
    grids = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij", sparse=True)
    radius = grids[0] ** 2 + grids[1] ** 2
    body = radius + 0.1 * grids[2] ** 2 < 0.7
    values = 40 + 60 * np.sin(6 * grids[0]) * np.cos(5 * grids[1]) * np.sin(7 * grids[2] + 1)
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * 20
    return np.where(body, values + noise, -1000).astype(np.int16)


def label_map(shape: tuple[int, int, int], structures: int) -> np.ndarray:
    """Boxes in rows, uint8: as many structures as asked for, each in its own part of the body."""
    labels = np.zeros(shape, np.uint8)
    edge = int(np.ceil(structures ** (1 / 3)))
    steps = [n // (edge + 1) for n in shape]
    for number in range(structures):
        place = np.unravel_index(number, (edge, edge, edge))
        box = tuple(slice((p + 1) * s - s // 3, (p + 1) * s + s // 3) for p, s in zip(place, steps, strict=True))
        labels[box] = number + 1
    return labels


def rows_of(what: str, ways: Mapping[str, Callable[[], Any]], rounds: int, base: str, note: str = "") -> Iterator[Row]:
    """One row a way."""
    times = interleaved(ways, rounds)
    slow = statistics.median(times[base])
    for way, taken in times.items():
        median = statistics.median(taken)
        yield Row(what=what, way=way, seconds=median, best=min(taken), ratio=slow / median, note=note)


def nifti(folder: Path, rounds: int) -> Iterator[Row]:
    """A compressed volume in and out."""
    values = scan((512, 512, 300))
    affine = np.diag([0.7, 0.7, 2.0, 1.0])
    path = folder / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    np.testing.assert_array_equal(read(path).voxels, values)
    size = f"{path.stat().st_size / 1e6:.0f} MB, 512 x 512 x 300 int16"
    yield from rows_of(
        "read .nii.gz",
        {
            "nibabel get_fdata": lambda: nibabel.load(path).get_fdata(),
            "SimpleITK": lambda: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))),
            "omlab": lambda: read(path),
        },
        rounds, "nibabel get_fdata", size,
    )  # fmt: skip
    labels = label_map(values.shape, 104)
    geometry = Geometry(values.shape, affine)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(labels.T))
    target = folder / "labels.nii.gz"
    yield from rows_of(
        "write labels .nii.gz",
        {
            "nibabel": lambda: nibabel.save(nibabel.Nifti1Image(labels, affine), target),
            "SimpleITK": lambda: SimpleITK.WriteImage(image, str(target), useCompression=True),
            "omlab": lambda: write_array(labels, geometry, target),
        },
        rounds, "nibabel", "512 x 512 x 300 uint8, 104 structures",
    )  # fmt: skip


def dicom(folder: Path, rounds: int) -> Iterator[Row]:
    """A series in; segmentations out and in again."""
    values = (scan((512, 512, 300)) + 1024).astype(np.uint16)
    datasets = dicom_factory.slices(values, np.diag([0.7, 0.7, 2.0, 1.0]), intercept=-1024)
    for dataset in datasets:
        dataset.BitsStored, dataset.HighBit = 12, 11  # as CT scanners have it
    series = dicom_factory.save(datasets, folder / "series")
    files = sorted(series.iterdir())
    case = read(series)

    def with_itk() -> np.ndarray:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
        return SimpleITK.GetArrayFromImage(reader.Execute())

    np.testing.assert_array_equal(with_itk().transpose(2, 1, 0), case.voxels)
    note = "300 files of 512 x 512, HU in order; pydicom only decodes"
    yield from rows_of(
        "read DICOM series",
        {
            "pydicom": lambda: [pydicom.dcmread(file).pixel_array for file in files],
            "SimpleITK": with_itk,
            "omlab": lambda: read(series),
        },
        rounds, "pydicom", note,
    )  # fmt: skip
    labels = label_map(case.voxels.shape, 104)
    structures = tuple(Label(value=n, name=f"structure {n}") for n in range(1, 105))
    result = Segmentation(labels=labels, structures=structures, geometry=case.geometry)
    for kind in ("dicom-seg", "dicom-seg-binary", "rtstruct"):
        (folder / kind).mkdir()
    paths = {
        kind: write(result, case, folder / kind, formats=[kind])[kind]
        for kind in ("dicom-seg", "dicom-seg-binary", "rtstruct")
    }
    np.testing.assert_array_equal(read_segmentation(paths["dicom-seg"]).labels, labels)
    few = max(1, rounds // 2)
    sizes = ", ".join(f"{kind} {path.stat().st_size / 1e6:.1f} MB" for kind, path in paths.items())
    ways = {
        kind: lambda kind=kind: write(result, case, folder / kind, formats=[kind])
        for kind in ("dicom-seg-binary", "dicom-seg", "rtstruct")
    }
    yield from rows_of("write 104 structures", ways, few, "dicom-seg-binary", sizes)
    ways = {kind: lambda path=paths[kind]: read_segmentation(path) for kind in ("dicom-seg-binary", "dicom-seg")}
    yield from rows_of("read 104 structures", ways, few, "dicom-seg-binary")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds [5]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="omlab-bench-") as scratch:
        rows = [*nifti(Path(scratch), options.rounds), *dicom(Path(scratch), options.rounds)]
    print(table(rows, baseline="the first way of each"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
