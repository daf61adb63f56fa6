"""Datasets: plain folders, what verify finds, what show tells, how they are named and obtained."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from PIL import Image as Pillow

import omlab
from omlab.cases import Image, Volume
from omlab.cli.main import main
from omlab.datasets import gather, parse, verify
from omlab.errors import InputError, UsageError
from omlab.results import Classification, Segmentation


def picture(path: Path, size: tuple[int, int] = (12, 16), value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


def mask(path: Path, size: tuple[int, int] = (12, 16), value: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(size, np.uint8)
    labels[2:6, 3:9] = value
    Pillow.fromarray(labels).save(path)
    return path


def kinds(name: str, **more: Any) -> dict[str, list[str]]:
    """Kind of problem -> where."""
    found: dict[str, list[str]] = {}
    for problem in verify(omlab.load_dataset(name), **more).problems:
        found.setdefault(problem.kind, []).append(problem.where)
    return found


# Images with a table


@pytest.fixture
def table(tmp_path: Path) -> Path:
    root = tmp_path / "with a blank, ä"
    rows = ["image,label,split,patient"]
    for number in range(8):
        picture(root / "images" / f"scan {number} ü.png", value=20 * number)
        label, split = ("tumour" if number % 2 else "normal"), ("test" if number > 5 else "train")
        rows.append(f"scan {number} ü.png,{label},{split},p{number // 2}")
    (root / "list.csv").write_text("\n".join(rows) + "\n", "utf-8")
    return root


def test_table_gives_names_splits_classes_and_patients(table: Path) -> None:
    bound = omlab.load_dataset(f"image-table:{table}")
    items = list(bound.items())
    assert bound.classes == ("normal", "tumour")
    assert [item.split for item in items] == ["train"] * 6 + ["test"] * 2
    assert [item.group for item in items] == ["p0", "p0", "p1", "p1", "p2", "p2", "p3", "p3"]
    truth = items[3].truth()
    assert isinstance(truth, Classification) and truth.best == "tumour" and truth.exclusive
    case = items[3].case()
    assert isinstance(case, Image) and case.name == "scan 3 ü.png" and case.pixels[0, 0] == 60
    assert verify(bound).problems == ()
    assert [item.name for item in bound.items("test")] == ["scan 6 ü.png", "scan 7 ü.png"]


def test_table_with_several_label_columns_is_multi_label(tmp_path: Path) -> None:
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("file;age;nodule;effusion\na;71;1;0\nb;60;1;1\nc.png;50;;\n")
    bound = omlab.load_dataset(f"image-table:{tmp_path}")
    truths = [item.truth() for item in bound.items()]
    assert bound.classes == ("nodule", "effusion")
    assert truths[2] is None
    assert [t.probabilities.tolist() for t in truths[:2]] == [[1, 0], [1, 1]] and not truths[0].exclusive
    statistics, _ = gather(bound)
    assert statistics.classes == {"train": {"nodule": 2, "effusion": 1}} and statistics.unlabelled == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label,split\na.png,x,holdout\n", "'holdout' is no split"),
        ("image,label\na.png,x,y\n", "another number of columns"),
        ("what,label\na.png,x\n", "has no column of images"),
        ("image,label\n,x\n", "names no image"),
        ("image,a,b\na.png,0,1\nb.png,2,0\n", None),
        ("", "has no row"),
    ],
)
def test_tables_that_are_none_are_told(tmp_path: Path, text: str, message: str | None) -> None:
    (tmp_path / "t.csv").write_text(text)
    bound = omlab.load_dataset(f"image-table:{tmp_path}")
    if message is None:  # a column with a 2 is none of 0 and 1; the one that is left is of two classes
        assert bound.classes == ("0", "1")
        return
    with pytest.raises(InputError, match=message):
        list(bound.items())


def test_verify_finds_missing_files_leaks_duplicates_and_what_no_case_uses(table: Path) -> None:
    text = (table / "list.csv").read_text("utf-8").splitlines()
    text += [
        "scan 0 ü.png,normal,train,p0",
        "scan 1 ü.png,tumour,test,p0",
        "lost.png,normal,test,p9",
        "z.png,normal,test,p1",
    ]
    (table / "list.csv").write_text("\n".join(text), "utf-8")
    picture(table / "z.png")
    picture(table / "images" / "nobody.png")
    (table / "images" / "scan 2 ü.png").write_bytes((table / "images" / "scan 2 ü.png").read_bytes()[:40])
    found = kinds(f"image-table:{table}")
    assert found["duplicate"] == ["scan 0 ü.png"]
    assert found["leak"] == ["scan 1 ü.png", "z.png"]
    assert found["missing"] == [str(table / "lost.png")]
    assert found["damaged"] == ["scan 2 ü.png"]
    assert found["extra"] == [str(table / "images" / "nobody.png")]
    assert main(["dataset", "verify", f"image-table:{table}"]) == 1


# Images and masks, nnU-Net's raw layout, BIDS


def test_masks_pair_by_name_and_drawn_masks_are_one_structure(tmp_path: Path) -> None:
    picture(tmp_path / "train/images/a.png"), mask(tmp_path / "train/labels/a_mask.png", value=255)
    picture(tmp_path / "test/images/b.png", value=60), mask(tmp_path / "test/labels/b.png", value=2)
    picture(tmp_path / "test/images/c.png", value=30)
    (tmp_path / "classes.json").write_text('{"1": "polyp", "2": "tool"}')
    bound = omlab.load_dataset(f"image-masks:{tmp_path}")
    train, b, c = bound.items()
    assert (train.split, b.split, bound.classes) == ("train", "test", ("polyp", "tool"))
    assert c.truth() is None
    truth = train.truth()
    assert isinstance(truth, Segmentation) and truth.counts() == {1: 24} and truth.structures[0].name == "polyp"
    assert b.truth().counts() == {1: 0, 2: 24}
    assert kinds(f"image-masks:{tmp_path}") == {"reference": ["images/c.png"]}


def test_masks_on_another_grid_unknown_values_and_masks_of_nobody_are_found(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png"), mask(tmp_path / "masks/a.png", size=(12, 15))
    picture(tmp_path / "images/b.png"), mask(tmp_path / "masks/b.png", value=9)
    mask(tmp_path / "masks/nobody.png")
    (tmp_path / "classes.json").write_text('["polyp"]')
    found = kinds(f"image-masks:{tmp_path}")
    assert found["grid"] == ["a.png"] and found["reference"] == ["b.png"] and "masks/nobody.png" in found["extra"]


@pytest.fixture
def raw(shared: Path, tmp_path: Path) -> Path:
    """The real CT of the shared data in nnU-Net's layout of version 2."""
    data, root = shared / "data" / "totalsegmentator_example", tmp_path / "Dataset001_Total"
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True)
    shutil.copy(data / "example_ct_sm.nii.gz", root / "imagesTr" / "ct_0000.nii.gz")
    shutil.copy(data / "example_seg.nii.gz", root / "labelsTr" / "ct.nii.gz")
    shutil.copy(data / "example_ct.nii.gz", root / "imagesTs" / "whole_0000.nii.gz")
    names = json.loads((data / "label_names.json").read_text("utf-8"))["total"]
    described = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {name: int(value) for value, name in names.items()},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def test_nnunet_raw_of_version_2(raw: Path) -> None:
    bound = omlab.load_dataset(f"nnunet-raw:{raw}")
    train, test = bound.items()
    assert (train.name, train.split, test.name, test.split) == ("ct", "train", "whole", "test")
    case, truth = train.case(), train.truth()
    assert isinstance(case, Volume) and isinstance(truth, Segmentation)
    assert case.geometry.same_grid(truth.geometry) and test.truth() is None
    assert bound.classes[4] == "liver" and truth.counts()[5] > 10_000
    assert verify(bound).whole
    statistics, read = gather(bound)
    assert statistics.measured["spacing_mm along i"]["median"] == pytest.approx(3.0)
    assert statistics.tables["channels"] == {"_0000": "CT"} and len(read) == 2


def test_nnunet_raw_faults(raw: Path, shared: Path) -> None:
    data = shared / "data" / "totalsegmentator_example"
    shutil.copy(data / "example_ct.nii.gz", raw / "imagesTr" / "grid_0000.nii.gz")
    shutil.copy(data / "example_seg_fast.nii.gz", raw / "labelsTr" / "grid.nii.gz")
    shutil.copy(data / "example_ct_sm.nii.gz", raw / "imagesTr" / "alone_0000.nii.gz")
    (raw / "labelsTr" / "half.nii.gz").write_bytes((data / "example_seg.nii.gz").read_bytes()[:5000])
    shutil.copy(data / "example_ct_sm.nii.gz", raw / "imagesTr" / "half_0000.nii.gz")
    found = {p.kind: p for p in verify(omlab.load_dataset(f"nnunet-raw:{raw}")).problems if p.kind != "extra"}
    assert found["grid"].where == "grid"
    assert found["grid"].what == "the reference has 122 x 101 x 30 voxels, the scan 122 x 101 x 112"
    assert "says 1 training cases, labelsTr has 3" in found["count"].what
    assert found["reference"].where in ("imagesTr/alone", "half")
    (raw / "dataset.json").write_text('{"labels": {"background": 0,')
    with pytest.raises(InputError, match="is no JSON, line 1"):
        list(omlab.load_dataset(f"nnunet-raw:{raw}").items())


def test_nnunet_raw_of_version_1_with_the_real_label_of_amos(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir(), (tmp_path / "labelsTr").mkdir()
    label = shared / "data" / "amos_label" / "amos_0001.nii.gz"
    shutil.copy(label, tmp_path / "labelsTr" / "amos_0001.nii.gz")
    shutil.copy(label, tmp_path / "imagesTr" / "amos_0001_0000.nii.gz")  # any volume on its grid
    (tmp_path / "imagesTr" / "amos_0001_0001.nii.gz").symlink_to(label)
    names = ["background", "spleen", "kidney_right", "kidney_left", "gallbladder", "esophagus", "liver", "stomach"]
    names += ["aorta", "ivc", "pancreas", "adrenal_right", "adrenal_left", "duodenum", "bladder", "prostate_uterus"]
    described = {
        "modality": {"0": "CT", "1": "CT again"},
        "labels": {str(value): name for value, name in enumerate(names)},
        "numTraining": 2,
        "training": [
            {"image": f"./imagesTr/amos_000{n}.nii.gz", "label": f"./labelsTr/amos_000{n}.nii.gz"} for n in (1, 2)
        ],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    (tmp_path / "splits_final.json").write_text('[{"train": [], "val": ["amos_0001"]}]')
    (item,) = omlab.load_dataset(f"nnunet-raw,channel=1,fold=0:{tmp_path}").items("val")
    assert item.files[1].name == "amos_0001_0001.nii.gz" and item.truth().counts()[6] > 100_000
    found = kinds(f"nnunet-raw:{tmp_path}", read=0)
    assert found["missing"] == ["labelsTr/amos_0002"] and found["count"] == ["dataset.json"]
    with pytest.raises(UsageError, match="no channel 2"):
        list(omlab.load_dataset(f"nnunet-raw,channel=2:{tmp_path}").items())


def test_regions_of_nnunet_name_their_values(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    table = {"channel_names": {"0": "T1"}, "file_ending": ".png", "numTraining": 0}
    labels = {"background": 0, "whole tumour": [1, 2], "core": [2]}
    (tmp_path / "dataset.json").write_text(json.dumps(table | {"labels": labels}))
    bound = omlab.load_dataset(f"nnunet-raw:{tmp_path}")
    assert bound.classes == ("whole tumour", "whole tumour + core")
    assert bound.dataset.facts({}, root=tmp_path)["regions"] == {"whole tumour": "1, 2", "core": "2"}


def test_bids_takes_label_maps_or_a_column(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "totalsegmentator_example"
    for subject, session in (("01", "ses-a"), ("01", "ses-b"), ("02", "")):
        inside = Path(f"sub-{subject}") / session / "anat"
        stem = "_".join(part for part in (f"sub-{subject}", session) if part)
        (tmp_path / inside).mkdir(parents=True), (tmp_path / "derivatives" / "total" / inside).mkdir(parents=True)
        shutil.copy(data / "example_mr_sm.nii.gz", tmp_path / inside / f"{stem}_T1w.nii.gz")
        target = tmp_path / "derivatives" / "total" / inside / f"{stem}_desc-total_dseg.nii.gz"
        shutil.copy(data / "example_seg_mr.nii.gz", target)
    (tmp_path / "derivatives" / "total" / "desc-total_dseg.tsv").write_text("index\tname\n1\tspleen\n5\tliver\n")
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\tsplit\nsub-01\tF\ttrain\nsub-02\tM\ttest\n")
    (tmp_path / "dataset_description.json").write_text("{}")
    bound = omlab.load_dataset(f"bids:{tmp_path}")
    assert [(i.name, i.split, i.group) for i in bound.items()] == [
        ("sub-01_ses-a_T1w", "train", "sub-01"),
        ("sub-01_ses-b_T1w", "train", "sub-01"),
        ("sub-02_T1w", "test", "sub-02"),
    ]
    assert verify(bound).whole
    structures = {s.value: s.name for s in next(bound.items()).truth().structures}
    assert structures[5] == "liver" and structures[2] == "label 2"
    by_sex = omlab.load_dataset(f"bids,column=sex:{tmp_path}")
    assert by_sex.classes == ("F", "M") and [i.truth().best for i in by_sex.items()] == ["F", "F", "M"]
    with pytest.raises(UsageError, match="has no column 'age'"):
        list(omlab.load_dataset(f"bids,column=age:{tmp_path}").items())


# Image folders, parts, names


def test_image_folder_of_real_x_rays(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(shared / "data" / "pneumonia_mnist" / "pneumoniamnist.npz") as arrays:
        for split in ("train", "val", "test"):
            for number in range(20):
                label = "pneumonia" if arrays[f"{split}_labels"][number, 0] else "normal"
                folder = tmp_path / "xray" / split / label
                folder.mkdir(parents=True, exist_ok=True)
                Pillow.fromarray(arrays[f"{split}_images"][number]).save(folder / f"{number}.png")
    name = f"image-folder:{tmp_path / 'xray'}"
    bound = omlab.load_dataset(name)
    everything = [item.name for item in bound.items()]
    parts = [[item.name for item in omlab.load_dataset(name, part=(n, 3)).items()] for n in range(3)]
    assert sorted(item for part in parts for item in part) == sorted(everything) and {len(part) for part in parts} == {
        20
    }
    assert bound.size() == 60 and omlab.load_dataset(name, part=(2, 7)).size() == 9
    assert main(["dataset", "verify", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cases"] == {"train": 20, "val": 20, "test": 20}
    out = tmp_path / "out"
    assert main(["dataset", "show", name, "--sample", "7", "-o", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["statistics"]["splits"] == {"train": 20, "val": 20, "test": 20}
    assert sum(shown["statistics"]["classes"]["test"].values()) == 20
    assert shown["statistics"]["measured"]["rows"] == {"min": 28, "median": 28, "max": 28}
    with Pillow.open(out / "cases.png") as sheet:
        assert sheet.size[0] > 1300 and np.asarray(sheet).std() > 20
    page = (out / "dataset.html").read_text("utf-8")
    assert "pneumonia" in page and "data:image/png;base64," in page


@pytest.mark.parametrize("part", [(3, 3), (-1, 2), (0, 0)])
def test_parts_that_are_none_are_refused(part: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no part"):
        omlab.load_dataset(f"image-folder:{tmp_path}", part=part)


def test_names_carry_options_and_paths() -> None:
    named = parse("image-table,label=a,label=b,table=x y.csv:/data/ä b:c")
    assert (named.name, named.path) == ("image-table", "/data/ä b:c")
    assert named.options == {"label": ["a", "b"], "table": "x y.csv"}
    with pytest.raises(UsageError, match="'oops' is no option"):
        parse("image-table,oops:/data")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("image-table,tabel=x:{}", "Did you mean 'table'"),
        ("nnunet-raw,channel=x:{}", "takes int, found 'x'"),
        ("nnunet-raw,channel=1,channel=2:{}", "was given 2 times"),
        ("image-folder:{}/nowhere", "is not a folder"),
        ("image-folder", "is named as image-folder:PATH"),
        ("mni152:{}", "is named as mni152"),
    ],
)
def test_names_that_do_not_fit_are_told(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dataset", "verify", name.format(tmp_path)]) in (1, 2)
    assert message in capsys.readouterr().err


def test_an_unknown_split_names_those_that_there_are(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "show", f"image-table:{table}", "--split", "dev"]) == 2
    assert "It has: train, val, test" in capsys.readouterr().err


# Datasets that have to be obtained

HAND = """
api = 1
[[dataset]]
name = "hand"
summary = "A dataset for tests"
modality = ["ct"]
task = ["segmentation"]
inputs = ["image"]
splits = ["test"]
takes-path = true
obtain = ["Ask the authors for access", "Unpack hand.zip"]
layout = ["images/*.png", "index.json"]
limits = "Not for models that have seen it"
labels = [{ value = 1, name = "kidney" }, { value = 2, name = "stone" }]
licence = { spdx = "CC-BY-NC-SA-4.0", url = "https://example.org/licence" }
[dataset.counts]
test = 3
"""
CODE = """
from functools import partial
from omlab import Dataset, Item, hookimpl, read
from omlab.datasets.folders import file_names, label_map
from omlab.results import Label
class Hand(Dataset):
    def items(self, files, *, split=None, root=None):
        structures = tuple(map(Label.of, self.card.labels))
        for name in file_names(root / "images"):
            image, mask = root / "images" / name, root / "masks" / name
            yield Item(name=name, split="test", read=partial(read, image), files=(image, mask),
                       reference=partial(label_map, mask, structures))
@hookimpl
def omlab_dataset(card):
    return Hand(card)
"""


@pytest.fixture
def hand(install_plugin: Callable[..., Path]) -> None:
    install_plugin("hand", manifest=HAND, code=CODE)


def test_what_is_obtained_by_hand_is_told_step_by_step(
    hand: None, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dataset", "fetch", "hand"]) == 1
    told = capsys.readouterr().out
    assert "1. Ask the authors" in told and str(own_home / "datasets" / "hand") in told and "CC-BY-NC-SA-4.0" in told
    assert main(["dataset", "fetch", "hand", "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["by_hand"]) == 4
    assert main(["dataset", "verify", "hand"]) == 1
    assert "omlab dataset fetch hand lists the steps" in capsys.readouterr().err
    assert main(["dataset", "show", "hand"]) == 0
    assert "Not for models that have seen it" in capsys.readouterr().out
    assert main(["dataset", "list", "--json"]) == 0
    row = next(row for row in json.loads(capsys.readouterr().out) if row["name"] == "hand")
    assert (row["cases"], row["obtained"], row["licence"]) == (3, "by hand", "CC-BY-NC-SA-4.0")


def test_where_it_should_lie_it_is_found_and_checked(
    hand: None, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "elsewhere" / "hand"
    monkeypatch.setenv("OMLAB_DATASETS", str(tmp_path / "nowhere") + ":" + str(tmp_path / "elsewhere"))
    for name in "abc":
        picture(root / "images" / f"{name}.png"), mask(root / "masks" / f"{name}.png")
    assert main(["dataset", "verify", "hand", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(p["kind"], p["where"]) for p in found["problems"]] == [("layout", "index.json"), ("absent", "test")]
    (root / "index.json").write_text("{}")
    assert main(["dataset", "verify", "hand"]) == 0
    assert "no case has 'stone'" in capsys.readouterr().out
    assert main(["dataset", "fetch", "hand"]) == 0
    assert f"hand is here: {root}" in capsys.readouterr().out
    (root / "images" / "c.png").unlink()
    assert main(["dataset", "verify", "hand", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["problems"]
    assert {"kind": "count", "where": "test", "what": "has 2 cases, 3 are published", "error": True} in found


def test_half_downloaded_archives_are_found(hand: None, tmp_path: Path) -> None:
    root = tmp_path / "hand"
    picture(root / "images" / "a.png"), mask(root / "masks" / "a.png")
    (root / "index.json").write_text("{}")
    with zipfile.ZipFile(root / "whole.zip", "w") as archive:
        archive.write(root / "index.json", "index.json")
    data = (root / "whole.zip").read_bytes()
    (root / "cut.zip").write_bytes(data[: len(data) // 2])
    (root / "next.zip.part").write_bytes(b"x")
    (root / "empty.tar").touch()
    # The end of a split archive whose last part is number 2: .z01 is here, .z02 is not.
    (root / "split.zip").write_bytes(struct.pack("<4s4H2LH", b"PK\5\6", 2, 2, 0, 0, 0, 0, 0))
    (root / "split.z01").write_bytes(b"PK")
    found = kinds(f"hand:{root}")
    assert found["unfinished"] == ["cut.zip", "empty.tar", "next.zip.part"] and found["missing"] == ["split.z02"]


def test_a_defect_of_a_plugin_is_a_problem_of_one_case(hand: None, tmp_path: Path) -> None:
    root = tmp_path / "hand"
    for name in "ab":
        picture(root / "images" / f"{name}.png"), mask(root / "masks" / f"{name}.png")
    (root / "index.json").write_text("{}")
    bound = omlab.load_dataset(f"hand:{root}")
    items = bound.dataset.items
    bound.dataset.items = lambda *a, **k: (  # type: ignore[method-assign]
        attrs.evolve(item, read=lambda: 1 / 0) if item.name == "a.png" else item for item in items(*a, **k)
    )
    found = verify(bound)
    assert [(p.where, p.what.partition(":")[0]) for p in found.problems if p.kind == "damaged"] == [
        ("a.png", "ZeroDivisionError")
    ]
    assert found.read == 2


def test_one_image_in_two_splits_and_classes_that_a_split_lacks_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(8):
        picture(tmp_path / f"{number}.png", value=20 * number)
    shutil.copy(tmp_path / "1.png", tmp_path / "7.png")
    rows = [f"{n}.png,{'abc'[n % 3] if n < 6 else 'a'},{'train' if n < 6 else 'test'}" for n in range(8)]
    (tmp_path / "list.csv").write_text("image,label,split\n" + "\n".join(rows) + "\n")
    found = verify(omlab.load_dataset(f"image-table:{tmp_path}"))
    assert [(p.kind, p.where, p.what) for p in found.problems] == [
        ("twin", "7.png", "is the same, in test, as '1.png' in train"),
        ("absent", "test", "no case is of 'b'"),
        ("absent", "test", "no case is of 'c'"),
    ]
    assert found.whole  # the files are right; it is for the user to judge
    assert main(["dataset", "verify", f"image-table:{tmp_path}"]) == 0
    assert "remark  twin" in capsys.readouterr().out
