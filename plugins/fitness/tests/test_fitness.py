"""Published scores against measured fitness, and tables that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from omlab.cli.main import main
from omlab_fitness.assays import spearman

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "proteingym"


def test_published_scores_have_the_recorded_correlation(capsys: pytest.CaptureFixture[str]) -> None:
    if not DATA.is_dir():
        pytest.skip("needs the folder of real assays beside the project")
    assert main(["score", "fitness", str(DATA / "scores"), str(DATA / "mutant"), "--rounds", "50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    recorded = json.loads((DATA / "spearman.json").read_text("utf-8"))
    assert found["assays"].keys() == recorded.keys()
    for name, row in recorded.items():
        mine = found["assays"][name]
        assert mine["spearman"] == pytest.approx(row["spearman"], abs=1e-12)
        assert (mine["mutants"], mine["multiple"]) == (row["mutants"], row["multiple"])
        assert mine["low"] < mine["spearman"] < mine["high"]
    assert found["average"] == pytest.approx(np.mean([row["spearman"] for row in recorded.values()]))


def test_ties_share_their_rank() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 6, (3, 40)), generator.integers(0, 4, (3, 40))
    for x, y, found in zip(a, b, spearman(a, b), strict=True):
        assert found == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert np.isnan(spearman(np.ones(5), np.arange(5)))


def _tables(folder: Path, scores: str, fitness: str) -> list[str]:
    folder.mkdir()
    (folder / "s.csv").write_text(f"mutant,predict_score\n{scores}")
    (folder / "f.csv").write_text(f"mutant,score\n{fitness}")
    return [str(folder / "s.csv"), str(folder / "f.csv")]


GOOD = "A1C,1\nA1D,2\nA1E,3\n"


@pytest.mark.parametrize(
    ("scores", "fitness", "message"),
    [
        (GOOD, GOOD + "A1F,4\n", "1 measured mutants have no score, first A1F"),
        (GOOD + "A1F,4\n", GOOD, "1 scored mutants were not measured, first A1F"),
        (GOOD + "A1E,4\n", GOOD, "s.csv, line 5: the mutant A1E is there twice"),
        (GOOD, GOOD.replace("3", "high"), "f.csv, line 4: 'high' of A1E is no finite number"),
        (GOOD, GOOD.replace("3", "nan"), "'nan' of A1E is no finite number"),
        ("A1C,1\n", "A1C,1\n", "a correlation needs three"),
    ],
)
def test_tables_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scores: str, fitness: str, message: str
) -> None:
    assert main(["score", "fitness", *_tables(tmp_path / "t", scores, fitness)]) == 1
    assert message in capsys.readouterr().err


def test_values_without_ranks_are_undefined_and_spoil_no_other_assay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, scores in (("flat", "A1C,1\nA1D,1\nA1E,1\n"), ("good", GOOD)):
        for folder, column, rows in (("s", "predict_score", scores), ("f", "score", GOOD)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.csv").write_text(f"mutant,{column}\n{rows}")
    assert main(["score", "fitness", str(tmp_path / "s"), str(tmp_path / "f"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["assays"]["flat"]["spearman"] is None and found["average"] == 1.0
    assert main(["score", "fitness", str(tmp_path / "s"), str(tmp_path / "f"), "-o", str(tmp_path / "r.json")]) == 0
    told = capsys.readouterr()
    assert "all scores are 1, so they have no ranks" in told.out and "left out of the average" in told.err
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert report["summary"]["average/spearman"]["n"] == 1
    made = report["environment"]
    assert len(made["files"]) == 4 and all(len(digest) == 64 for digest in made["files"].values())
    assert made["omlab"] and made["python"] and made["scipy"]


def test_mutants_of_one_file_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = _tables(tmp_path / "t", GOOD + "A1G,0\n", GOOD + "A1F,9\n")
    assert main(["score", "fitness", *files, "--partial"]) == 0
    told = capsys.readouterr()
    assert "2 mutants are in only one of the files" in told.err
    assert "spearman" in told.out


def test_other_columns_and_wrong_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = _tables(tmp_path / "t", GOOD, GOOD)
    assert main(["score", "fitness", *files, "--prediction", "esm"]) == 1
    assert "has no column 'esm', it has mutant, predict_score" in capsys.readouterr().err
    assert main(["score", "fitness", files[0]]) == 2
    assert main(["score", "fitness", files[0], str(tmp_path)]) == 2
    assert main(["score", "fitness", files[0], str(tmp_path / "none.csv")]) == 1
