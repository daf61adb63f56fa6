"""A linear probe on an embedder: the directory it makes runs, evaluates and exports like any model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image as Picture

import omlab
from omlab.cli.main import main
from omlab.errors import InputError
from omlab.plugins import Registry
from support import EMBEDDER, EMBEDDER_MANIFEST, SEGMENTER, SEGMENTER_MANIFEST


@pytest.fixture
def photos(tmp_path):
    """Warm and cold pictures that a line through colour space parts."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 8)):
        for name, tint in (("cold", (60, 90, 170)), ("warm", (170, 90, 60))):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(generator.normal(tint, 50, (40, 36, 3)), 0, 255).astype(np.uint8)
                Picture.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def probe(install_plugin, photos, tmp_path, capsys):
    install_plugin("meancolour", code=EMBEDDER, manifest=EMBEDDER_MANIFEST)
    folder = tmp_path / "my model"
    command = ["adapt", "meancolour", "--with", "linear-probe", "--on", f"image-folder:{photos}", "-o", str(folder)]
    assert main([*command, "--json"]) == 0
    return folder, json.loads(capsys.readouterr().out)


def test_it_learns_and_reports(probe):
    folder, report = probe
    assert report["test_accuracy"] == 1.0
    assert report["test_auc"] == 1.0
    assert report["train_images"] == 24
    assert {p.name for p in folder.iterdir()} == {
        "omlab.toml", "head.safetensors", "report.json", "report.html",
    }  # fmt: skip


def test_it_runs_like_any_model(probe, photos, tmp_path, capsys):
    folder, _ = probe
    assert (
        main(["run", str(folder), str(photos / "test" / "warm" / "0.png"), "-o", str(tmp_path / "out"), "--json"]) == 0
    )
    (row,) = json.loads(capsys.readouterr().out)["cases"]
    assert row["headline"].startswith("warm")
    assert (tmp_path / "out" / "0" / "overview.png").is_file()
    result = omlab.load(folder)(photos / "test" / "cold" / "1.png")
    assert isinstance(result, omlab.Classification)
    assert result.best == "cold"
    assert result.probabilities.sum() == pytest.approx(1)


def test_it_exports_one_graph_that_agrees(probe, photos, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, _ = probe
    assert main(["export", str(folder), "-o", str(tmp_path / "onnx"), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)
    session = onnxruntime.InferenceSession(files["classifier"], providers=["CPUExecutionProvider"])
    path = photos / "test" / "warm" / "3.png"
    image = (np.asarray(Picture.open(path).resize((32, 32)), np.float32) / 255).transpose(2, 0, 1)[None]
    (logits,) = session.run(None, {"image": np.repeat(image, 3, axis=0)})
    assert logits.shape == (3, 2)
    expected = omlab.load(folder)(path).probabilities
    found = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert found == pytest.approx(expected, abs=1e-5)
    described = json.loads((tmp_path / "onnx" / "graphs.json").read_text())
    assert described["graphs"][0]["outputs"][0]["name"] == "logits"


def test_shots_are_drawn_by_seed(probe, photos, tmp_path):
    registry = Registry.discover()
    reports = []
    for seed in (0, 0, 1):
        reports.append(
            omlab.adapt(
                omlab.load("meancolour", registry=registry), "linear-probe",
                omlab.load_dataset(f"image-folder:{photos}", registry=registry), tmp_path / f"shots{len(reports)}",
                options={"shots": 2, "seed": seed}, registry=registry,
            )
        )  # fmt: skip
    assert reports[0]["train_images"] == 4
    heads = [(tmp_path / f"shots{i}" / "head.safetensors").read_bytes() for i in range(3)]
    assert heads[0] == heads[1] != heads[2]


def test_what_cannot_be_adapted_is_told(probe, photos, install_plugin, tmp_path, capsys):
    folder, _ = probe
    install_plugin("thresholder", code=SEGMENTER, manifest=SEGMENTER_MANIFEST)
    on = ["--on", f"image-folder:{photos}", "-o", str(tmp_path / "new")]
    assert main(["adapt", "thresholder", "--with", "linear-probe", *on]) == 2
    assert "needs a model that gives embedding" in capsys.readouterr().err
    assert main(["adapt", str(folder), "--with", "linear-probe", *on]) == 2
    assert main(["adapt", "meancolour", "--with", "linear-prob", *on]) == 2
    assert "linear-probe" in capsys.readouterr().err
    assert main(["adapt", "meancolour", "--with", "linear-probe", "--on", "image-folder:/nowhere", "-o", "x"]) == 1
    assert main(["adapt", "meancolour", "--with", "linear-probe", "--on", "image-folder", "-o", "x"]) == 2
    assert not (tmp_path / "new").exists()


def test_a_damaged_directory_is_told(probe, photos, tmp_path, capsys):
    folder, _ = probe
    picture = str(photos / "test" / "warm" / "0.png")
    (folder / "head.safetensors").write_bytes(b"rubbish")
    assert main(["run", str(folder), picture, "-o", str(tmp_path / "out")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    (folder / "omlab.toml").write_text("api = 1\n")
    assert main(["run", str(folder), picture, "-o", str(tmp_path / "out")]) == 1
    assert "must hold one [[model]]" in capsys.readouterr().err


def _probe(dataset, out, **options):
    registry = Registry.discover()
    return omlab.adapt(
        omlab.load("meancolour", registry=registry), "linear-probe",
        omlab.load_dataset(f"image-folder:{dataset}", registry=registry), out, options=options, registry=registry,
    )  # fmt: skip


def test_embeddings_are_computed_once(probe, photos, tmp_path):
    report = _probe(photos, tmp_path / "again", strength=1.0)
    assert (report["embeddings_computed"], report["embeddings_cached"]) == (0, 52)
    for file in (tmp_path / "omlab-home" / "embeddings").rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])  # a damaged file is made again
    report = _probe(photos, tmp_path / "third", strength=1.0)
    assert report["embeddings_computed"] == 52
    heads = [(tmp_path / name / "head.safetensors").read_bytes() for name in ("again", "third")]
    assert heads[0] == heads[1]


def test_results_of_another_head_are_made_again(probe, photos, tmp_path, capsys):
    folder, _ = probe
    _probe(photos, tmp_path / "other", strength=0.01)
    first, other = omlab.load(folder), omlab.load(tmp_path / "other")
    assert first.weights_sha256 != other.weights_sha256
    for loaded in (first, other):
        loaded(photos / "test" / "cold" / "1.png")
    assert len(list((tmp_path / "omlab-home" / "engines").rglob("model.onnx"))) == 1  # the network is the base's
    command = ["run", str(folder), str(photos / "test" / "cold"), "-o", str(tmp_path / "out"), "--resume", "--json"]
    capsys.readouterr()
    told = []
    for _ in range(2):
        assert main(command) == 0
        told.append({row["status"] for row in json.loads(capsys.readouterr().out)["cases"]})
    (tmp_path / "other" / "head.safetensors").replace(folder / "head.safetensors")
    assert main(command) == 0
    told.append({row["status"] for row in json.loads(capsys.readouterr().out)["cases"]})
    assert told == [{"done"}, {"skipped"}, {"done"}]


@pytest.mark.parametrize("adapter", ["nearest-neighbours", "prototypes"])
def test_neighbours_and_prototypes_run_and_export(adapter, probe, photos, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = tmp_path / adapter
    command = ["adapt", "meancolour", "--with", adapter, "--on", f"image-folder:{photos}", "-o", str(folder)]
    assert main([*command, "--shots", "5", "--seed", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["test_auc"] == 1.0
    assert report["train_images"] == 10
    assert report["embeddings_computed"] == 0
    path = photos / "test" / "warm" / "3.png"
    expected = omlab.load(folder)(path).probabilities
    assert main(["export", str(folder), "-o", str(tmp_path / "onnx"), "--json"]) == 0
    session = onnxruntime.InferenceSession(json.loads(capsys.readouterr().out)["classifier"])
    image = (np.asarray(Picture.open(path).resize((32, 32)), np.float32) / 255).transpose(2, 0, 1)[None]
    (logits,) = session.run(None, {"image": np.repeat(image, 2, axis=0)})
    found = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_same_image_in_two_splits_is_refused_or_dropped(probe, photos, tmp_path):
    twin = photos / "train" / "cold" / "copy.png"
    twin.write_bytes((photos / "test" / "cold" / "2.png").read_bytes())
    with pytest.raises(InputError, match=r"1 train cases are also in the split test .* 'train/cold/copy.png'"):
        _probe(photos, tmp_path / "leak")
    report = _probe(photos, tmp_path / "clean", duplicates="drop")
    assert report["train_images"] == 24
    assert any("were dropped" in remark for remark in report["remarks"])


def test_what_a_dataset_lacks_is_said(probe, photos, tmp_path):
    import shutil

    (photos / "train" / "warm" / "0.png").write_bytes(b"no image")
    shutil.rmtree(photos / "val")
    (photos / "test" / "hot").mkdir()
    shutil.copy(photos / "test" / "warm" / "0.png", photos / "test" / "hot" / "9.png")
    shutil.rmtree(photos / "test" / "warm")
    report = _probe(photos, tmp_path / "lacking")
    remarks = " ".join(report["remarks"])
    assert "no training case is of hot" in remarks
    assert "no test case is of warm" in remarks
    assert "the dataset has no val split: 4 of 24 training cases were held back" in remarks
    assert len(report["train_failed"] + report.get("val_failed", [])) == 1
    assert omlab.load(tmp_path / "lacking")(photos / "train" / "warm" / "1.png").probabilities[1] < 1e-6
    shutil.rmtree(photos / "train" / "warm")
    with pytest.raises(InputError, match="training cases of 1 class of 2"):
        _probe(photos, tmp_path / "one")


def test_what_is_asked_wrongly_is_told(probe, photos, tmp_path, capsys):
    on = ["--on", f"image-folder:{photos}", "-o", str(tmp_path / "new")]
    assert main(["adapt", "meancolour", "--with", "linear-probe", *on, "--shots", "-1"]) == 2
    assert "shots cannot be negative" in capsys.readouterr().err
    assert main(["adapt", "meancolour", "--with", "nearest-neighbours", *on, "--k", "999"]) == 2
    assert "k lies between 1 and the 24 training cases" in capsys.readouterr().err
    assert main(["adapt", "meancolour", "--with", "prototypes", *on, "--temperature", "0"]) == 2
