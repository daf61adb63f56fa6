"""Training on folders of features, and the models that come of it; from a slide to a class without shortcuts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

import omlab  # noqa: E402
from omlab.errors import InputError  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.results.slide_features import FeatureWriter  # noqa: E402
from omlab.running import run  # noqa: E402
from omlab.vocabulary import InputKind, Kind  # noqa: E402
from omlab_clam.adapter import rate  # noqa: E402
from omlab_clam.dataset import FeatureFolder  # noqa: E402
from omlab_sdk.contract import samples  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402

WIDTH = 192


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """BROW's smallest size with name-seeded weights, fetched by hand like any other file."""
    monkeypatch.setenv("OMLAB_HOME", str(tmp_path / "home"))
    from omlab_brow.network import SIZES, VisionTransformer

    path = tmp_path / "tiny.pth"
    torch.save(seed_module(VisionTransformer(**SIZES["vit_tiny"])).state_dict(), path)
    licence = Registry.discover().card(Kind.MODEL, "brow").licence_weights.spdx
    omlab.pull("brow", variant="tiny", files={"net": path}, accept=[licence])
    return omlab.load("brow", variant="tiny", engine="torch", accept=[licence])


def _write(path: Path, features: np.ndarray) -> None:
    coords = np.stack([np.arange(len(features)) * 256, np.zeros(len(features))], axis=1).astype(np.int64)
    writer = FeatureWriter(path, coords, features.shape[1], {"patch_size": 256, "name": path.stem}, 0)
    writer.append(features.astype(np.float32))
    writer.finish()


def _slides(root: Path, counts: dict[str, int]) -> None:
    """Slides of two classes; in one of them a few patches stand out."""
    generator = np.random.default_rng(0)
    rows = []
    for split, count in counts.items():
        for number in range(count):
            positive = number % 2
            features = generator.normal(0, 1, (30, WIDTH))
            if positive:
                features[:6, :20] += 3
            name = f"{split}{number}"
            _write(root / "h5_files" / f"{name}.h5", features)
            rows.append([name, f"patient-{name}", ("normal", "tumor")[positive], split])
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["slide_id", "case_id", "label", "split"], *rows])


OPTIONS = {"epochs": 12, "lr": 2e-3, "k": 4, "dropout": False}


@pytest.mark.parametrize("network", ["sb", "mb", "max", "mean"])
def test_each_network_learns_and_runs(base, tmp_path: Path, network: str) -> None:
    root = tmp_path / "features"
    root.mkdir()
    _slides(root, {"train": 16, "val": 8, "test": 8})
    dataset = omlab.load_dataset(f"slide-features:{root}")
    out = tmp_path / "model"
    registry = Registry.discover()
    report = omlab.adapt(base, "clam", dataset, out, options=OPTIONS | {"network": network}, registry=registry)
    assert report["test_auc"] > 0.9
    assert report["best_epoch"] >= 10  # none of the warm-up
    assert len(report["history"]) == 12
    with open(out / "slides.csv", newline="") as file:
        told = list(csv.DictReader(file))
    assert len(told) == 32
    assert float(told[0]["p_0"]) + float(told[0]["p_1"]) == pytest.approx(1, abs=1e-5)
    licence = base.card.licence_weights.spdx
    model = omlab.load(out, engine="torch", accept=[licence])
    assert [kind.value for kind in model.card.inputs] == ["slide", "features"]
    right = [
        model(root / "h5_files" / f"test{n}.h5").best == ("normal", "tumor")[n % 2] for n in range(8)
    ]  # fmt: skip
    assert sum(right) == round(8 * report["test_accuracy"])
    again = omlab.adapt(
        base, "clam", dataset, tmp_path / "again", options=OPTIONS | {"network": network}, registry=registry
    )
    assert again["history"][-1]["loss"] == report["history"][-1]["loss"]


def test_from_a_slide_to_its_class_and_heat_map(base, tmp_path: Path) -> None:
    slide = samples.write_sample(InputKind.SLIDE, tmp_path)
    (row,) = run(base, [slide], tmp_path / "encoded", options={"tissue": "bwh_biopsy"})
    assert row.status == "done", row.cause
    folder = tmp_path / "encoded" / "sample"
    assert {p.name for p in folder.iterdir()} == {
        "features.h5", "patches.h5", "tissue.geojson", "overview.png", "result.json",
    }  # fmt: skip
    features = omlab.read(folder / "features.h5", kind=InputKind.FEATURES).features
    root = tmp_path / "features"
    for number in range(4):
        for name, change in (("a", 1.0), ("b", -1.0)):
            (root / name).mkdir(parents=True, exist_ok=True)
            _write(root / name / f"{name}{number}.h5", change * features[number:])
    omlab.adapt(
        base, "clam", omlab.load_dataset(f"slide-features:{root}"), tmp_path / "model",
        options={"epochs": 12, "lr": 1e-3}, registry=Registry.discover(),
    )  # fmt: skip
    model = omlab.load(tmp_path / "model", engine="torch", accept=[base.card.licence_weights.spdx])
    (row,) = run(model, [slide], tmp_path / "out", options={"tissue": "bwh_biopsy"})
    assert row.status == "done", row.cause
    assert row.headline.startswith("a ")
    files = {p.name for p in (tmp_path / "out" / "sample").iterdir()}
    assert files == {
        "classification.csv", "features.h5", "attention.h5", "heatmap.png", "overview.png", "result.json",
    }  # fmt: skip
    record = json.loads((tmp_path / "out" / "sample" / "result.json").read_text())
    assert set(record["engines"]) == {"encoder", "classifier"}
    np.testing.assert_array_equal(
        omlab.read(tmp_path / "out" / "sample" / "features.h5", kind=InputKind.FEATURES).features, features
    )


def test_features_that_the_base_does_not_make_give_a_model_without_slides(base, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "features" / name).mkdir(parents=True)
        for number in range(4):
            features = np.random.default_rng(number).normal(name == "a", 1, (10, 64))
            _write(tmp_path / "features" / name / f"{name}{number}.h5", features)
    report = omlab.adapt(
        base, "clam", omlab.load_dataset(f"slide-features:{tmp_path / 'features'}"), tmp_path / "model",
        options={"epochs": 1, "k": 2}, registry=Registry.discover(),
    )  # fmt: skip
    assert "has 64 features a patch, 'brow' (tiny) makes 192" in report["remarks"][-1]
    model = omlab.load(tmp_path / "model", engine="torch", accept=[base.card.licence_weights.spdx])
    assert [kind.value for kind in model.card.inputs] == ["features"]
    with pytest.raises(InputError, match="takes features"):
        model(samples.slide())


def test_small_bags_and_mixed_encoders_are_told(base, tmp_path: Path) -> None:
    root = tmp_path / "features"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(3):
            _write(root / name / f"{name}{number}.h5", np.ones((5, WIDTH)))
    dataset = omlab.load_dataset(f"slide-features:{root}")
    with pytest.raises(InputError, match="has 5 patches, at least 8 are needed"):
        omlab.adapt(base, "clam", dataset, tmp_path / "m", options={"epochs": 1}, registry=Registry.discover())
    _write(root / "a" / "a9.h5", np.ones((20, 64)))
    with pytest.raises(InputError, match="features a patch, others have"):
        omlab.adapt(
            base, "clam", dataset, tmp_path / "m", options={"epochs": 2, "k": 2, "weighted": False},
            registry=Registry.discover(),
        )  # fmt: skip


def test_the_schedule_is_upstreams() -> None:
    assert [rate(e, 1e-4) for e in (0, 4.5, 9, 10, 49, 50, 99)] == pytest.approx(
        [1e-5, 5e-5, 1e-4, 1e-4, 1e-4, 5e-5, 5e-5]
    )


def test_tables_of_labels(tmp_path: Path) -> None:
    card = Registry.discover().card(Kind.DATASET, "slide-features")
    dataset = FeatureFolder(card)
    with pytest.raises(InputError, match="needs a folder"):
        list(dataset.items({}, root=None))
    with pytest.raises(InputError, match="holds no features of slides"):
        list(dataset.items({}, root=tmp_path))
    _slides(tmp_path, {"train": 4, "val": 2})
    (tmp_path / "splits_0.csv").write_text(",train,val,test\n0,train0,train1,val0\n1,train2,,\n")
    parts = {item.name: item.split for item in dataset.items({}, root=tmp_path)}
    assert parts == {"train0": "train", "train1": "val", "train2": "train", "val0": "test"}
    assert dataset.classes(tmp_path) == ("normal", "tumor")
    assert next(dataset.items({}, root=tmp_path)).group == "patient-train0"
    (tmp_path / "splits_0.csv").write_text("train,val,test\ntrain0,train0,\n")
    with pytest.raises(InputError, match="'train0' is in the splits train and val"):
        list(dataset.items({}, root=tmp_path))
    (tmp_path / "splits_0.csv").unlink()
    (tmp_path / "h5_files" / "val1.h5").unlink()
    with pytest.raises(InputError, match="row 7: there are no features of slide 'val1'"):
        list(dataset.items({}, root=tmp_path))
    (tmp_path / "labels.csv").write_text("slide,label\n")
    with pytest.raises(InputError, match="has no column 'slide_id'"):
        list(dataset.items({}, root=tmp_path))
