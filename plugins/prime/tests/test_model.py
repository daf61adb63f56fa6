"""Sequences in, temperatures, scores, embeddings and pictures out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import attrs
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from omlab.cards import Asset  # noqa: E402
from omlab.errors import InputError, UsageError  # noqa: E402
from omlab.loading import EngineChoice, LoadedModel  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.running import run  # noqa: E402
from omlab.settings import Settings  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab.weights import Grant  # noqa: E402
from omlab.weights.fetch import adopt  # noqa: E402
from omlab_prime import mutants  # noqa: E402
from omlab_prime.model import Prime as PrimeModel  # noqa: E402
from omlab_prime.network import Legacy, Prime  # noqa: E402
from omlab_prime.vocabulary import AMINO_ACIDS  # noqa: E402

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
PROTEINGYM = Path(__file__).resolve().parents[4] / "shared" / "data" / "proteingym"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of the small network are made once for all tests."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def load_small(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    """A loaded model of a small network, its weights adopted as a user's own file would be."""
    monkeypatch.setenv("OMLAB_HOME", str(home))

    def make(variant: str = "690m") -> LoadedModel:
        registry, settings = Registry.discover(), Settings.from_environment()
        card = registry.card(Kind.MODEL, "prime")
        chosen = card.variant(variant)
        torch.manual_seed(0)
        generation = chosen.config["generation"]
        regression = bool(chosen.config["temperature"])
        heads = {"residues": chosen.config.get("residues", True), "temperature": regression}
        network = Prime(**heads, **SMALL) if generation == "c" else Legacy(regression=regression, **SMALL)
        path = tmp_path / "own.pt"
        torch.save(network.state_dict(), path)
        asset = Asset(id="net", source="by-hand", file="own.pt", instructions="bring it")
        adopt(asset, path, settings)
        chosen = attrs.evolve(chosen, weights=(asset,), config=dict(chosen.config) | {"size": SMALL})
        return LoadedModel(
            PrimeModel(card), chosen, registry=registry, settings=settings,
            choice=EngineChoice(engine="onnxruntime", precision="float32"),
            grant=Grant(accept=("LicenseRef-PRIME",)),
        )  # fmt: skip

    return make


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_temperature_for_every_sequence_and_bad_ones_harm_no_other(load_small, tmp_path: Path) -> None:
    fasta = tmp_path / "proteins.fasta"
    fasta.write_text(
        f">ubi human\n{UBIQUITIN[:40]}\n{UBIQUITIN[40:].lower()}*\n>odd\nMKJT\n>none\n\n>bad\nM1K\n>gs\nGSHM\n"
    )
    rows = {row.name: row for row in run(load_small(), [fasta], tmp_path / "out")}
    assert {name: row.status for name, row in rows.items()} == {
        "ubi": "done", "odd": "failed", "none": "failed", "bad": "failed", "gs": "done",
    }  # fmt: skip
    assert "residue 'J' at position 3" in rows["odd"].cause
    assert "is empty" in rows["none"].cause
    assert "'1' at position 2" in rows["bad"].cause
    record = json.loads((tmp_path / "out/ubi/result.json").read_text())
    assert record["input"]["details"]["length"] == len(UBIQUITIN)
    assert np.isfinite(record["result"]["measurements"]["optimal_growth_temperature_celsius"])


def test_mutants_are_scored_by_the_published_rule(load_small, tmp_path: Path) -> None:
    fasta, table = tmp_path / "p.fasta", tmp_path / "m.csv"
    fasta.write_text(f">ubi\n{UBIQUITIN}\n")
    table.write_text("mutant,score\nM1A,0.5\nQ2C:I3L,-1\nG76P,2\nwt,0\n")
    loaded = load_small()
    (row,) = run(loaded, [fasta], tmp_path / "out", options={"mutants": table})
    found = _rows(tmp_path / "out/ubi/scores.csv")
    assert row.status == "done", row.cause
    assert [r["score"] for r in found] == ["0.5", "-1", "2", "0"]
    (full,) = run(loaded, [fasta], tmp_path / "all", options={"saturate": True})
    assert full.status == "done", full.cause
    single = {r["mutant"]: float(r["predict_score"]) for r in _rows(tmp_path / "all/ubi/scores.csv")}
    assert len(single) == 19 * len(UBIQUITIN)
    by_name = {r["mutant"]: float(r["predict_score"]) for r in found}
    assert by_name["M1A"] == single["M1A"] != 0
    assert by_name["Q2C:I3L"] == pytest.approx(single["Q2C"] + single["I3L"], abs=1e-6)
    assert by_name["wt"] == 0
    with Image.open(tmp_path / "all/ubi/overview.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert len(colours) > 200  # a ramp of scores and not one colour


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A23C", "residue 23 is I, not A"),
        ("M1A:A99C", "position 99 is behind the end, the sequence has 76"),
        ("M1A:M1C", "position 1 is changed twice"),
        ("M1J", "'J' is no residue"),
    ],
)
def test_mutants_that_do_not_fit(load_small, tmp_path: Path, text: str, message: str) -> None:
    fasta, table = tmp_path / "p.fasta", tmp_path / "m.csv"
    fasta.write_text(f">ubi\n{UBIQUITIN}\n")
    table.write_text(f"mutant\n{text}\n")
    (row,) = run(load_small(), [fasta], tmp_path / "out", options={"mutants": table})
    assert row.code == "input"
    assert message in row.cause


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"mutant\nm1x7\n", "line 2: 'm1x7' is no substitution"),
        (b"mutant\n\xff\n", "is no UTF-8 text, byte 7 cannot be read"),
        (b" \n", "is empty, a table of mutants was expected"),
        (b"mutant\n", "holds no mutant"),
        (b"a,b\n1,2\n", "has no column 'mutant', it has a, b"),
        (None, "does not exist, a table of mutants was expected"),
    ],
)
def test_a_table_that_is_none_is_told_once(load_small, tmp_path: Path, content: bytes | None, message: str) -> None:
    fasta, table = tmp_path / "p.fasta", tmp_path / "m.csv"
    fasta.write_text(f">ubi\n{UBIQUITIN}\n")
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(run(load_small(), [fasta], tmp_path / "out", options={"mutants": table}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mutants": "m.csv", "saturate": True}, "are two questions"),
        ({"saturate": True, "give": "embedding"}, "--give embedding asks for something else"),
        ({"max_length": 0}, "--max-length is 1 to 8192, found 0"),
        ({"max_length": 8193}, "--max-length is 1 to 8192, found 8193"),
    ],
)
def test_options_that_exclude_each_other_are_wrong_usage(load_small, tmp_path: Path, options, message) -> None:
    (tmp_path / "p.fasta").write_text(f">ubi\n{UBIQUITIN}\n")
    with pytest.raises(UsageError, match=message):
        list(run(load_small(), [tmp_path / "p.fasta"], tmp_path / "out", options=options))


def test_a_table_that_changes_is_read_again(load_small, tmp_path: Path) -> None:
    fasta, table = tmp_path / "p.fasta", tmp_path / "m.csv"
    fasta.write_text(f">ubi\n{UBIQUITIN}\n")
    loaded = load_small()
    for mutant in ("M1A", "Q2C:I3L"):
        table.write_text(f"mutant\n{mutant}\n")
        list(run(loaded, [fasta], tmp_path / "out", options={"mutants": table}))
        assert [row["mutant"] for row in _rows(tmp_path / "out/ubi/scores.csv")] == [mutant]


def test_embeddings(load_small, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"id,sequence\nubi,{UBIQUITIN}\n")
    (row,) = run(load_small(), [table], tmp_path / "out", options={"give": "embedding"})
    with np.load(row.folder / "embedding.npz") as arrays:
        assert arrays["vector"].shape == (32,)
        assert arrays["tokens"].shape == (76, 32)


def test_a_sequence_that_is_too_long_and_one_that_the_user_allows(load_small, tmp_path: Path) -> None:
    fasta = tmp_path / "long.fasta"
    fasta.write_text(f">titin\n{'MKTAYIAKQR' * 10_000}\n")
    (row,) = run(load_small(), [fasta], tmp_path / "out")
    assert "has 100000 residues, at most 4096" in row.cause
    assert row.remedy == "Cut it into domains"
    fasta.write_text(f">short\n{'MKTAYIAKQR' * 2}\n")
    (row,) = run(load_small(), [fasta], tmp_path / "out", options={"max_length": 19})
    assert "--max-length 20" in row.remedy


def test_variants_of_one_head_say_what_they_can_and_what_not(load_small, tmp_path: Path) -> None:
    fasta = tmp_path / "p.fasta"
    fasta.write_text(f">ubi\n{UBIQUITIN}\n")
    masked = load_small("650m")
    (row,) = run(masked, [fasta], tmp_path / "scores", options={"saturate": True})
    assert row.status == "done", row.cause
    (row,) = run(masked, [fasta], tmp_path / "auto", options={"give": "temperature"})
    assert "variant '650m' of prime gives no temperature" in row.cause
    growth = load_small("650m-ogt")
    (row,) = run(growth, [fasta], tmp_path / "ogt")
    assert row.status == "done", row.cause
    (row,) = run(growth, [fasta], tmp_path / "none", options={"saturate": True})
    assert "variant '650m-ogt' of prime gives no scores" in row.cause
    with np.load(
        next(run(growth, [fasta], tmp_path / "e", options={"give": "embedding"})).folder / "embedding.npz"
    ) as e:
        assert e["vector"].shape == (32,) and e["tokens"].shape == (76, 32)


def test_legacy_variants(load_small, tmp_path: Path) -> None:
    fasta, table = tmp_path / "p.fasta", tmp_path / "m.csv"
    fasta.write_text(f">ubi\n{UBIQUITIN}\n>sec\nMKU\n")
    table.write_text("mutant\nwt\nM1A\n")
    rows = list(run(load_small("legacy"), [fasta], tmp_path / "out", options={"mutants": table}))
    assert [row.status for row in rows] == ["done", "failed"]
    assert "'U' at position 3" in rows[1].cause
    assert float(_rows(tmp_path / "out/ubi/scores.csv")[0]["predict_score"]) == 0
    rows = list(run(load_small("legacy-ogt"), [fasta], tmp_path / "ogt"))
    assert rows[0].status == "done"
    (row, _) = run(load_small("legacy-ogt"), [fasta], tmp_path / "ogt2", options={"saturate": True})
    assert "gives no scores" in row.cause
    table.write_text("mutant\nM1A:Q2C\n")
    (row, _) = run(load_small("legacy"), [fasta], tmp_path / "two", options={"mutants": table})
    assert "several substitutions" in row.cause


@pytest.mark.parametrize(
    ("positions", "length", "expected"),
    [
        ([5], 100, (0, 100)),
        ([5, 4095], 5000, (0, 4096)),
        ([4096], 5000, (1, 4097)),
        ([1000, 4999], 5000, (904, 5000)),
        ([0, 8000, 8001, 8002], 9000, (3907, 8003)),
    ],
)
def test_windows_of_the_legacy_scorer(positions: list[int], length: int, expected: tuple[int, int]) -> None:
    assert mutants.window(positions, length) == expected


def test_an_ensemble_adds_scores_brought_to_one_scale() -> None:
    one, other = np.array([0.0, 5, 10]), np.array([-2.0, -1, -2])
    np.testing.assert_allclose(mutants.ensemble([one, other]), [0, 1.5, 1])
    np.testing.assert_allclose(mutants.ensemble([one, np.full(3, 4.0)]), [0, 0.5, 1])


def test_mutants_of_real_assays_fit_their_proteins() -> None:
    if not PROTEINGYM.is_dir():
        pytest.skip("needs the folder of real assays beside the project")
    from omlab.cases import read

    count = 0
    for path in sorted((PROTEINGYM / "mutant").glob("*.csv")):
        protein = read(PROTEINGYM / "fasta" / f"{path.stem}.fasta")
        table = mutants.read(path)
        mutants.demand(table, protein.residues, path.stem)
        assert list(table.others) == ["score"]
        grid = np.random.default_rng(0).standard_normal((len(protein.residues), 33)).astype(np.float32)
        multiple = [m for m in table.mutants if len(m) > 1]
        for mutant in multiple[:20]:
            parts = sum(mutants.score([one], grid) for one in mutant)
            assert mutants.score(mutant, grid) == pytest.approx(parts, abs=1e-9)
        full = mutants.saturation(protein.residues, grid)
        single = next(m for m in table.mutants if len(m) == 1)
        cell = full[single[0].position - 1, AMINO_ACIDS.index(single[0].new)]
        assert mutants.score(single, grid) == pytest.approx(float(cell))
        count += len(table.mutants)
    assert count == 6137
