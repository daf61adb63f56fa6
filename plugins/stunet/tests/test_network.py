"""The networks against upstream's golden files and key lists, as exported, and from upstream's containers."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from omlab.errors import WeightsError  # noqa: E402
from omlab.graphs import Graph, TensorSpec  # noqa: E402
from omlab_sdk.golden import TOLERANCE, Golden, seed_module, verify_file  # noqa: E402
from omlab_sdk.training.deep_supervision import DeepSupervision  # noqa: E402
from omlab_stunet import checkpoint, goldens, objective  # noqa: E402
from omlab_stunet.network import STUNet, Windowed, initialise, steady  # noqa: E402
from omlab_stunet.plan import SIZES  # noqa: E402

FOLDER = Path(__file__).parent.parent / "goldens"
SHARED = Path(__file__).resolve().parents[4] / "shared" / "goldens"
MICRO = {
    "depth": (1, 2, 1, 1, 1, 1), "dims": (4, 4, 8, 8, 8, 8),
    "pool_op_kernel_sizes": ((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
}  # fmt: skip


def micro(classes: int = 5, channels: int = 1) -> STUNet:
    network = STUNet(channels, classes, **MICRO).eval()
    seed_module(network)
    return network


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.npz")), ids=lambda p: p.stem)
def test_outputs_equal_upstream(path: Path) -> None:
    golden = Golden.read(path)
    computed = goldens.compute(golden)
    assert golden.outputs
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < TOLERANCE, output


@pytest.mark.parametrize("name", ["stunet-file-micro", "stunet-file-micro-fast", "stunet-file-small", "stunet-base"])
def test_whole_runs_equal_upstream(name: str) -> None:
    """From file to label map, and the large networks; the slow ones only with OMLAB_FULL_GOLDENS=1."""
    path = SHARED / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"needs {path.name} in the folder shared beside the project")
    if name != "stunet-file-micro" and os.environ.get("OMLAB_FULL_GOLDENS") != "1":
        pytest.skip("takes half a minute; set OMLAB_FULL_GOLDENS=1")
    assert [row for row in verify_file(path) if not row.ok] == []


@pytest.mark.parametrize("size", ["small", "base", "large", "huge"])
def test_names_and_shapes_are_upstream_s(size: str) -> None:
    manifest = json.loads(gzip.decompress((FOLDER / f"stunet-{size}.keys.json.gz").read_bytes()))
    with torch.device("meta"):
        network = STUNet(1, 105, **SIZES[size])
    own = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert own == {name: row[0] for name, row in manifest.items()}
    elements = {"small": 14_596_941, "base": 58_262_669, "large": 440_302_605, "huge": 1_457_326_221}
    assert sum(tensor.numel() for tensor in network.parameters()) == elements[size]


def test_what_is_exported_is_the_same_function(tmp_path: Path) -> None:
    """Repeated voxels in place of resizing, steady norms, the head apart: equal to the plain network, and as ONNX."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from omlab_sdk.export import TorchOnnxExporter

    image = np.random.default_rng(0).standard_normal((1, 1, 32, 32, 32)).astype(np.float32)
    with torch.inference_mode():
        expected = micro()(torch.from_numpy(image)).numpy()
        changed = Windowed(steady(micro())).eval()
        features, weight, bias, sample = (tensor.numpy() for tensor in changed(torch.from_numpy(image)))
    logits = np.einsum("cf,bxyzf->bcxyz", weight, features) + bias[:, None, None, None]
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.allclose(sample, logits[:, :, ::4, ::4, ::4], atol=1e-5)
    specs = [("features", features), ("weight", weight), ("bias", bias), ("logits", sample)]
    graph = Graph(
        name="window",
        inputs=(TensorSpec("image", "float32", image.shape),),
        outputs=tuple(TensorSpec(name, "float32", array.shape) for name, array in specs),
    )
    path = tmp_path / "window.onnx"
    TorchOnnxExporter().export(changed, graph, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for (name, reference), found in zip(specs, session.run(None, {"image": image}), strict=True):
        assert np.abs(found - reference).max() < 1e-4 * np.abs(reference).max(), name
    import onnx

    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert "Resize" not in kinds
    assert "Expand" in kinds


def test_norms_of_a_constant_background_are_right() -> None:
    """Where most voxels are alike, sums in single precision drift; those in steps do not."""
    x = torch.full((1, 2, 64, 64, 64), -1.3)
    x[:, :, 20:40, 20:40, 20:40] += torch.randn(1, 2, 20, 20, 20, generator=torch.Generator().manual_seed(0))
    norm = torch.nn.InstanceNorm3d(2, affine=True)
    found = steady(torch.nn.Sequential(norm))(x)
    wide = torch.nn.functional.instance_norm(x.double(), eps=1e-5).float()
    assert (found - wide).norm() / wide.norm() < 1e-5


@pytest.mark.parametrize("container", ["state_dict", "network_weights", "bare"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_upstream_s_containers_are_read(tmp_path: Path, container: str, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in micro().state_dict().items()}
    content = state if container == "bare" else {"epoch": 4000, container: state, "plot_stuff": ([1.0], [2.0])}
    path = tmp_path / "micro_ep4k.model"
    torch.save(content, path)
    network = checkpoint.load(STUNet(1, 5, **MICRO), path)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in micro().state_dict().items())
    sizes = checkpoint.sizes(checkpoint.read(path))
    assert sizes == {"input_channels": 1, "num_classes": 5, "depth": [1, 2, 1, 1, 1, 1], "dims": [4, 4, 8, 8, 8, 8]}


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.model"
    torch.save({"state_dict": torch.nn.Linear(2, 3).state_dict()}, path)
    with pytest.raises(WeightsError, match=r"other\.model"):
        checkpoint.load(STUNet(1, 5, **MICRO), path)
    torch.save({"state_dict": micro(classes=4).state_dict()}, path)
    with pytest.raises(WeightsError, match="another shape"):
        checkpoint.load(STUNet(1, 5, **MICRO), path)
    with pytest.raises(WeightsError, match="not those of a STU-Net"):
        checkpoint.sizes({"weight": torch.zeros(2)})


def test_fine_tuning_takes_all_but_the_heads() -> None:
    state = {f"module.{name}": tensor for name, tensor in micro().state_dict().items()}
    network = STUNet(3, 5, **MICRO)
    before = network.seg_outputs[4].weight.clone()
    taken = checkpoint.transfer(network, state, strict=True)
    assert torch.equal(network.seg_outputs[4].weight, before)
    assert not any("seg_outputs" in name for name in taken)
    stem = micro().state_dict()["conv_blocks_context.0.0.conv1.weight"]
    own = network.conv_blocks_context[0][0].conv1.weight
    assert all(torch.equal(own[:, c], stem[:, 0]) for c in range(3))
    smaller = {name: tensor for name, tensor in state.items() if "upsample_layers.0" not in name}
    assert len(checkpoint.transfer(STUNet(1, 5, **MICRO), smaller)) == len(taken) - 2
    with pytest.raises(WeightsError, match="2 entries"):
        checkpoint.transfer(STUNet(1, 5, **MICRO), smaller, strict=True)


def test_the_objective_trains() -> None:
    """A few steps on one patch lower the loss; deep supervision reaches every head but the coarsest."""
    torch.manual_seed(0)
    network = initialise(STUNet(1, 3, enable_deep_supervision=True, **MICRO))
    image = torch.randn(2, 1, 16, 16, 16)
    target = (image > 0.5).long() + (image > 1.2).long()
    loss = DeepSupervision()
    steps = objective.optimiser(network)
    values = []
    for _ in range(6):
        steps.zero_grad()
        value = loss(network(image), target)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), objective.CLIP)
        steps.step()
        values.append(float(value.detach()))
    assert values[-1] < values[0] - 0.1
    assert network.seg_outputs[0].weight.grad is None
    assert network.seg_outputs[1].weight.grad is not None
