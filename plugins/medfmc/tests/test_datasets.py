"""The five sets on upstream's own lists: parts, positives, few-shot lists with their overlaps, faults."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import omlab
from omlab.cli.main import main
from omlab.datasets import gather, verify
from omlab.errors import InputError, UsageError

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "medfmc"


@pytest.fixture
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip("needs the folder of upstream's lists beside the project")
    return DATA


@pytest.mark.parametrize(
    ("name", "counts", "positives"),
    [
        ("chest", {"train": 979, "test": 1161, "challenge": 2708}, (428, 199, 273)),
        ("colon", {"train": 2358, "test": 3296, "challenge": 4355}, (2296, 1000)),
        ("endo", {"train": 929, "test": 881, "challenge": 2055}, (196, 222, 69, 0)),
        ("neojaundice", {"train": 444, "test": 1791}, (1020, 771)),
        ("retino", {"train": 282, "test": 1110}, (90, 20, 384, 404, 212)),
    ],
)
def test_parts_have_the_published_numbers(
    data: Path, name: str, counts: dict[str, int], positives: tuple[int, ...]
) -> None:
    bound = omlab.load_dataset(f"medfmc-{name}:{data}")
    statistics, _ = gather(bound, sample=0)
    assert statistics.splits == counts and bound.size() == sum(counts.values())
    found = [statistics.classes["test"].get(label, 0) for label in bound.classes[: len(positives)]]
    assert found == list(positives)
    problems = verify(bound, read=0).problems
    assert {p.kind for p in problems if p.error} <= {"missing"}  # the images are not here
    assert not [p for p in problems if p.kind == "count"]


def test_studies_are_groups(data: Path) -> None:
    groups = {
        name: next(omlab.load_dataset(f"medfmc-{name}:{data}").items()).group
        for name in ("chest", "colon", "endo", "neojaundice", "retino")
    }
    assert groups["colon"] == "2019-10327-1-1-1_2019-05-28 17_55_39-lv1-47692-11609-5464-5695"
    assert groups["endo"] == "13333_2021.11_0002" and groups["neojaundice"] == "0012"
    assert groups["chest"] == groups["retino"] == ""
    images = omlab.load_dataset(f"medfmc-neojaundice:{data}").items("test")
    assert len({item.group for item in images}) == 1791 // 3


@pytest.mark.parametrize(
    ("name", "shots", "lines", "both"),
    [("chest", 1, 19, 19), ("chest", 5, 91, 76), ("chest", 10, 170, 148), ("endo", 1, 46, 42), ("colon", 10, 512, 0)],
)
def test_released_few_shot_lists_are_given_as_they_are(
    data: Path, name: str, shots: int, lines: int, both: int
) -> None:
    bound = omlab.load_dataset(f"medfmc-{name},shots={shots},experiment=1:{data}")
    train = list(bound.items("train"))
    images = {item.name.partition("#")[0] for item in train}
    validation = {item.name.partition("#")[0] for item in bound.items("val")}
    assert len(images) == lines and len(images & validation) == both
    if name == "chest":
        assert len(train) == 19 * shots and len({item.name for item in train}) == len(train)
    dropped = omlab.load_dataset(f"medfmc-{name},shots={shots},overlap=drop:{data}")
    assert not images & {item.name.partition("#")[0] for item in dropped.items("val")}
    leaks = [p for p in verify(bound, read=0).problems if p.kind == "leak"]
    assert not any(p.error for p in leaks)  # upstream's lists are what they are
    assert any(p.what == "is in both train and val" for p in leaks) == bool(both)


def test_upstreams_files_and_train_20_are_taken_where_they_are(tmp_path: Path) -> None:
    lines = {
        "endo_trainval": "a_b.png 1 0 0 0\nc.png 0 1 1 0\nd.png 0 0 0 0\n",
        "train_20": "a_b.png 1 0 0 0\nc.png 0 1 1 0\n",
        "val_20": "d.png 0 0 0 0\n",
        "test_WithLabel": "e f.png 0 0 0 1\n",
        "test_WithoutLabel": "g.png\n",
        "endo_1-shot_train_exp2": "c.png 0 1 1 0\nc.png 0 1 1 0\n",
        "endo_1-shot_val_exp2": "c.png 0 1 1 0\nd.png 0 0 0 0\n",
    }
    for name, text in lines.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "images").mkdir()
    for image in ("a_b.png", "c.png", "d.png", "e f.png", "g.png"):
        Pillow.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / image)
    bound = omlab.load_dataset(f"medfmc-endo:{tmp_path}")
    assert [(i.name, i.split) for i in bound.items()] == [
        ("a_b.png", "train"), ("c.png", "train"), ("d.png", "val"), ("e f.png", "test"), ("g.png", "challenge"),
    ]  # fmt: skip
    truths = {i.name: i.truth() for i in bound.items()}
    assert truths["c.png"].probabilities.tolist() == [0, 1, 1, 0] and truths["g.png"] is None
    few = omlab.load_dataset(f"medfmc-endo,shots=1,experiment=2:{tmp_path}")
    assert [i.name for i in few.items("train")] == ["c.png", "c.png#2"]
    assert few.items("val") and next(few.items("val")).case().pixels.shape == (8, 8, 3)
    kinds = {p.kind for p in verify(bound).problems if p.error}
    assert kinds == {"count", "layout"}  # a tiny set, its test list not named after it
    assert {p.kind for p in verify(few).problems} >= {"leak"}
    with pytest.raises(UsageError, match="no lists of 3 shots"):
        list(omlab.load_dataset(f"medfmc-endo,shots=3:{tmp_path}").items("train"))
    with pytest.raises(InputError, match=r"has no endo_5-shot_train_exp1\.txt"):
        list(omlab.load_dataset(f"medfmc-endo,shots=5:{tmp_path}").items("train"))


def test_lists_that_do_not_fit_are_told(tmp_path: Path, data: Path) -> None:
    shutil.copy(data / "chest_test_WithLabel.txt.gz", tmp_path)
    with pytest.raises(InputError, match="has no list chest_trainval.txt"):
        list(omlab.load_dataset(f"medfmc-chest:{tmp_path}").items())
    half = (data / "chest_trainval.txt.gz").read_bytes()
    (tmp_path / "chest_trainval.txt.gz").write_bytes(half[: len(half) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        list(omlab.load_dataset(f"medfmc-chest:{tmp_path}").items())
    (tmp_path / "chest_trainval.txt.gz").write_bytes(half)
    (tmp_path / "few_shot_splits.json").write_text('{"chest": {"1": {"1": {"train": [5000], "val": []}}}}')
    with pytest.raises(InputError, match="has no 1-shot lists of chest"):
        list(omlab.load_dataset(f"medfmc-chest,shots=1:{tmp_path}").items("train"))
    assert main(["dataset", "verify", f"medfmc-chest:{tmp_path}", "--read", "0"]) == 1
    assert main(["dataset", "fetch", "medfmc-chest"]) == 1
