"""Ratings, ranks and verdicts against upstream's own numbers, and battles that are none."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omlab.cli.main import main
from omlab.errors import InputError
from omlab_elo import battles as reading
from omlab_elo import draws
from omlab_elo.drawing import draw
from omlab_elo.ranks import ranks_by_mean, ranks_by_order, triage
from omlab_elo.rating import bootstrap, online, rate, wins
from omlab_elo.verdicts import scores_of, winner_of

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "pulse_eval"
NAMES = ("MedQA-Mainland", "PromptCBLUE", "WebMedQA", "CheckupQA")


@pytest.fixture(scope="module")
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip("needs the folder of upstream's verdicts beside the project")
    return DATA


@pytest.fixture(scope="module")
def expected(data: Path) -> dict:
    return json.loads((data / "expected_elo.json").read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_ratings_equal_upstream(data: Path, expected: dict, name: str) -> None:
    wanted = expected["datasets"][name]
    found = rate(reading.read(data / f"battles_{name}.jsonl.gz"), rounds=1000, seed=0)
    assert len(found.battles) == wanted["battles"]
    for key, values in (
        ("online", found.online),
        ("bootstrap_seed0_1000", found.median),
        ("bootstrap_seed0_1000_q025", found.low),
        ("bootstrap_seed0_1000_q975", found.high),
    ):
        assert found.of(values) == pytest.approx(wanted[key], abs=2e-6), key
    assert dict(zip(found.battles.models, found.published.tolist(), strict=True)) == {
        model: int(value) for model, value in wanted["bootstrap_seed0_1000_rounded"].items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_draw_replays_the_released_battles(data: Path, expected: dict, name: str) -> None:
    models, empty = expected["model_order"], expected["datasets"][name]["empty_predictions"]
    answers = {m: ["" if q in empty.get(m, ()) else "yes" for q in range(150)] for m in models}
    drawn = draw(models, answers)
    with gzip.open(data / f"battles_{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        released = [json.loads(line) for line in file]
    assert [(d.question, d.model_a, d.model_b) for d in drawn] == [
        (row["q"], row["model_a"], row["model_b"]) for row in released
    ]


def test_the_table_is_the_papers(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(data / f"battles_{name}.jsonl.gz") for name in NAMES]
    code = main(
        [
            "score", "elo", *files, "--triage", str(data / "medtriage_predictions.json.gz"), "--json",
            "-o", str(tmp_path / "board.json"),
        ]
    )  # fmt: skip
    assert code == 0
    found = json.loads(capsys.readouterr().out)
    with open(data / "published_elo.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            model = row["Model Name"]
            for name in NAMES:
                median = found["datasets"][name]["median"][model]
                assert abs(int(median + 0.5) - int(row[name])) <= 2, (model, name)
            assert f"{found['triage_f1'][model]:.2f}" == row["MedTriage (F1)"]
    assert found["datasets"]["WebMedQA"]["unparsed"] == 2
    report = json.loads((tmp_path / "board.json").read_text("utf-8"))
    assert "line 141" in report["warnings"][0]
    with Image.open(tmp_path / "board.png") as picture:
        assert picture.width > 800
        assert len(picture.getcolors(1 << 20)) > 50


def test_ranks_are_those_of_the_papers_table(data: Path) -> None:
    """All eight columns as published; F1 by the recomputed values, since three are 0 and two round to 0.01."""
    with open(data / "published_elo.csv", encoding="utf-8", newline="") as file:
        rows = {row["Model Name"]: row for row in csv.DictReader(file)}
    with open(data / "published_rank.csv", encoding="utf-8", newline="") as file:
        wanted = {row["Model Name"]: row for row in csv.DictReader(file)}
    f1 = json.loads((data / "medtriage_expected.json").read_text("utf-8"))
    columns = [name for name in rows["GPT-4"] if name not in ("Model Name", "AVG Rank")]
    order = (
        "GPT-4", "PULSE-Pro", "ChatGPT", "PULSE-OS", "ChatGLM3", "Baichuan2", "BenTsao", "QiZhenGPT", "HuatuoGPT2",
        "BianQue2", "DoctorGLM", "MING",
    )  # fmt: skip
    ranks = {}
    for name in columns:
        values = [f1[m]["f1"] if name.startswith("MedTriage") else int(rows[m][name]) for m in order]
        ranks[name] = dict(zip(order, ranks_by_order(values).tolist(), strict=True))
        assert ranks[name] == {m: float(wanted[m][name]) for m in order}, name
    for model in order:
        mean = np.mean([ranks[name][model] for name in columns])
        assert f"{mean:.2f}" == wanted[model]["AVG Rank"]


def test_ranks_do_not_depend_on_the_order_of_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two models with equal ratings are ranked by their order in the paper's first dataset."""
    generator = np.random.default_rng(5)
    for name in ("CheckupQA", "MedQA-USMLE", "other"):
        rows = [
            {"model_a": f"m{a}", "model_b": f"m{b}", "score": generator.integers(0, 3, 2).tolist()}
            for a, b in (generator.choice(6, 2, replace=False) for _ in range(40))
        ]
        _battles(tmp_path, rows).rename(tmp_path / f"battles_{name}.jsonl")
    (tmp_path / "t.json").write_text(
        json.dumps({"references": ["x"], "predictions": {f"m{i}": [["x", "y"][i % 2]] for i in range(6)}})
    )
    found = []
    for names in (("CheckupQA", "MedQA-USMLE", "other"), ("other", "MedQA-USMLE", "CheckupQA")):
        files = [str(tmp_path / f"battles_{name}.jsonl") for name in names]
        more = ["--triage", str(tmp_path / "t.json"), "--rounds", "50"]
        assert main(["score", "elo", *files, *more, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["ranks"])
        assert main(["score", "elo", *files, *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split()[:2] == ["model", "average"] and len([n for n in lines if n.strip()]) >= 7
    assert found[0] == pytest.approx(found[1])


def test_one_file_prints_the_stable_form(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data / "battles_CheckupQA.jsonl.gz"
    assert main(["score", "elo", str(path), "--rounds", "1000", "--seed", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"online", "median", "low", "high", "battles", "unparsed"}
    assert found["battles"] == 660
    assert found["unparsed"] == 0


def test_judges_texts(data: Path) -> None:
    cases = json.loads((data / "judge_parse_cases.json").read_text("utf-8"))
    assert len(cases) > 5
    for case in cases:
        wanted = None if case["score"] is None else tuple(map(float, case["score"]))
        assert scores_of(case["text"]) == wanted, case


def test_triage_equals_upstream(data: Path) -> None:
    for case in json.loads((data / "medtriage_cases.json").read_text("utf-8")):
        found = triage(case["references"], case["predictions"])
        assert found == pytest.approx({k: case[k] for k in ("acc", "p", "r", "f1")}, abs=1e-12)
    with gzip.open(data / "medtriage_predictions.json.gz", "rt", encoding="utf-8") as file:
        answers = json.load(file)
    wanted = json.loads((data / "medtriage_expected.json").read_text("utf-8"))
    for model, predictions in answers["predictions"].items():
        assert triage(answers["references"], predictions) == pytest.approx(wanted[model], abs=1e-12)


def _slow_bootstrap(battles: reading.Battles, rounds: int, seed: int) -> np.ndarray:
    """The same by the definition, one battle after the other."""
    generator = np.random.RandomState(seed)
    rows = []
    for _ in range(rounds):
        drawn = generator.choice(len(battles), size=len(battles), replace=True)
        ratings: dict[int, float] = {}
        for n in drawn:
            a, b, points = int(battles.first[n]), int(battles.second[n]), float(battles.points[n])
            ra, rb = ratings.get(a, 1000.0), ratings.get(b, 1000.0)
            ratings[a] = ra + 4 * (points - 1 / (1 + 10 ** ((rb - ra) / 400)))
            ratings[b] = rb + 4 * (1 - points - 1 / (1 + 10 ** ((ra - rb) / 400)))
        rows.append([ratings.get(i, np.nan) for i in range(len(battles.models))])
    return np.array(rows)


def _battles(tmp_path: Path, rows: list[dict]) -> Path:
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


def test_all_rounds_at_once_equal_one_after_the_other(tmp_path: Path) -> None:
    rows = [
        {"model_a": "x", "model_b": "y", "winner": "model_a"},
        {"model_a": "y", "model_b": "z", "score": [3, 3]},
        {"model_a": "z", "model_b": "x", "judge": "1 9\nbecause"},
        {"model_a": "rare", "model_b": "x", "judge": "both are good"},
    ]
    battles = reading.read(_battles(tmp_path, rows))
    assert [line for line, _ in battles.unparsed] == [4]
    assert battles.points.tolist() == [1, 0.5, 0, 0.5]
    found = bootstrap(battles, rounds=50, seed=3)
    assert np.isnan(found).any()  # some rounds draw a model not at all
    np.testing.assert_allclose(found, _slow_bootstrap(battles, 50, 3), rtol=0, atol=1e-9)
    share = wins(battles)
    assert share[0, 1] == 1
    assert share[1, 0] == 0
    assert np.isnan(share[1, 2])  # only a tie
    assert online(battles)[0] > 1000


@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 660, 1025])
def test_draws_are_those_of_the_legacy_generator(count: int) -> None:
    taken = draws.Draws(count, seed=7)
    first = taken.take(1000)
    other = taken.copy()
    wanted = np.random.RandomState(7).choice(count, 41000)
    assert np.concatenate([first, taken.take(1), taken.take(39999)]).tolist() == wanted.tolist()
    assert other.take(500).tolist() == wanted[1000:1500].tolist()


def test_draws_beyond_memory_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(333):
        a, b = generator.choice(70, 2, replace=False)
        rows.append({"model_a": f"m{a}", "model_b": f"m{b}", "score": generator.integers(0, 3, 2).tolist()})
    battles = reading.read(_battles(tmp_path, rows))
    assert len(battles.models) > 64
    whole = bootstrap(battles, rounds=20, seed=1)
    monkeypatch.setattr(draws, "_HELD", 150)
    monkeypatch.setattr(draws, "_STEPS", 50)
    np.testing.assert_array_equal(bootstrap(battles, rounds=20, seed=1), whole)
    assert np.isnan(whole).any()  # battles of some models were not drawn
    np.testing.assert_allclose(whole, _slow_bootstrap(battles, 20, 1), rtol=0, atol=1e-9)


def test_ranks_among_equals() -> None:
    assert ranks_by_order([5, 7, 7, 1]).tolist() == [3, 2, 1, 4]
    assert ranks_by_mean([5, 7, 7, 1]).tolist() == [3, 1.5, 1.5, 4]
    assert winner_of(scores_of("nan 1")) == "tie (None)"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"model_a": "x"}, "has no 'model_a' and 'model_b'"),
        ({"model_a": "x", "model_b": "x", "winner": "tie"}, "'x' fights itself"),
        ({"model_a": "x", "model_b": "y"}, "has no verdict"),
        ({"model_a": "x", "model_b": "y", "winner": "x"}, "has no verdict"),
        ({"model_a": "x", "model_b": "y", "score": [1]}, "'score' is two numbers"),
        ({"model_a": "x", "model_b": "y", "score": [True, 1]}, "'score' is two numbers"),
        ({"model_a": "x", "model_b": "y", "winner": "tie", "i": 0}, "the id 0 is that of line 1 too"),
        ({"model_a": "x", "model_b": "y", "winner": "tie", "i": [0]}, "neither a number nor a text"),
    ],
)
def test_lines_that_are_no_battle(tmp_path: Path, row: dict, message: str) -> None:
    good = {"i": 0, "model_a": "x", "model_b": "y", "winner": "tie"}
    with pytest.raises(InputError, match=message):
        reading.read(_battles(tmp_path, [good, row]))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no battle"), (b"[1]\n", "expected an object"), (b"{x\n", "line 1: is no JSON"),
     (b"\x1f\x8b\x00", "cannot be read")],
)  # fmt: skip
def test_files_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        reading.read(path)
    with pytest.raises(InputError, match="does not exist"):
        reading.read(tmp_path / "none.jsonl")


def test_a_winner_that_the_verdict_does_not_give_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"model_a": "x", "model_b": "y", "judge": "9 1", "winner": "model_b"},
        {"model_a": "x", "model_b": "y", "judge": "9 1", "winner": "model_a"},
        {"model_a": "x", "model_b": "y", "judge": "8, 9", "winner": "tie (None)"},
    ]
    assert main(["score", "elo", str(_battles(tmp_path, rows)), "--rounds", "30"]) == 0
    told = capsys.readouterr()
    assert "own: 1 lines name another winner than their verdict gives, which counts: line 1" in told.err
    assert "own: 1 verdicts hold no scores and count as ties: line 3 '8, 9'" in told.err
    head, best, *_ = [line.split() for line in told.out.splitlines() if line.strip()]
    assert head[:2] == ["model", "rating"] and best[0] == "x" and "to" in best and best[-1] == "3"
    assert main(["score", "elo"]) == 2
    assert "found none" in capsys.readouterr().err
