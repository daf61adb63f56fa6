"""From a dataset of label maps to a model directory that segments."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("omlab_stunet")

import omlab
from omlab.adapting import adapt
from omlab.api import load_dataset
from omlab.errors import InputError, UsageError
from omlab.geometry import Geometry
from omlab.plugins import Registry
from omlab.results import Label, Segmentation
from omlab.results.nifti import write_segmentation
from omlab.vocabulary import Kind
from omlab_segmenter_tuning.adapter import SegmenterTuning

FAST = {
    "epochs": 1, "batches": 2, "batch": 1, "patch": 32, "spacing": 6.0, "optimiser": "adamw", "lr": 1e-3,
    "augment": "intensity", "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


def raw(folder: Path, cases: int = 2, *, labelled: bool = True, shifted: bool = False, same: bool = False) -> Path:
    """A dataset in nnU-Net's layout: a ball of label 3 in a box of tissue."""
    import SimpleITK as sitk

    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0, "ball": 3}, "file_ending": ".nii.gz"})
    )
    affine = np.diag([-6.0, -6.0, 6.0, 1.0])
    for number in range(cases):
        shape = (36, 34, 32)
        at = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
        ball = ((at - np.array([18, 16, 14 + (0 if same else number)])[:, None, None, None]) ** 2).sum(0) < 60
        generator = np.random.default_rng(0 if same else number)
        scan = np.where(ball, 200, 20) + generator.normal(0, 5, shape)
        image = sitk.GetImageFromArray(scan.astype(np.int16).transpose(2, 1, 0))
        image.SetSpacing((6, 6, 6))
        sitk.WriteImage(image, str(folder / "imagesTr" / f"case{number}_0000.nii.gz"))
        moved = affine.copy()
        moved[:3, 3] = 3.0 if shifted else 0.0
        labels = (ball if labelled else np.zeros_like(ball)).astype(np.uint8) * 3
        result = Segmentation(labels=labels, structures=(Label(value=3, name="ball"),), geometry=Geometry(shape, moved))
        write_segmentation(result, folder / "labelsTr" / f"case{number}.nii.gz")
    return folder


def make(registry: Registry, dataset: Path, out: Path, base: str | Path = "stunet", **options: object) -> dict:
    loaded = omlab.load(base, variant="small-scratch" if base == "stunet" else None, registry=registry)
    bound = load_dataset(f"nnunet-raw:{dataset}", registry=registry)
    return adapt(loaded, "segmenter-tuning", bound, out, options=FAST | options, registry=registry)


def test_a_model_directory_learns_runs_and_learns_on(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMLAB_HOME", str(tmp_path / "home"))
    dataset = raw(tmp_path / "Dataset001_Ball")
    out = tmp_path / "balls"
    report = make(registry, dataset, out)
    assert report["train_images"] == 2
    assert report["steps"] == 2
    assert 0 <= report["val_dice"] <= 1
    assert any("no val split" in remark for remark in report["remarks"])
    assert (out / "report.html").is_file()
    assert not list(out.rglob("*.npy"))
    model = omlab.load(out, registry=registry, engine="torch", precision="float32")
    assert [(label.value, label.name) for label in model.card.labels] == [(3, "ball")]
    assert [label.name for label in model.variant.labels] == ["ball"]
    outcome = model.run(dataset / "imagesTr" / "case0_0000.nii.gz")
    assert outcome.result.labels.shape == (36, 34, 32)
    assert set(np.unique(outcome.result.labels)) <= {0, 1, 2, 3}
    again = make(registry, dataset, tmp_path / "more", base=out, optimiser="recipe", lr=0.0)
    assert again["training"]["lr"] == 1e-3  # what is learnt on begins with the rate of fine-tuning
    assert not (tmp_path / "more" / "base" / "network.safetensors").exists()


def test_a_case_that_does_not_fit_is_named_and_the_rest_goes_on(registry: Registry, tmp_path: Path) -> None:
    dataset = raw(tmp_path / "d")
    (dataset / "imagesTr" / "case0_0000.nii.gz").write_bytes(b"no scan")
    report = make(registry, dataset, tmp_path / "out")
    assert report["train_images"] == 1
    assert "case0" in report["train_failed"][0]


def test_what_cannot_be_learnt_from(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training case with a structure"):
        make(registry, raw(tmp_path / "empty", labelled=False), tmp_path / "out")
    with pytest.raises(InputError, match="no training case with a structure"):
        make(registry, raw(tmp_path / "shifted", shifted=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_scan_in_two_splits(registry: Registry, tmp_path: Path) -> None:
    dataset = raw(tmp_path / "d", same=True)
    (dataset / "splits_final.json").write_text(json.dumps([{"train": ["case0"], "val": ["case1"]}]))
    loaded = omlab.load("stunet", variant="small-scratch", registry=registry)
    bound = load_dataset(f"nnunet-raw,fold=0:{dataset}", registry=registry)
    with pytest.raises(InputError, match="also in the split val"):
        adapt(loaded, "segmenter-tuning", bound, tmp_path / "out", options=FAST, registry=registry)


@pytest.mark.parametrize(("name", "value"), [("epochs", -1), ("spacing", -2.0), ("foreground", 1.5)])
def test_options_out_of_range(registry: Registry, tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        make(registry, raw(tmp_path / "d"), tmp_path / "out", **{name: value})


def test_windows_that_do_not_fit_the_network(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sides are multiples of 16 x 16 x 32, found a patch of 33"):
        make(registry, raw(tmp_path / "d"), tmp_path / "out", patch=33)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_recipe(registry: Registry, tmp_path: Path) -> None:
    adapter = SegmenterTuning(registry.card(Kind.ADAPTER, "segmenter-tuning"))
    options = {o.name: o.default for o in adapter.card.options} | {"shots": 0, "seed": 0, "duplicates": "refuse"}
    base = SimpleNamespace(model=object(), card=SimpleNamespace(name="other"))
    with pytest.raises(UsageError, match="no recipe"):
        adapter.adapt(base, None, tmp_path, options)  # type: ignore[arg-type]
