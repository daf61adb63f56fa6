"""Networks and steps against upstream's golden files, key manifests, and themselves as ONNX.

The networks of the published sizes take half a minute and run with ``OMLAB_FULL_GOLDENS=1``; ``omlab check`` runs them
always.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from omlab.errors import WeightsError  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab_medlsam import checkpoint, goldens, medlam  # noqa: E402
from omlab_medlsam.network import MedLam, Unit, correlated, edges  # noqa: E402
from omlab_medlsam.pretraining import PretrainingLoss  # noqa: E402
from omlab_sdk.golden import Golden, GoldenError, seed_module  # noqa: E402
from omlab_sdk.networks.sam.network import SIZES, Sam  # noqa: E402

FOLDER = Path(__file__).parent.parent / "goldens"
#: A wrong epsilon shows at 2e-5.
SMALL = 1e-5
STEPS = ("arithmetic", "loss", "medlam_small", "medsam_tiny", "locate_wpl", "locate_spl")


@pytest.mark.parametrize("name", STEPS)
def test_outputs_equal_upstream(name: str) -> None:
    golden = Golden.read(FOLDER / f"medlsam-{name}.npz")
    computed = goldens.compute(golden)
    assert golden.outputs
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < SMALL, output


@pytest.mark.skipif(os.environ.get("OMLAB_FULL_GOLDENS") != "1", reason="set OMLAB_FULL_GOLDENS=1 for the full size")
@pytest.mark.parametrize("name", ["medlam", "medsam_vit_b"])
def test_full_size_outputs_equal_upstream(name: str) -> None:
    golden = Golden.read(FOLDER / f"medlsam-{name}.npz")
    computed = goldens.compute(golden)
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < 1e-4, output


def _shapes(name: str) -> dict[str, list[int]]:
    keys = json.loads(gzip.decompress((FOLDER / f"medlsam-{name}.keys.json.gz").read_bytes()))
    return {key: shape for key, (shape, _, _) in keys.items()}


def test_names_and_shapes_are_upstreams() -> None:
    with torch.device("meta"):
        own = {key: list(tensor.shape) for key, tensor in MedLam().state_dict().items()}
        sam = {key: list(tensor.shape) for key, tensor in Sam(**SIZES["vit_b"]).state_dict().items()}
    assert own == _shapes("medlam")
    assert len(own) == 44
    assert sam == _shapes("medsam_vit_b")


def test_a_wrong_epsilon_is_noticed() -> None:
    golden = Golden.read(FOLDER / "medlsam-medlam_small.npz")
    network = goldens.medlam_of(golden)
    faint = torch.from_numpy(golden.input("faint"))
    with torch.inference_mode():
        assert golden.outputs["faint_conv0"].error(network.conv0_1(faint).numpy()) < SMALL
        network.conv0_1.model.norm1_1.eps = 1e-6
        assert golden.outputs["faint_conv0"].error(network.conv0_1(faint).numpy()) > SMALL


def test_other_units() -> None:
    """Depthwise units, batch normalisation and dilation under upstream's names; level 4 dilates by half."""
    names = set(Unit(2, 4, depth=True, norm="bn").state_dict())
    assert "model.conv1_1.Conv.conv1_1_depth.weight" in names
    assert "model.conv1_1.Conv.conv1_1_point.bias" in names
    assert "model.norm1_1.running_var" in names
    network = MedLam(base_chns=1, patch_size=(32, 32, 32), dilation=3)
    assert network.conv3_1.model.conv1_1.Conv.dilation == (3, 3, 3)
    assert network.conv4_2.model.conv1_1.Conv.dilation == (2, 2, 2)
    found = network(
        torch.rand(1, 1, 32, 48, 32), out_feature=True, feature_norm=True
    )  # any multiple of 16, no position
    assert found["feature1"].shape == (1, 4, 16, 24, 16)
    norms = found["feature1"].norm(dim=1)
    assert ((norms - 1).abs() < 1e-4).logical_or(norms == 0).all()
    with pytest.raises(ValueError, match="multiples of 16"):
        MedLam(patch_size=(40, 32, 32))
    with pytest.raises(ValueError, match="'in' or 'bn'"):
        Unit(1, 1, norm="ln")


@pytest.mark.parametrize("k", edges())
def test_correlation_is_a_convolution(k: int) -> None:
    features = torch.randn(1, 3, 5, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    kernel = torch.randn(1, 3, k, k, k, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    expected = F.conv3d(features, kernel, padding=k // 2)
    torch.testing.assert_close(correlated(features, kernel), expected)


@pytest.mark.parametrize(
    ("entry", "kwargs", "message"),
    [("Unknown", {}, "is of 'Unknown'"), ("MedLAM", {"width": 3}, "unknown arguments width"),
     ("finetune_model_predict", {"model_type": "vit_x"}, "size 'vit_x'")],
)  # fmt: skip
def test_what_no_file_of_ours_asks_is_refused(entry: str, kwargs: dict, message: str) -> None:
    golden = Golden.make({"model": "medlsam", "entry": entry, "kwargs": kwargs}, {"x": np.zeros(3)})
    with pytest.raises(GoldenError, match=message):
        goldens.compute(golden)


def test_other_configurations_are_answered() -> None:
    meta = {
        "model": "medlsam", "entry": "networks/medlam.py MedLAM", "inputs": {"image": {"shape": [1, 2, 32, 32, 48]}},
        "kwargs": {"base_chns": 1, "inc": 2, "n_classes": 5, "patch_size": [32, 32, 48], "norm": "bn", "depth": True},
    }  # fmt: skip
    found = goldens.compute(Golden.make(meta, {"prob": np.zeros(1)}, {}))
    assert found["prob"].shape == (1, 5, 32, 32, 48)
    assert found["fc_position"].shape == (1, 3)


def test_checkpoints_of_both_kinds(tmp_path: Path) -> None:
    """medlam.pth with the prefix of a wrapper, a checkpoint of the training script, and files of something else."""
    network = seed_module(MedLam(base_chns=1, patch_size=(32, 32, 32)))
    state = {f"module.{key}": tensor.half() for key, tensor in network.state_dict().items()}
    torch.save(state, tmp_path / "medlam.pth")
    torch.save({"epoch": 3, "state_dict": state, "best_loss": 0.1, "optimizer": {}}, tmp_path / "medlam.tar")
    for name in ("medlam.pth", "medlam.tar"):
        found = checkpoint.load_medlam(tmp_path / name, patch=32, base_chns=1)
        assert found.fc1.weight.dtype == torch.float32
        torch.testing.assert_close(found.fc1.weight, network.fc1.weight, rtol=1e-3, atol=1e-3)
    with pytest.raises(WeightsError):
        checkpoint.load_medlam(tmp_path / "medlam.pth", patch=32, base_chns=2)
    small = Sam(img_size=32, embed_dim=12, depth=1, num_heads=1, global_attn_indexes=(0,))
    torch.save(small.state_dict(), tmp_path / "small.pth")
    with pytest.raises(WeightsError, match="frames of 32 pixels, this one takes 1024"):
        checkpoint.load_sam(tmp_path / "small.pth")


def test_the_objective_can_be_descended() -> None:
    network = MedLam(base_chns=1, patch_size=(32, 32, 32))
    torch.manual_seed(0)
    crops = [torch.rand(2, 1, 32, 32, 32) for _ in (0, 1)]
    outputs = [network(crop, out_fc=True, out_feature=True) for crop in crops]
    grid = 3 * torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij")).expand(2, -1, -1, -1, -1)
    loss = PretrainingLoss(points=2)(
        outputs, outputs, crops, [grid, grid], [grid, grid + 1], torch.tensor([[30.0, 0, 0], [0, 30, 0]])
    )
    assert torch.isfinite(loss["total"])
    loss["total"].backward()
    gradient = network.conv8_2.model.conv1_1.Conv.weight.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


def _onnxruntime(path: Path) -> Any:
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    return lambda example: session.run(None, example)


def _openvino(path: Path) -> Any:
    core = pytest.importorskip("openvino").Core()
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda example: list(compiled(example).values())


def test_exported_graphs_equal_torch(tmp_path: Path) -> None:
    from omlab_sdk.export import TorchOnnxExporter

    model = Registry.discover().load(Kind.MODEL, "medlam")
    variant = attrs.evolve(model.card.variant(), config={"patch": 32, "base_chns": 2, "n_classes": 3})
    assert edges() == medlam.EDGES
    for graph in model.graphs(variant):
        module = model.untrained(graph, variant)
        seed_module(module)
        TorchOnnxExporter().export(module, graph, tmp_path / f"{graph.name}.onnx")
        (example,) = model.examples(graph, variant)
        with torch.inference_mode():
            expected = module(*(torch.from_numpy(example[spec.name]) for spec in graph.inputs))
        expected = expected if isinstance(expected, tuple) else (expected,)
        for engine in (_onnxruntime, _openvino):
            for spec, array, tensor in zip(
                graph.outputs, engine(tmp_path / f"{graph.name}.onnx")(example), expected, strict=True
            ):
                assert array.shape == spec.shape
                assert np.linalg.norm(array - tensor.numpy()) / np.linalg.norm(tensor.numpy()) < 1e-4, spec.name
