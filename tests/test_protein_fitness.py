"""A protein model on measured mutants from the command line: run, score, go on, compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")
pytest.importorskip("omlab_prime")
pytest.importorskip("omlab_proteingym")
pytest.importorskip("omlab_fitness")

from omlab.cards import Asset  # noqa: E402
from omlab.cli.main import main  # noqa: E402
from omlab.loading import EngineChoice, LoadedModel  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.settings import Settings  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab.weights import Grant  # noqa: E402
from omlab.weights.fetch import adopt  # noqa: E402

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PROTEINS = {
    "UBI": "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG",
    "SHORT": "GSHMAEVLCDPWKRTNQYFI",
}


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A seeded PRIME of two narrow layers, which ``omlab evaluate prime`` then runs, weights adopted as a user's."""
    from omlab_prime.model import Prime as Model
    from omlab_prime.network import Prime

    torch.manual_seed(3)
    made = Prime(**SMALL).eval()
    # Scores of random weights are alike to a thousandth; told apart they rank.
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)
    torch.save(made.state_dict(), tmp_path / "own.pt")

    def load(name: str, **_: Any) -> LoadedModel:
        registry, settings = Registry.discover(), Settings.from_environment()
        card = registry.card(Kind.MODEL, name)
        asset = Asset(id="net", source="by-hand", file="own.pt", instructions="bring it")
        adopt(asset, tmp_path / "own.pt", settings)
        variant = attrs.evolve(card.variant("690m"), weights=(asset,)).configured(size=SMALL)
        return LoadedModel(
            Model(card), variant, registry=registry, settings=settings,
            choice=EngineChoice(engine="onnxruntime", precision="float32"), grant=Grant(accept=("LicenseRef-PRIME",)),
        )  # fmt: skip

    monkeypatch.setattr("omlab.api.load", load)
    return made


def _scored(network: Any, residues: str, mutants: list[str]) -> list[float]:
    """Log-odds of each mutant straight from the network: the published rule, in which the normaliser cancels."""
    from omlab_prime.vocabulary import ID, encode

    ids = torch.tensor([encode(residues)])
    with torch.no_grad():
        found = network(ids, torch.ones_like(ids))
    logits = (found["logits"] if isinstance(found, dict) else found[0])[0, 1:-1].double().numpy()

    def odds(part: str) -> float:
        place = int(part[1:-1]) - 1
        return float(logits[place, ID[part[-1]]] - logits[place, ID[part[0]]])

    return [sum(map(odds, mutant.split(":"))) for mutant in mutants]


def _tree(root: Path, network: Any) -> dict[str, float]:
    """The layout of ProteinGym with noisy measurements; name -> the correlation that must be found."""
    generator = np.random.default_rng(0)
    wanted = {}
    (root / "fasta").mkdir(parents=True), (root / "mutant").mkdir()
    for name, residues in PROTEINS.items():
        (root / "fasta" / f"{name}.fasta").write_text(f">{name}\n{residues}\n")
        singles = [
            f"{residues[i]}{i + 1}{new}"
            for i in generator.permutation(len(residues))[:16]
            for new in generator.choice([a for a in "ACDEFGHIKLMNPQRSTVWY" if a != residues[i]], 4, replace=False)
        ]
        mutants = [*singles, f"{singles[0]}:{singles[-1]}"]
        scores = _scored(network, residues, mutants)
        fitness = np.round(np.array(scores) / np.std(scores) + generator.normal(0, 1, len(scores)), 1)  # with ties
        (root / "mutant" / f"{name}.csv").write_text(
            "mutant,score\n" + "".join(f"{m},{f}\n" for m, f in zip(mutants, fitness, strict=True))
        )
        wanted[name] = stats.spearmanr(scores, fitness).statistic
    return wanted


def test_prime_on_proteingym_from_run_to_comparison(
    network: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = _tree(tmp_path / "gym", network)
    out = tmp_path / "out"
    call = ["evaluate", "prime", "--on", f"proteingym:{tmp_path / 'gym'}", "--with", "fitness", "--rounds", "100"]
    assert main([*call, "-o", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"assays", "average"}
    assert {name: row["spearman"] for name, row in found["assays"].items()} == pytest.approx(wanted, abs=1e-6)
    assert found["average"] == pytest.approx(np.mean(list(wanted.values())), abs=1e-6)
    assert all(0.2 < row["low"] < row["spearman"] < row["high"] for row in found["assays"].values())
    assert {row["mutants"] for row in found["assays"].values()} == {65}
    assert {row["multiple"] for row in found["assays"].values()} == {1}
    report = json.loads((out / "report.json").read_text("utf-8"))
    made = report["environment"]
    assert made["model"] == "prime" and made["dataset"].startswith("proteingym:") and len(made["weights_sha256"]) == 64
    assert made["engines"]["network"]["engine"]["backend"] == "onnxruntime" and made["failed"] == 0
    assert (out / "report.html").is_file() and len(list((out / "answers").iterdir())) == 2
    assert main([*call, "-o", str(out), "--resume"]) == 0
    assert "2 answers were there already" in capsys.readouterr().err


def test_an_assay_that_is_not_of_its_protein_fails_alone(
    network: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = _tree(tmp_path / "gym", network)
    table = tmp_path / "gym" / "mutant" / "SHORT.csv"
    table.write_text("mutant,score\nA1C,1\nG1A,2\nS2A,3\n")
    call = ["evaluate", "prime", "--on", f"proteingym:{tmp_path / 'gym'}", "--with", "fitness", "--rounds", "0"]
    assert main([*call, "-o", str(tmp_path / "r.json")]) == 1
    told = capsys.readouterr()
    assert "SHORT: " in told.err and "residue 1 is G, not A" in told.err
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert report["summary"]["UBI/spearman"]["value"] == pytest.approx(wanted["UBI"], abs=1e-6)
    assert report["environment"]["failed"] == 1
