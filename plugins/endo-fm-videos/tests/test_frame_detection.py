"""F1 of frames: by hand, over files, over a dataset, and what cannot be counted."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from omlab.cli.main import main
from omlab.errors import InputError
from omlab.evaluator import Pair
from omlab.plugins import Registry
from omlab.results import Detections, Embedding
from omlab.vocabulary import Kind

OPTIONS = {"threshold": 0.5, "rounds": 200, "seed": 0}


def boxes(frames: list[int], scores: list[float] | None = None, looked: float | None = None) -> Detections:
    count = len(frames)
    return Detections(
        boxes=np.zeros((count, 4), np.float32), scores=np.array(scores or [1.0] * count, np.float32),
        labels=np.zeros(count, np.int64), classes=("a", "b"), frames=np.array(frames, np.int64),
        measurements={} if looked is None else {"frames": looked},
    )  # fmt: skip


@pytest.fixture
def evaluator() -> Any:
    return Registry.discover().load(Kind.EVALUATOR, "frame-detection")


def test_a_frame_is_found_by_any_box_that_scores_enough(evaluator: Any) -> None:
    pairs = [
        # Frames 1 and 2 are there; 1 is found by its second box, 5 is not there, 2 scores too little.
        Pair(name="v", prediction=boxes([1, 1, 2, 5], [0.1, 0.5, 0.49, 0.9]), reference=boxes([1, 1, 2])),
        Pair(name="w", prediction=boxes([0]), reference=boxes([0])),
    ]
    report = evaluator.score(pairs, OPTIONS)
    assert report.cases[0] == {"case": "v", "tp": 1, "fp": 1, "fn": 1}
    assert report.summary["f1"].value == pytest.approx(2 * 2 / (4 + 1 + 1))
    assert report.summary["precision"].value == report.summary["recall"].value == pytest.approx(2 / 3)
    assert report.summary["f1"].low is None  # of two videos no interval
    many = evaluator.score([pairs[0], pairs[1]] * 5, OPTIONS)
    assert many.summary["f1"].low < many.summary["f1"].value < many.summary["f1"].high
    rows = [{"cases": report.cases}, {"cases": [{"case": "v", "tp": 2, "fp": 0, "fn": 0}, report.cases[1]]}]
    drawn = evaluator.resampled(rows, rounds=50, seed=1)["f1"]
    assert drawn.cases == 2 and drawn.values.tolist() == pytest.approx([2 / 3, 1.0]) and drawn.draws.shape == (2, 50)


def test_nothing_to_find_is_undefined(evaluator: Any) -> None:
    report = evaluator.score([Pair(name="v", prediction=boxes([]), reference=boxes([]))], OPTIONS)
    assert report.summary["f1"].value is None and "no frame has a polyp" in report.summary["f1"].undefined
    report = evaluator.score([Pair(name="v", prediction=boxes([]), reference=boxes([3]))], OPTIONS)
    assert report.summary["f1"].value == 0 and report.summary["precision"].undefined == "nothing was found"


def test_what_cannot_be_counted_is_refused(evaluator: Any) -> None:
    refused: list[str] = []
    wrong = [
        (Embedding(vector=np.zeros(3, np.float32)), None, "the answer is no detections"),
        (boxes([1], looked=12), SimpleNamespace(frame_count=60), "12 of 60 frames were looked at"),
        (boxes([1], looked=60), SimpleNamespace(frame_count=60), ""),
    ]
    for prediction, case, says in wrong:
        scan = None if case is None else (lambda case=case: case)
        told = lambda error: refused.append(str(error))  # noqa: E731
        pair = Pair(name="v", prediction=prediction, reference=boxes([1]), scan=scan, refused=told)
        report = evaluator.score([pair], OPTIONS)
        assert (says in refused[-1] and not report.cases) if says else report.summary["f1"].value == 1
    with pytest.raises(InputError):
        evaluator.score([Pair(name="v", prediction=wrong[0][0], reference=boxes([1]))], OPTIONS)


def test_files_of_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, truth = tmp_path / "detections.csv", tmp_path / "truth.csv"
    found.write_text("frame,class,score,x0,y0,x1,y1\n3,a,0.9,0,0,1,1\n4,a,0.2,0,0,1,1\n")
    truth.write_text("frame\n3\n4\n")
    assert main(["score", "frame-detection", str(found), str(truth), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["recall"]["value"] == 0.5
    truth.write_text("number\n3\n")
    assert main(["score", "frame-detection", str(found), str(truth)]) != 0
    assert "truth.csv: has no column 'frame', it has number" in capsys.readouterr().err
    truth.write_text("frame\nthree\n")
    assert main(["score", "frame-detection", str(found), str(truth)]) != 0
    assert "in the column 'frame'" in capsys.readouterr().err
