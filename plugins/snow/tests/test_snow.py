"""Small trees and archives of SNOW's layout."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy.io import savemat

import omlab
from omlab.cli.main import main
from omlab.datasets import verify
from omlab.errors import InputError
from omlab_snow.dataset import MASKS, read_mat
from omlab_snow.pools import Entry

COUNT = 40


def tile(number: int) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(np.full((64, 64, 3), 6 * number, np.uint8)).save(file, format="PNG")
    return file.getvalue()


def mat(number: int, **arrays: np.ndarray) -> bytes:
    instances = np.zeros((64, 64), np.uint16)
    instances[4:10, 4:14], instances[30:40, 30 : 31 + number] = 1, 300
    file = io.BytesIO()
    savemat(file, arrays or {"inst_map": instances, "inst_centroid": np.zeros((2, 2)), "inst_type": np.zeros((2, 1))})
    return file.getvalue()


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "SNOW_Image.zip", "w") as file:
        for number in range(COUNT):
            file.writestr(f"SNOW_Image/tile_{number}.png", tile(number))
    for part, name in enumerate(MASKS):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as file:
            for number in range(part * COUNT // 4, (part + 1) * COUNT // 4):
                file.writestr(f"{name}/mat/tile_{number}.mat", mat(number))
                file.writestr(f"{name}/overlay/tile_{number}.png", tile(number))
                file.writestr(f"{name}/json/tile_{number}.json", "{}")
    return tmp_path


def test_archives_are_read_as_they_are(archives: Path) -> None:
    bound = omlab.load_dataset(f"snow:{archives}")
    items = list(bound.items())
    assert len(items) == bound.size() == COUNT and [i.split for i in items].count("val") == 2
    one = next(item for item in items if item.name == "tile_7")
    case, truth = one.case(), one.truth()
    assert case.pixels.shape == (64, 64, 3) and case.pixels[0, 0, 0] == 42
    assert truth.counts() == {1: 60 + 10 * 8} and truth.structures[0].name == "nucleus"
    assert {p.kind for p in verify(bound).problems} == {"count"}  # 40 of 20,000


def test_unpacked_folders_and_archives_may_be_mixed(archives: Path) -> None:
    for name in ("SNOW_Image", MASKS[2]):
        with zipfile.ZipFile(archives / f"{name}.zip") as file:
            file.extractall(archives)
        (archives / f"{name}.zip").unlink()
    bound = omlab.load_dataset(f"snow:{archives}")
    assert bound.size() == COUNT and all(item.truth() is not None for item in bound.items())


def test_fetched_archives_are_found_by_name(archives: Path) -> None:
    dataset = omlab.load_dataset(f"snow:{archives}").dataset
    ids = ("images", "masks-1", "masks-2", "masks-3", "masks-4")
    files = {key: archives / f"{name}.zip" for key, name in zip(ids, ("SNOW_Image", *MASKS), strict=True)}
    assert sum(1 for _ in dataset.items(files)) == COUNT


def test_splits_follow_the_protocol_and_the_seed(archives: Path) -> None:
    def names(options: str, split: str) -> list[str]:
        return [item.name for item in omlab.load_dataset(f"snow,{options}:{archives}").items(split)]

    semi = {split: names("protocol=semi", split) for split in ("train", "val", "unlabelled")}
    assert {split: len(found) for split, found in semi.items()} == {"train": 18, "val": 2, "unlabelled": 20}
    assert len({name for found in semi.values() for name in found}) == COUNT
    assert names("seed=1", "val") == names("seed=1", "val") != names("seed=2", "val")
    unlabelled = next(omlab.load_dataset(f"snow,protocol=semi:{archives}").items("unlabelled"))
    assert unlabelled.truth() is None


def test_names_that_differ_are_paired_by_their_number(archives: Path) -> None:
    with zipfile.ZipFile(archives / "SNOW_Image.zip", "w") as file:
        for number in range(COUNT):
            file.writestr(f"seed{number:05d}.png", tile(number))
    item = next(i for i in omlab.load_dataset(f"snow:{archives}").items() if i.name == "seed00007")
    assert item.truth().counts() == {1: 140}


def test_faults_are_found(archives: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(archives / f"{MASKS[0]}.zip", "w") as file:
        for number in (0, 1, 2, 99):
            file.writestr(f"mat/tile_{number}.mat", mat(number) if number else b"MATLAB 5.0 no")
    found: dict[str, list[str]] = {}
    for problem in verify(omlab.load_dataset(f"snow:{archives}")).problems:
        found.setdefault(problem.kind, []).append(f"{problem.where}: {problem.what}")
    assert len([t for t in found["reference"] if "has no mask" in t]) == 7
    assert any(t.startswith("tile_0: tile_0.mat: is no MATLAB file") for t in found["reference"])
    assert found["extra"] == ["mask_0_5000.zip/tile_99.mat: belongs to no tile"]
    whole = (archives / "SNOW_Image.zip").read_bytes()
    (archives / "SNOW_Image.zip").write_bytes(whole[: len(whole) // 2])
    assert main(["dataset", "verify", f"snow:{archives}"]) == 1
    told = capsys.readouterr().out
    assert "the download was cut short" in told and "is no whole archive" in told
    assert main(["dataset", "verify", f"snow:{archives / 'nothing'}"]) == 1


def test_masks_that_are_none_are_told(tmp_path: Path) -> None:
    for name, data in (("two", mat(0, a=np.ones((9, 9)), b=np.ones((9, 9)))), ("none", mat(0, c=np.ones((1, 9))))):
        (tmp_path / f"{name}.mat").write_bytes(data)
        with pytest.raises(InputError, match="arrays that can be the mask"):
            read_mat(Entry(tmp_path / f"{name}.mat"))
    (tmp_path / "one.mat").write_bytes(mat(0, whatever=np.ones((9, 9))))
    assert read_mat(Entry(tmp_path / "one.mat")).shape == (9, 9)
