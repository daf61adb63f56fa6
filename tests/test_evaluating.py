"""An evaluation in a folder: stopped, gone on with, and refused where it is of something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from PIL import Image as Pillow

import omlab
from omlab.cli.main import main
from omlab.errors import InputError, OutputError, UsageError
from omlab.geometry import Geometry
from omlab.results import (
    Classification,
    Detections,
    Embedding,
    FrameLabels,
    Generation,
    Label,
    Result,
    Scores,
    Segmentation,
    VideoSegmentation,
)
from omlab.results.keeping import keep, kept
from omlab.results.nifti import write_segmentation
from support import MODEL_TABLE, SEGMENTER, SEGMENTER_MANIFEST

GRID = Geometry((16, 16, 16), np.diag([2.0, 2.0, 3.0, 1.0]))


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_segmentation(Segmentation(labels=values.astype(np.uint8), structures=(), geometry=GRID), path)


@pytest.fixture
def root(tmp_path: Path, install_plugin: Callable[..., Path]) -> Path:
    install_plugin("thresholder", manifest=SEGMENTER_MANIFEST, code=SEGMENTER)
    folder = tmp_path / "data"
    for number in range(4):
        values = np.zeros(GRID.shape)
        values[3 : 8 + number, 3:12, 3:12] = 200
        write(folder / "images" / f"case {number} ä.nii.gz", values)
        write(folder / "masks" / f"case {number} ä.nii.gz", values > 0)
    (folder / "classes.json").write_text('["bright"]')
    return folder


def evaluate(root: Path, *more: str) -> int:
    return main(
        ["evaluate", "thresholder", "--on", f"image-masks:{root}", "--with", "segmentation", "--engine", "torch", *more]
    )


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Ctrl-C when the model is called for the ``number``-th time; returns what it was called for."""
    from omlab.loading import LoadedModel

    called: list[str] = []
    run = LoadedModel.run

    def stopping(self: LoadedModel, case: Any, **more: Any) -> Any:
        if len(called) == number:
            raise KeyboardInterrupt
        called.append(case.name)
        return run(self, case, **more)

    monkeypatch.setattr(LoadedModel, "run", stopping)
    return called


def test_an_interrupt_loses_nothing_and_resume_gives_the_same_report(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    with monkeypatch.context() as patch:
        called = stop_at(patch, 2)
        assert evaluate(root, "-o", str(out)) == 130
        assert len(called) == 2 and "go on with --resume" in capsys.readouterr().err
    assert len(list((out / "answers").iterdir())) == 2 and not (out / "report.json").exists()
    assert evaluate(root, "-o", str(out)) == 2
    assert "holds this evaluation already" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        called = stop_at(patch, 99)
        assert evaluate(root, "-o", str(out), "--resume") == 0
        assert called == ["case 2 ä.nii.gz", "case 3 ä.nii.gz"]
    assert "2 answers were there already" in capsys.readouterr().err
    assert evaluate(root, "-o", str(fresh)) == 0
    reports = [json.loads((folder / "report.json").read_text("utf-8")) for folder in (out, fresh)]
    assert reports[0]["summary"] == reports[1]["summary"] and reports[0]["cases"] == reports[1]["cases"]
    assert reports[0]["summary"]["bright/dice"]["n"] == 4 and (out / "report.html").is_file()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        called = stop_at(patch, 99)
        assert evaluate(root, "-o", str(out), "--resume", "--json") == 0 and called == []
    again = json.loads(capsys.readouterr().out)
    assert again["environment"]["engines"]["net"]["engine"]["backend"] == "torch"  # also where nothing was run


def test_changed_files_and_damaged_answers_are_run_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert evaluate(root, "-o", str(out)) == 0
    values = np.zeros(GRID.shape)
    values[2:14, 2:14, 2:14] = 200
    write(root / "images" / "case 1 ä.nii.gz", values)
    damaged = next((out / "answers").glob("case_3*"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    called = stop_at(monkeypatch, 99)
    assert evaluate(root, "-o", str(out), "--resume") == 0
    assert called == ["case 1 ä.nii.gz", "case 3 ä.nii.gz"]


def test_a_folder_of_another_evaluation_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert evaluate(root, "-o", str(out), "--limit", "1") == 0
    for more, differs in ((["--level", "50"], "another options"), (["--part", "0/2"], "this evaluation already")):
        capsys.readouterr()
        assert evaluate(root, "-o", str(out), *more) == 2
        assert differs in capsys.readouterr().err
    assert evaluate(root, "--resume") == 2
    assert "nothing to go on from" in capsys.readouterr().err
    assert evaluate(root, "-o", str(tmp_path / "one.json")) == 0 and (tmp_path / "one.html").is_file()
    assert evaluate(root, "--split", "val") == 2
    assert "Choose another with --split" in capsys.readouterr().err


def test_one_bad_case_is_a_row_and_the_exit_code_says_so(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "images" / "case 0 ä.nii.gz").write_bytes(b"no scan")
    for kind in ("images", "masks"):
        (root / kind / "case 1 ä.nii.gz").rename(root / kind / "crash.nii.gz")
    assert evaluate(root, "-o", str(tmp_path / "out")) == 1
    told = capsys.readouterr().err
    assert "case 0 ä.nii.gz" in told and "ZeroDivisionError: a defect of the plugin" in told
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["environment"]["failed"] == 2 and report["summary"]["bright/dice"]["n"] == 2


LABELS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 3
FRAMES = FrameLabels((3, 4), [1, 2])
for labels in LABELS:
    FRAMES.append(labels)
NAMED = (Label(value=1, name="a ä", colour=(1, 2, 3), code=("1", "SCT", "One")), Label(value=2, name="b"))


@pytest.mark.parametrize(
    "result",
    [
        Segmentation(
            labels=LABELS, structures=NAMED, geometry=Geometry((2, 3, 4), np.diag([0.1, 2, 3, 1])),
            columns={"mean": [1.5, None]}, measurements={"volume_ml": 1 / 3},
        ),
        Segmentation(labels=LABELS[0].astype(np.uint16), structures=NAMED),
        VideoSegmentation(labels=FRAMES, structures=NAMED, frames=np.array([0, 5]), rate=29.97),
        Classification(classes=("x", "y"), probabilities=np.array([0.1, 0.7], np.float32), exclusive=False),
        Embedding(vector=np.linspace(0, 1, 5, dtype=np.float32), tokens=np.ones((2, 5), np.float32)),
        Embedding(vector=np.zeros(3, np.float32)),
        Scores(columns={"mutant": ["A1C", "wt"], "score": [np.float64(0.1), float("nan")], "n": [np.int64(1), 2]}),
        Detections(
            boxes=np.ones((2, 4), np.float32), scores=np.array([0.5, 0.1], np.float32), labels=np.array([0, 1]),
            classes=("p", "q"), frames=np.array([3, 4]),
        ),
        Generation(text="ja\n„nein“", finish_reason="length", prompt_tokens=3, completion_tokens=4, notes=["cut"]),
    ],
    ids=lambda result: type(result).__name__,
)  # fmt: skip
def test_every_kind_of_result_is_kept_without_loss(result: Result, tmp_path: Path) -> None:
    keep(result, tmp_path / "a.zip", {"case": "ä"})
    found, record = kept(tmp_path / "a.zip")
    assert type(found) is type(result) and record == {"case": "ä"}
    for name in result.__attrs_attrs__:
        ours, theirs = getattr(result, name.name), getattr(found, name.name)
        if name.name == "structures":
            assert [(s.value, s.name, s.colour, s.code) for s in theirs] == [
                (s.value, s.name, s.colour, s.code) for s in ours
            ]
        elif name.name == "geometry" and ours is not None:
            assert theirs.shape == ours.shape and np.array_equal(theirs.affine, ours.affine)
        elif name.name == "columns":
            assert json.dumps(dict(theirs)) == json.dumps({k: np.array(v).tolist() for k, v in ours.items()})
        elif isinstance(ours, np.ndarray | FrameLabels):
            assert np.asarray(theirs).dtype == np.asarray(ours).dtype and np.array_equal(
                np.asarray(theirs), np.asarray(ours)
            )
        else:
            assert theirs == ours


def test_results_that_cannot_be_kept_or_read_are_told(tmp_path: Path) -> None:
    class Own(Embedding):
        pass

    with pytest.raises(OutputError, match="of type Own cannot be kept"):
        keep(Own(vector=np.zeros(1, np.float32)), tmp_path / "a.zip")
    (tmp_path / "b.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="no result that was kept"):
        kept(tmp_path / "b.zip")


def test_the_api_resumes_only_with_a_folder(root: Path) -> None:
    registry_model = omlab.load("thresholder", engine="torch")
    bound = omlab.load_dataset(f"image-masks:{root}")
    with pytest.raises(UsageError, match="without a folder"):
        omlab.evaluate(registry_model, bound, "segmentation", resume=True, registry=registry_model._registry)


def test_a_case_brings_options_of_its_own_and_those_of_the_user_go_first(root: Path) -> None:
    model = omlab.load("thresholder", engine="torch")
    plain = omlab.load_dataset(f"image-masks:{root}")

    class Own(omlab.Dataset):
        def items(self, files: Any, *, split: Any = None, root: Any = None) -> Any:
            for item in plain.items():
                yield attrs.evolve(item, options={"level": 1000.0, "of-another-model": 1})

    bound = omlab.BoundDataset(dataset=Own(plain.dataset.card), files={}, root=root)
    found = [
        omlab.evaluate(model, bound, "segmentation", options=options, registry=model._registry).report
        for options in ({}, {"level": 100.0})
    ]
    assert [report.summary["bright/dice"].value for report in found] == [0.0, pytest.approx(0.9, abs=0.1)]


def test_options_of_the_evaluator_are_taken_and_told_apart_from_the_models(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], install_plugin: Callable[..., Path]
) -> None:
    values = np.zeros(GRID.shape)
    values[4:8, 3:12, 3:12] = 200
    write(root / "images" / "case 0 ä.nii.gz", values)  # the model finds a layer of 2 mm less than the reference has
    reports = []
    for more in ([], ["--tolerance-mm", "2", "--both-empty", "ONE"]):
        assert evaluate(root, "-o", str(tmp_path / "r.json"), "--limit", "1", *more) == 0
        reports.append(json.loads((tmp_path / "r.json").read_text("utf-8")))
    assert [r["options"]["tolerance_mm"] for r in reports] == [1.0, 2.0]
    assert reports[0]["summary"]["bright/nsd"]["value"] < reports[1]["summary"]["bright/nsd"]["value"]
    assert reports[1]["options"]["both_empty"] == "one"
    with Pillow.open(tmp_path / "r.png") as picture:  # outlines over the scan, and not masks of four colours
        panel = np.asarray(picture.convert("RGB"))[84:320, 24:260].reshape(-1, 3)
    assert (panel == 0).all(-1).mean() > 0.2 and len(np.unique(panel, axis=0)) > 50
    capsys.readouterr()
    assert evaluate(root, "--help") == 0
    shown = capsys.readouterr().out
    assert "--tolerance-mm" in shown and "--level" in shown
    seeded = SEGMENTER_MANIFEST.replace('name = "level"', 'name = "seed"').replace("thresholder", "seeded")
    assert 'name = "seed"' in seeded
    install_plugin("seeded", manifest=seeded, code=SEGMENTER)
    call = ["evaluate", "seeded", "--on", f"image-masks:{root}", "--with=segmentation", "--help"]
    assert main(call) == 0
    assert "--segmentation-seed" in capsys.readouterr().out


def test_a_reference_on_another_grid_fails_alone(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = GRID.affine.copy()
    moved[0, 3] = 4.0
    write_segmentation(
        Segmentation(labels=np.ones(GRID.shape, np.uint8), structures=(), geometry=Geometry(GRID.shape, moved)),
        root / "masks" / "case 2 ä.nii.gz",
    )
    assert evaluate(root, "-o", str(tmp_path / "r.json")) == 1
    assert "case 2 ä.nii.gz: prediction and reference lie on different grids: the prediction lies 4 mm beside" in (
        capsys.readouterr().err
    )
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert report["summary"]["bright/dice"]["n"] == 3 and report["environment"]["failed"] == 1


PARROT = """
from omlab import Generation, Model, hookimpl

class Parrot(Model):
    def graphs(self, variant):
        return ()

    def predict(self, case, context):
        return Generation(text="A" if "一" in case.question else "B", prompt_tokens=1, completion_tokens=1)

@hookimpl
def omlab_model(card):
    return Parrot(card)
"""


def test_a_language_model_is_asked_and_its_answers_are_scored(
    tmp_path: Path,
    install_plugin: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("omlab_medbench")
    manifest = ("api = 1\n" + MODEL_TABLE.format(name="parrot")).replace('"mr"', '"text"')
    manifest = manifest.replace('task = ["segmentation"]', 'task = ["generation"]')
    manifest = manifest.replace('inputs = ["volume"]', 'inputs = ["text"]')
    install_plugin(
        "parrot", manifest=manifest.replace('outputs = ["segmentation"]', 'outputs = ["generation"]'), code=PARROT
    )
    rows = [{"question": f"{word}?", "answer": ["A"]} for word in "一一三一"]
    (tmp_path / "MedSafety.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    call = ["evaluate", "parrot", "--on", f"medbench:{tmp_path}", "-o", str(tmp_path / "out"), "--json"]
    assert main(call) == 0
    assert json.loads(capsys.readouterr().out) == [{"Accuracy": 75.0}]
    assert main([*call, "--resume"]) == 0
    assert len(list((tmp_path / "out" / "answers").iterdir())) == 4
    capsys.readouterr()
    assert main([*call[:4], "--with", "classification"]) == 2
    assert "takes classification; 'parrot' (default) gives generation" in capsys.readouterr().err
    assert main([*call[:4], "--with", "elo"]) == 2
    assert "evaluator 'elo' scores files alone" in capsys.readouterr().err
    monkeypatch.setattr("omlab_medbench.dataset._reference", lambda name, answer: Generation(text="A"))
    assert main(call[:4]) == 1
    assert "all 4 cases failed, first MedSafety 1: MedSafety 1: its reference is none of MedBench" in (
        capsys.readouterr().err
    )
