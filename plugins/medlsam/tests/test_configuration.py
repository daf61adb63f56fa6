"""Upstream's configuration files, key by key, and their scans as a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omlab.api import load_dataset
from omlab.errors import InputError, UsageError
from omlab_medlsam import configuration
from omlab_medlsam.command import steps

DATA = {
    "support_image_ls": "si.txt", "support_label_ls": "sl.txt", "query_image_ls": "qi.txt", "fg_class": "[1, 3]",
    "bbox_mode": "WPL",
}  # fmt: skip


@pytest.fixture
def written(tmp_path: Path):
    def write(rest: str = "", **changed: str | None) -> Path:
        lines = [f"{key} = {value}" for key, value in (DATA | changed).items() if value is not None]
        path = tmp_path / "config.txt"
        path.write_text("\n".join(["[data]", *lines, rest]))
        return path

    return write


def test_a_short_one(written) -> None:
    found = configuration.read(written())
    assert found.supports == ("si.txt", "sl.txt")
    assert found.queries == ("qi.txt", None)
    assert found.classes == (1, 3)
    assert found.options() == {"mode": "whole", "scales": "feature0,feature1,feature2"}
    assert found.variant == "medsam"
    assert found.out is found.medlam is found.sam is None


def test_a_long_one(written) -> None:
    weights = "[weight]\nmedlam_load_path = a/medlam.pth\nvit_load_path = a/sam_vit_b_01ec64.pth\n"
    path = written(
        f"[vit]\nnet_type = vit_b\n{weights}", bbox_mode="SPL", slice_interval="3", fg_class="7",
        feature_scale_ls="['feature2', 'feature0']", query_label_ls="ql.txt", gt_slice_threshold="10",
        seg_save_path="out", seg_png_save_path="png",
    )  # fmt: skip
    found = configuration.read(path)
    assert found.options() == {"mode": "parts", "scales": "feature0,feature2", "interval": 3}
    assert (found.classes, found.queries[1], found.out) == ((7,), "ql.txt", "out")
    assert (found.medlam, found.sam, found.variant) == ("a/medlam.pth", "a/sam_vit_b_01ec64.pth", "sam")


@pytest.mark.parametrize(
    ("text", "scales"),
    [("[]", "none"), ("", "none"), ("[feature1, feature0]", "feature0,feature1"), ("feature2", "feature2")],
)
def test_scales(written, text: str, scales: str) -> None:
    assert configuration.read(written(feature_scale_ls=text)).options()["scales"] == scales


def test_the_interval_is_for_parts_alone(written) -> None:
    for text in ("False", "2"):
        assert configuration.read(written(slice_interval=text)).interval is None


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"bbox_mod": "WPL"}, r"\[data\] has the unknown key 'bbox_mod'"),
        ({"rest": "[model]\na = 1"}, r"unknown section \[model\]"),
        ({"rest": "[vit]\nnet_type = vit_h"}, "net_type is 'vit_h'"),
        ({"fg_class": None, "bbox_mode": None}, r"\[data\] lacks fg_class, bbox_mode"),
        ({"query_image_ls": ""}, "lacks query_image_ls"),
        ({"fg_class": "[1, 1]"}, "fg_class is"),
        ({"fg_class": "[0]"}, "fg_class is"),
        ({"fg_class": "liver"}, "fg_class is 'liver'"),
        ({"bbox_mode": "wpl"}, "bbox_mode is 'wpl', WPL or SPL"),
        ({"bbox_mode": "SPL"}, "slice_interval is None"),
        ({"bbox_mode": "SPL", "slice_interval": "False"}, "slice_interval is False"),
        ({"feature_scale_ls": "[1, 2]"}, "feature_scale_ls has 1"),
        ({"gt_slice_threshold": "few"}, "gt_slice_threshold is 'few'"),
        ({"support_image_ls": "12"}, "support_image_ls is 12, a path"),
        ({"fg_class": "__import__('os').getpid()"}, "fg_class is .__import__"),
    ],
)
def test_what_is_wrong_is_told(written, changed: dict[str, str | None], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        configuration.read(written(**changed))


def test_what_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        configuration.read(tmp_path / "none.txt")
    for text in ("fg_class = [1]", "[data]\na = 1\na = 2"):
        (tmp_path / "c.txt").write_text(text)
        with pytest.raises(InputError, match="is no INI text"):
            configuration.read(tmp_path / "c.txt")


def test_scans_and_organs(written, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    labels = np.arange(27, dtype=np.int16).reshape(3, 3, 3) % 4
    for folder in ("1", "2", "3"):
        (tmp_path / folder).mkdir()
        for name in ("data", "label"):
            nibabel.Nifti1Image(labels, np.eye(4)).to_filename(tmp_path / folder / f"{name}.nii.gz")
    (tmp_path / "si.txt").write_text("1/data.nii.gz\n2/data.nii.gz\n")
    (tmp_path / "sl.txt").write_text("1/label.nii.gz\n2/label.nii.gz\n")
    (tmp_path / "qi.txt").write_text(f"{tmp_path / '3' / 'data.nii.gz'}\n")
    written()
    dataset = load_dataset(f"medlsam-config,file=config.txt,names=word:{tmp_path}")
    items = list(dataset.items())
    assert [(item.name, item.split) for item in items] == [
        ("train-1-data", "train"), ("train-2-data", "train"), ("test-data", "test"),
    ]  # fmt: skip
    truth = items[0].truth()
    assert [(label.value, label.name) for label in truth.structures] == [(1, "liver"), (3, "kidney left")]
    np.testing.assert_array_equal(truth.labels, np.where(labels == 2, 0, labels))
    assert items[0].case().voxels.shape == (3, 3, 3)
    assert items[2].truth() is None
    plain = load_dataset(f"medlsam-config,file=config.txt:{tmp_path}")
    assert plain.dataset.classes(tmp_path) == ("class 1", "class 3")
    (tmp_path / "sl.txt").write_text("1/label.nii.gz\n")
    with pytest.raises(InputError, match="lists 2 scans, .* 1 label maps"):
        list(dataset.items("train"))
    (tmp_path / "qi.txt").unlink()
    with pytest.raises(InputError, match=r"qi.txt: cannot be read.*begin at the folder"):
        list(dataset.items("test"))
    with pytest.raises(UsageError, match="needs a configuration"):
        list(load_dataset(f"medlsam-config:{tmp_path}").items())


def test_scores_need_references(written, tmp_path: Path) -> None:
    path = written()
    (tmp_path / "qi.txt").write_text("a.nii.gz\n")
    found = configuration.read(path)
    with pytest.raises(UsageError, match="no query_label_ls"):
        steps(found, path, tmp_path, tmp_path / "out", score=True)
    assert [step[0] for step in steps(found, path, tmp_path, tmp_path / "out")] == ["adapt", "run"]
    with pytest.raises(UsageError, match="a comma or a colon"):
        steps(found, tmp_path / "a,b.txt", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(("failing", "taken"), [("adapt", ["adapt"]), ("run", ["adapt", "run", "evaluate"])])
def test_a_scan_that_fails_leaves_the_scores_of_the_others(
    written, tmp_path: Path, monkeypatch, failing: str, taken: list[str]
) -> None:
    from omlab.cli import main as cli

    path, seen, real = written(query_label_ls="ql.txt"), [], cli.main
    (tmp_path / "qi.txt").write_text("a.nii.gz\n")

    def fake(arguments: list[str]) -> int:
        seen.append(arguments[0])
        return int(arguments[0] == failing)

    monkeypatch.setattr(cli, "main", fake)
    code = real(["medlsam", str(path), "--folder", str(tmp_path), "-o", str(tmp_path / "out"), "--score"])
    assert (code, seen) == (1, taken)
