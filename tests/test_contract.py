"""The plugins of this repository, all installed together, against the parts of the contract that need no weights; and
what the contract says of sizes."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

import attrs
import pytest

from omlab.cards import ModelCard, Variant
from omlab.cli.main import main
from omlab.errors import UsageError
from omlab.graphs import Graph, TensorSpec
from omlab.model import Model
from omlab.plugins import Registry
from omlab.vocabulary import Kind
from omlab_sdk.contract import CHECKS, Broken, Check, Skipped, Subject, check_plugin, subject_of
from omlab_sdk.contract.models import checked_models, described, small_of
from omlab_sdk.contract.run import run_checks
from omlab_sdk.contract.sizes import sizes
from support import ROOT

OURS = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml"))
QUICK = ("card", "discovery", "hooks", "licence", "weights", "sizes", "scores")
#: More parameters than this are not small.
SMALL = 25_000_000


def test_all_of_ours_are_installed_and_sound() -> None:
    registry = Registry.discover()
    assert registry.broken == []
    assert {f"omlab-{name}" for name in OURS} <= {plugin.distribution for plugin in registry.plugins.values()}


@pytest.mark.parametrize("name", OURS)
def test_the_contract_holds(name: str) -> None:
    assert set(QUICK) <= {check.name for check in CHECKS}
    findings = list(check_plugin(f"omlab-{name}", QUICK))
    assert {"card", "discovery", "hooks", "licence"} <= {finding.check for finding in findings}
    assert [f"{f.check}: {f.detail}" for f in findings if f.status == "broken"] == []
    # Every network of ours has an outline, so none is left out.
    assert [f.detail for f in findings if f.check == "sizes" and ("no outline" in f.detail or f.status != "good")] == []


@pytest.mark.parametrize("name", OURS)
def test_what_the_contract_runs_is_small(name: str, tmp_path: Path) -> None:
    subject = subject_of(f"omlab-{name}", tmp_path)
    checked_models(subject)
    for one in described(subject):
        assert one.parameters is not None, one
        assert one.parameters <= SMALL, one.text


def test_a_variant_for_every_kind_of_graph_is_looked_at(tmp_path: Path) -> None:
    subject = subject_of("retfound", tmp_path)
    chosen = checked_models(subject)
    assert [(one.name, one.how) for one in chosen] == [
        ("retfound/cfp", "small, seeded"),
        ("retfound/idrid", "small, seeded"),
    ]
    assert checked_models(subject) is chosen  # and its engines are made once
    full = subject_of("retfound", tmp_path, full=True, variants=["dinov2-meh"])
    (one,) = checked_models(full)
    assert (one.published.name, one.small) == ("dinov2-meh", False)
    assert one.loaded.graphs == one.loaded.model.graphs(one.published)


def test_an_unknown_variant_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no model of 'retfound' has a variant 'huge'"):
        subject_of("retfound", tmp_path, variants=["huge"])
    assert main(["check", "mni152", "--variant", "huge"]) == 2
    assert "no model of 'mni152' has a variant 'huge'" in capsys.readouterr().err


def test_a_small_check_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "prime", "--only", "bad-inputs"]) == 0
    told = capsys.readouterr().out
    assert "(small size, " in told
    assert "looked at prime/690m in a small size of the same code" in told
    assert "published 669 million parameters" in told
    assert told.rstrip().endswith("To run it: omlab check prime --full")


def test_a_full_check_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "small-vit", "--full", "--variant", "grey-28", "--only", "bad-inputs", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plugin"] == "small-vit"
    (network,) = told["networks"]
    assert network["size"] == "full"
    assert network["variant"] == "grey-28"
    assert network["parameters"] == network["published_parameters"] > 1e6  # its small size has 0.4 million
    assert [finding["size"] for finding in told["findings"]] == ["full"]


class _Told(Model):
    """A model whose graph declares ``features`` numbers, and whose network gives ``gives``."""

    declared, gives = 4, 4

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        return (
            Graph(
                name="net",
                inputs=(TensorSpec("image", "float32", ("batch", 3), ranges={"batch": (1, 1, 8)}),),
                outputs=(TensorSpec("feature", "float32", ("batch", self.declared)),),
            ),
        )

    def untrained(self, graph: Graph, variant: Variant) -> object:
        from torch import nn

        layer = nn.Linear(3, self.gives)
        nn.init.trunc_normal_(layer.weight, std=0.02)  # draws until nothing lies outside
        return layer


class _Looks(_Told):
    def untrained(self, graph: Graph, variant: Variant) -> object:
        from torch import nn

        class Branch(nn.Linear):
            def forward(self, x):  # type: ignore[no-untyped-def]
                return super().forward(x) if float(x.sum()) > 0 else x

        return Branch(3, self.gives)


class _Wrong(_Told):
    gives = 5


def _of(model: type[Model], folder: Path) -> Subject:
    """A subject with one model, which is not installed."""
    subject = subject_of("small-vit", folder)
    (card,) = subject.cards(Kind.MODEL)

    class One:
        def card(self, kind: Kind, name: str) -> ModelCard:
            assert isinstance(card, ModelCard)
            return attrs.evolve(card, variants=card.variants[:1])

        def load(self, kind: Kind, name: str) -> Model:
            return model(self.card(kind, name))

    return attrs.evolve(subject, registry=One())


def test_outlines_are_compared_with_what_is_declared(tmp_path: Path) -> None:
    assert sizes(_of(_Told, tmp_path)).startswith("1 networks of up to 1.6e-05 million parameters")
    with pytest.raises(Broken, match=r"graph 'net': output 'feature' is float32 \[2, 5\], declared .*'batch', 4"):
        sizes(_of(_Wrong, tmp_path))
    with pytest.raises(Skipped, match=r"no outline of small-vit/grey-28, graph 'net': DataDependentOutputException"):
        sizes(_of(_Looks, tmp_path))


def test_a_model_without_a_small_size_is_taken_as_it_is(tmp_path: Path) -> None:
    subject = _of(_Told, tmp_path)
    (card,) = subject.cards(Kind.MODEL)
    assert isinstance(card, ModelCard)
    variant = card.variants[0]
    small = small_of(_Told(card), variant)
    assert (small.config, small.weights) == (variant.config, ())


def test_who_calls_others_is_told(tmp_path: Path) -> None:
    """Also where the call fails, as it does here, and is passed over; the machine itself may be called."""

    def reach(subject: Subject) -> str:
        for host in ("localhost", "statistics.invalid"):
            with contextlib.suppress(OSError), socket.create_connection((host, 9), timeout=1):
                pass
        return "done"

    checks = [Check("reach", "", reach), next(check for check in CHECKS if check.name == "calls")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omlab_sdk.contract.run.CHECKS", tuple(checks))
        first, second = run_checks(subject_of("mni152", tmp_path))
        assert (first.status, second.status) == ("good", "broken")
        assert "reached for statistics.invalid without being asked" in second.detail
        patch.setattr("omlab_sdk.contract.run.CHECKS", tuple(checks[1:]))
        (alone,) = run_checks(subject_of("mni152", tmp_path))
        assert alone.status == "good"


def test_what_does_not_fit_into_memory_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omlab.memory.available_bytes", lambda: 1e9)
    with pytest.raises(Skipped, match=r"pulse/20b has 20.1 billion parameters, .* 161 GB to check; 1 GB are free"):
        checked_models(subject_of("pulse", tmp_path, full=True))
