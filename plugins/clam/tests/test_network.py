"""Networks and steps against upstream's golden files, key manifests, and themselves as ONNX."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from omlab.plugins import Registry  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab_clam import goldens  # noqa: E402
from omlab_clam.losses import SmoothTop1SVM  # noqa: E402
from omlab_clam.model import ClamModel, classifier_graph  # noqa: E402
from omlab_clam.network import NETWORKS, ClamMB, ClamSB, MaxMIL, MaxMILMany  # noqa: E402
from omlab_sdk.export import TorchOnnxExporter  # noqa: E402
from omlab_sdk.golden import Golden, GoldenError, seed_module  # noqa: E402

FOLDER = Path(__file__).parent.parent / "goldens"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.npz")), ids=lambda p: p.stem)
def test_outputs_equal_upstream(path: Path) -> None:
    golden = Golden.read(path)
    computed = goldens.compute(golden)
    assert golden.outputs
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < 1e-5, output


def test_heat_maps_need_no_other_file() -> None:
    """Where the slide's own golden is not beside it, its settings are known."""
    golden = Golden.read(FOLDER / "clam-heatmap.npz")
    alone = Golden(golden.meta, golden.literal, golden.outputs)
    computed = goldens.compute(alone)
    assert golden.outputs["a"].error(computed["a"]) == 0


@pytest.mark.parametrize(("name", "build"), [
    ("clam-sb-small", ClamSB),
    ("clam-sb-small-3", lambda: ClamSB(n_classes=3)),
    ("clam-sb-big", lambda: ClamSB(size="big")),
    ("clam-sb-cl", lambda: ClamSB(size="cl")),
    ("clam-sb-small-nodropout-3", lambda: ClamSB(n_classes=3, dropout=False, instance_loss="cross-entropy")),
    ("clam-mb-small", lambda: ClamMB(n_classes=3)),
    ("clam-mil-fc", MaxMIL),
    ("clam-mil-fc-mc", MaxMILMany),
])  # fmt: skip
def test_names_and_shapes_are_upstreams(name: str, build) -> None:
    keys = json.loads(gzip.decompress((FOLDER / f"{name}.keys.json.gz").read_bytes()))
    own = {key: list(tensor.shape) for key, tensor in build().state_dict().items()}
    assert own == {key: shape for key, (shape, _, _) in keys.items()}


def test_the_plain_attention_has_upstreams_places() -> None:
    names = set(ClamSB(gate=False).state_dict())
    assert {"attention_net.3.module.0.weight", "attention_net.3.module.3.weight"} <= names
    names = set(ClamSB(gate=False, dropout=False).state_dict())
    assert {"attention_net.2.module.0.weight", "attention_net.2.module.2.weight"} <= names


def test_an_unknown_entry_is_refused() -> None:
    golden = Golden.make({"model": "clam", "entry": "SomethingElse", "kwargs": {}}, {"x": np.zeros(3)})
    with pytest.raises(GoldenError, match="SomethingElse"):
        goldens.compute(golden)


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("classes", [2, 3])
def test_exported_equals_torch(tmp_path: Path, name: str, classes: int) -> None:
    network = seed_module(NETWORKS[name](features=64, n_classes=classes).eval())
    TorchOnnxExporter().export(network, classifier_graph(64, classes, {}), tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for size in (1, 700):
        bag = np.random.default_rng(size).standard_normal((size, 64), dtype=np.float32)
        with torch.inference_mode():
            expected = [tensor.numpy() for tensor in network(torch.from_numpy(bag))]
        for found, right in zip(session.run(None, {"bag": bag}), expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


def test_small_bags_are_refused_in_training_only() -> None:
    network = ClamSB(features=16, k_sample=8)
    assert network(torch.zeros(3, 16))[0].shape == (1, 2)
    with pytest.raises(ValueError, match="a bag of 3 patches is smaller than the 8"):
        network.loss(torch.zeros(3, 16), 0)


def test_the_smooth_loss_is_continuous_where_it_becomes_a_hinge() -> None:
    loss = SmoothTop1SVM(2)
    near = [loss(torch.tensor([[0.0, gap]]), torch.tensor([0])) for gap in (loss.least_gap - 1e-4, loss.least_gap)]
    assert float(near[0]) == pytest.approx(float(near[1]), abs=2e-3)


@pytest.mark.parametrize("variant", [v.name for v in Registry.discover().card(Kind.MODEL, "clam").variants])
def test_every_variant_has_its_network(variant: str) -> None:
    model = ClamModel(Registry.discover().card(Kind.MODEL, "clam"))
    chosen = model.card.variant(variant)
    (graph,) = model.graphs(chosen)
    network = model.untrained(graph, chosen)
    bag = torch.zeros(5, graph.inputs[0].shape[1])
    assert network(bag)[0].shape[1] == (len(chosen.labels) or 2)
