"""Small trees of the four layouts, with real MP4 files that are written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import omlab
from omlab.cases import Video
from omlab.datasets import gather, verify
from omlab.errors import InputError

av = pytest.importorskip("av")


def movie(path: Path, frames: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            pixels = np.full((48, 64, 3), 20 * number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return path


def test_clips_of_the_list_or_of_the_folder(tmp_path: Path) -> None:
    for name in ("b ü.mp4", "a.mp4", "c.mp4"):
        movie(tmp_path / "pretrain" / name)
    bound = omlab.load_dataset(f"endo-fm-pretraining:{tmp_path}")
    assert [item.name for item in bound.items()] == ["a.mp4", "b ü.mp4", "c.mp4"]
    assert bound.dataset.write_list(tmp_path).read_text("utf-8").splitlines()[1] == "pretrain/b ü.mp4,-1"
    (tmp_path / "pretrain" / "train.csv").write_text("pretrain/c.mp4,-1\npretrain/lost.mp4,-1\n")
    assert [item.name for item in bound.items()] == ["c.mp4", "lost.mp4"]
    case = next(bound.items()).case()
    assert isinstance(case, Video) and case.frame_count == 12
    found = verify(bound)
    assert found.totals == {"extra": 2, "missing": 1, "count": 1}
    (tmp_path / "pretrain" / "c.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    assert verify(bound).totals["damaged"] == 1
    (tmp_path / "pretrain" / "train.csv").write_text("pretrain/c.mp4,1\n")
    with pytest.raises(InputError, match="has the label '1'"):
        list(bound.items())


def test_polypdiag_has_labels_from_its_lists(tmp_path: Path) -> None:
    for name in ("n1", "a1", "a2"):
        movie(tmp_path / "videos" / f"{name}.mp4")
    (tmp_path / "train.txt").write_text("old/place/n1.mp4,0\na1.mp4,1\n")
    (tmp_path / "val.txt").write_text("a2.mp4,1\n")
    bound = omlab.load_dataset(f"polypdiag:{tmp_path}")
    assert [(i.name, i.split, i.truth().best) for i in bound.items()] == [
        ("n1.mp4", "train", "normal"), ("a1.mp4", "train", "abnormal"), ("a2.mp4", "val", "abnormal"),
    ]  # fmt: skip
    problems = verify(bound).problems
    assert {p.kind for p in problems if p.error} == {"count"}
    assert [(p.where, p.what) for p in problems if not p.error] == [("val", "no case is of 'normal'")]
    (tmp_path / "val.txt").write_text("a2.mp4,1\na1.mp4,1\n")
    assert [p.what for p in verify(bound).problems if p.kind == "leak"] == ["is in both train and val"]
    (tmp_path / "val.txt").write_text("a2.mp4,polyp\n")
    with pytest.raises(InputError, match="'polyp' is neither 0 nor 1"):
        list(bound.items("val"))


@pytest.fixture
def cvc(tmp_path: Path) -> Path:
    for number in range(1, 11):
        pixels = np.full((20, 30, 3), 20 * number, np.uint8)
        mask = np.zeros((20, 30), np.uint8)
        mask[:number, :10], mask[19] = 255, 100
        for folder, array in (("Original", pixels), ("Ground Truth", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Pillow.fromarray(array).save(tmp_path / folder / f"{number}.tif")
    (tmp_path / "train.txt").write_text("1, 4\n5, 3\n")
    (tmp_path / "test.txt").write_text("8, 3\n5, 3\n")
    return tmp_path


def test_clips_of_cvc_are_frames_of_a_list_in_order(cvc: Path) -> None:
    bound = omlab.load_dataset(f"cvc-12k:{cvc}")
    items = list(bound.items("test"))
    case, truth = items[0].case(), items[0].truth()
    assert case.frame_count == 3 and [int(case.at([n])[0, 0, 0, 0]) for n in range(3)] == [160, 180, 200]
    assert [int(labels.sum()) for labels in truth.labels] == [80, 90, 100]
    leaks = [(p.where, p.error) for p in verify(bound).problems if p.kind == "leak"]
    assert leaks == [("clip 5", False)]
    assert len(gather(bound)[1]) == 4


def test_faults_of_cvc(cvc: Path) -> None:
    (cvc / "Ground Truth" / "9.tif").unlink()
    (cvc / "Original" / "2.tif").write_bytes(b"II*\0")
    found = verify(omlab.load_dataset(f"cvc-12k:{cvc}")).totals
    assert found["missing"] == 1
    (cvc / "test.txt").write_text("8; 3\n")
    with pytest.raises(InputError, match="has 1 cells, 2 were expected"):
        list(omlab.load_dataset(f"cvc-12k:{cvc}").items())
    (cvc / "test.txt").write_text("8, three\n")
    with pytest.raises(InputError, match="two whole numbers"):
        list(omlab.load_dataset(f"cvc-12k:{cvc}").items())


def test_boxes_of_kumc(tmp_path: Path) -> None:
    box = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object>"
    for number in (1, 2, 10):
        for folder in ("Image", "Annotation"):
            (tmp_path / "test2019" / folder / "7").mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(np.full((20, 30), number, np.uint8)).save(tmp_path / "test2019/Image/7" / f"{number}.png")
    notes = tmp_path / "test2019" / "Annotation" / "7"
    (notes / "2.xml").write_text(f"<annotation>{box.format('adenomatous', 1)}</annotation>")
    (notes / "10.xml").write_text(
        f"<annotation>{box.format('hyperplastic', 3)}{box.format('adenomatous', 4)}</annotation>"
    )
    (item,) = omlab.load_dataset(f"kumc-polyps:{tmp_path}").items("test")
    truth = item.truth()
    assert truth.frames.tolist() == [1, 2, 2] and truth.labels.tolist() == [0, 1, 0]
    assert truth.boxes[1].tolist() == [3, 2, 9, 8] and item.case().frame_count == 3
    for text, message in (
        ("<annotation><object>", "cannot be read"),
        (f"<annotation>{box.format('stone', 1)}</annotation>", "'stone' is no class"),
        (f"<annotation>{box.format('adenomatous', 9)}</annotation>", "is empty"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "no plain annotation"),
    ):
        (notes / "2.xml").write_text(text)
        with pytest.raises(InputError, match=message):
            item.truth()
