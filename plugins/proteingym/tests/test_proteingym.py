"""The six real assays of the shared data, and faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import omlab
from omlab.cli.main import main
from omlab.datasets import gather, verify
from omlab.errors import InputError
from omlab_proteingym.dataset import measured, misfit

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "proteingym"


@pytest.fixture
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip("needs the folder of real assays beside the project")
    return DATA


def test_assays_have_sequences_and_measurements(data: Path) -> None:
    wanted = json.loads((data / "spearman.json").read_text("utf-8"))
    bound = omlab.load_dataset(f"proteingym:{data}")
    for item in bound.items():
        case, truth = item.case(), item.truth()
        assert len(case.residues) == wanted[item.name]["length"]
        assert len(truth.columns["mutant"]) == wanted[item.name]["mutants"]
        assert sum(":" in m for m in truth.columns["mutant"]) == wanted[item.name]["multiple"]
        assert item.options == {"mutants": data / "mutant" / f"{item.name}.csv"}
    assert [p.kind for p in verify(bound).problems] == ["count"]  # 6 of 217
    assert gather(bound)[0].tables["Assays"]["PIN1_HUMAN_Tsuboyama_2023_1I6C"] == "802 mutants, 116 of them multiple"
    one = omlab.load_dataset(f"proteingym,assay=IF1_ECOLI_Kelsic_2016:{data}")
    assert [i.name for i in one.items()] == ["IF1_ECOLI_Kelsic_2016"] and verify(one).whole


def test_the_published_scores_of_prime_give_the_published_correlations(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = json.loads((data / "spearman.json").read_text("utf-8"))
    assert main(["score", "fitness", str(data / "scores"), str(data / "mutant"), "--rounds", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["assays"]
    assert {name: row["spearman"] for name, row in found.items()} == pytest.approx(
        {name: row["spearman"] for name, row in wanted.items()}, abs=1e-12
    )


def test_faults_are_found(tmp_path: Path, data: Path) -> None:
    shutil.copytree(data / "fasta", tmp_path / "fasta"), shutil.copytree(data / "mutant", tmp_path / "mutant")
    for path in (tmp_path / "mutant").iterdir():
        path.chmod(0o644)
    (tmp_path / "mutant" / "IF1_ECOLI_Kelsic_2016.csv").write_text("mutant,score\nA2C,1\nA2C,2\n")
    (tmp_path / "mutant" / "RL40A_YEAST_Mavor_2016.csv").write_text("mutant,score\nQ2A,1\nW2A,nan\n")
    (tmp_path / "mutant" / "BLAT_ECOLX_Jacquier_2013.csv").write_text("mutant,score\nM1A,1\nW1A,2\nM1A:A999G,2\n")
    (tmp_path / "mutant" / "PIN1_HUMAN_Tsuboyama_2023_1I6C.csv").unlink()
    (tmp_path / "fasta" / "SRBS1_HUMAN_Tsuboyama_2023_2O2W.fasta").unlink()
    found = {p.where: p.what for p in verify(omlab.load_dataset(f"proteingym:{tmp_path}")).problems}
    assert found["IF1_ECOLI_Kelsic_2016"].endswith("the mutant A2C is there twice")
    assert found["RL40A_YEAST_Mavor_2016"].endswith("'nan' of W2A is no finite number")
    assert found["mutant/BLAT_ECOLX_Jacquier_2013.csv"].startswith("2 of 3 mutants are none of the sequence, first W1A")
    assert found["PIN1_HUMAN_Tsuboyama_2023_1I6C"] == "has no table of mutants"
    assert found["mutant/SRBS1_HUMAN_Tsuboyama_2023_2O2W.csv"] == "has no sequence"
    (tmp_path / "t.csv").write_text("mutation,score\n")
    with pytest.raises(InputError, match="has no column 'mutant'"):
        measured(tmp_path / "t.csv")
    assert misfit("A1C", "AC") == "" and "no substitution" in misfit("1C", "AC") and "outside" in misfit("A9C", "AC")


def test_an_evaluator_scores_what_a_model_says_of_an_assay(data: Path) -> None:
    from omlab.api import _registry
    from omlab.evaluator import Pair
    from omlab.loading import options_of
    from omlab.results import Scores
    from omlab.settings import Settings
    from omlab.vocabulary import Kind
    from omlab_fitness.assays import column_of

    registry = _registry(None, Settings.from_environment())
    evaluator = registry.load(Kind.EVALUATOR, "fitness")
    wanted = json.loads((data / "spearman.json").read_text("utf-8"))

    def pairs() -> Iterator[Pair]:
        for item in omlab.load_dataset(f"proteingym:{data}").items():
            scores = column_of(data / "scores" / f"{item.name}.csv", "predict_score")
            answer = Scores(columns={"mutant": list(scores), "predict_score": list(scores.values())})
            yield Pair(name=item.name, prediction=answer, reference=item.truth())

    report = evaluator.score(pairs(), options_of(evaluator.card, {"rounds": 0}))
    for name, row in wanted.items():
        assert report.summary[f"{name}/spearman"].value == pytest.approx(row["spearman"], abs=1e-12)
    with pytest.raises(InputError, match="has no column 'predict_score'"):
        item = next(omlab.load_dataset(f"proteingym:{data}").items())
        evaluator.score(
            [Pair(name="a", prediction=item.truth(), reference=item.truth())], options_of(evaluator.card, {})
        )
