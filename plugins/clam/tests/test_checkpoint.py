"""Heads from files, in every form that upstream's scripts leave them."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from omlab.errors import WeightsError  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab_clam import checkpoint  # noqa: E402
from omlab_clam.model import ClamModel  # noqa: E402
from omlab_clam.network import ClamMB, ClamSB, MaxMIL, MaxMILMany, MeanMIL  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402

BAG = torch.rand(20, 32, generator=torch.Generator().manual_seed(0))


def _save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("network", [
    ClamSB(features=32), ClamSB(features=32, dropout=False, n_classes=4), ClamSB(features=32, gate=False),
    ClamSB(features=32, gate=False, dropout=False), ClamSB(features=32, size="big"), ClamMB(features=32, n_classes=3),
    ClamMB(features=32, dropout=False), MaxMIL(features=32), MaxMIL(features=32, dropout=False),
    MaxMILMany(features=32, n_classes=5), MeanMIL(features=32, n_classes=3),
])  # fmt: skip
def test_the_network_is_told_by_its_entries(tmp_path: Path, network: torch.nn.Module) -> None:
    seed_module(network.eval())
    state = network.state_dict()
    for content in (state, {"state_dict": state}):
        loaded = checkpoint.head(_save(tmp_path / "net.pt", content))
        with torch.inference_mode():
            for found, right in zip(loaded(BAG), network(BAG), strict=True):
                torch.testing.assert_close(found, right)


def test_newer_names_of_pooling(tmp_path: Path) -> None:
    two, many = seed_module(MaxMIL(features=32).eval()), seed_module(MaxMILMany(features=32, n_classes=4).eval())
    a, b = two.state_dict(), many.state_dict()
    newer = {
        "fc.0.weight": a["classifier.0.weight"], "fc.0.bias": a["classifier.0.bias"],
        "classifier.weight": a["classifier.3.weight"], "classifier.bias": a["classifier.3.bias"],
    }  # fmt: skip
    torch.testing.assert_close(checkpoint.head(_save(tmp_path / "a.pt", newer))(BAG), two(BAG))
    newer = {name: b[name] for name in ("fc.0.weight", "fc.0.bias")} | {
        f"classifiers.{what}": torch.cat([b[f"classifiers.{n}.{what}"] for n in range(4)])
        for what in ("weight", "bias")
    }
    torch.testing.assert_close(checkpoint.head(_save(tmp_path / "b.pt", newer))(BAG), many(BAG))


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no slide classifier, its first entry is 'conv.weight'"):
        checkpoint.head(_save(tmp_path / "a.pt", {"conv.weight": torch.zeros(3, 3)}))
    state = ClamSB(features=32).state_dict()
    del state["classifiers.bias"]
    with pytest.raises(WeightsError, match=r"1 entry missing, first 'classifiers\.bias'"):
        checkpoint.head(_save(tmp_path / "b.pt", state))
    model = ClamModel(Registry.discover().card(Kind.MODEL, "clam"))

    def load(variant: str, network: torch.nn.Module) -> None:
        chosen = model.card.variant(variant)
        model.network(model.graphs(chosen)[0], chosen, {"net": _save(tmp_path / "c.pt", network.state_dict())})

    load("brca", ClamSB())
    load("classifier-1024", ClamMB(n_classes=6))
    with pytest.raises(WeightsError, match="takes 32 features, variant 'brca' has 768"):
        load("brca", ClamSB(features=32))
    with pytest.raises(WeightsError, match="tells 2 classes apart, variant 'rcc' has 3"):
        load("rcc", ClamSB())
