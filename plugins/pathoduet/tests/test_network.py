"""The networks against upstream's golden files, its key manifests, and themselves as ONNX."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from omlab.graphs import Graph, Judge, TensorSpec  # noqa: E402
from omlab_pathoduet import goldens  # noqa: E402
from omlab_pathoduet.network import SIZES, Answer, VisionTransformer  # noqa: E402
from omlab_pathoduet.pretraining import Bridge, CrossStain, MoCo  # noqa: E402
from omlab_sdk.export import TorchOnnxExporter  # noqa: E402
from omlab_sdk.golden import Golden, GoldenError, seed_module  # noqa: E402

FOLDER = Path(__file__).parent.parent / "goldens"
SHARED = Path(__file__).resolve().parents[4] / "shared" / "goldens"
SMALL = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
#: A wrong epsilon in a norm shows at 2e-5; processors that add in another order have been seen at 1.1e-5.
TIGHT = 1.5e-5


def _agrees(path: Path) -> None:
    golden = Golden.read(path)
    computed = goldens.compute(golden)
    assert golden.outputs
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < TIGHT, output


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.npz")), ids=lambda p: p.stem)
def test_outputs_equal_upstream(path: Path) -> None:
    _agrees(path)


def test_full_size_outputs_equal_upstream() -> None:
    path = SHARED / "pathoduet-base.npz"
    if not path.is_file():
        pytest.skip(f"needs {path.name} in the folder shared beside the project")
    _agrees(path)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("base", lambda: VisionTransformer(global_pool="avg", num_classes=0)),
        ("moco-base", MoCo),
        ("bridge-base", Bridge),
        ("cross-base", CrossStain),
    ],
)
def test_names_and_shapes_are_upstreams(name: str, build) -> None:
    keys = json.loads(gzip.decompress((FOLDER / f"pathoduet-{name}.keys.json.gz").read_bytes()))
    with torch.device("meta"):
        network = build()
    own = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert own == {key: shape for key, (shape, _, _) in keys.items()}


@pytest.mark.parametrize("size", sorted(SIZES))
def test_every_size_builds(size: str) -> None:
    with torch.device("meta"):
        network = VisionTransformer(**SIZES[size]).to("meta")
        tokens, logits = network(torch.zeros(1, 3, 224, 224), torch.zeros(1, 3, 48, 32))
    assert tokens.shape == (1, 198, SIZES[size]["embed_dim"])
    assert logits.shape == (1, 1000)
    assert ("patch_embed.proj.12.weight" in network.state_dict()) == ("conv" in size)


def test_an_unknown_entry_is_refused() -> None:
    golden = Golden.make({"model": "pathoduet", "entry": "mae.Something", "kwargs": {}}, {"x": np.zeros(3)})
    with pytest.raises(GoldenError, match=r"mae\.Something"):
        goldens.compute(golden)


@pytest.mark.parametrize(("stem", "classes"), [("patch", 0), ("conv", 3)])
def test_exported_equals_torch(tmp_path: Path, stem: str, classes: int) -> None:
    network = Answer(VisionTransformer(num_classes=classes, global_pool="avg", stem=stem, **SMALL)).eval()
    seed_module(network)
    batch = {"batch": (1, 2, 8)}
    graph = Graph(
        name="net", inputs=(TensorSpec("image", "float32", ("batch", 3, 32, 32), ranges=batch),),
        outputs=(TensorSpec("out", "float32", ("batch", classes or 48), ranges=batch),), judge=Judge.VALUES,
    )  # fmt: skip
    TorchOnnxExporter().export(network, graph, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for size in (1, 5):
        image = np.random.default_rng(size).random((size, 3, 32, 32), dtype=np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(image)).numpy()
        (found,) = session.run(None, {"image": image})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_learned_token_gets_a_zero_gradient_beside_a_reference() -> None:
    network = VisionTransformer(num_classes=2, global_pool="avg", frozen_stem=True, **SMALL)
    image, ref = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 16, 16)
    network(image, ref)[1].sum().backward()
    assert torch.count_nonzero(network.pretext_token.grad) == 0
    assert network.patch_embed.proj.weight.grad is None
    assert network.pos_embed.grad is None
    network(image)[1].square().sum().backward()
    assert torch.count_nonzero(network.pretext_token.grad) > 0


def test_another_size_of_image_is_refused() -> None:
    with pytest.raises(ValueError, match="the image has 48 x 32 pixels, the network takes 32 x 32"):
        VisionTransformer(**SMALL)(torch.zeros(1, 3, 48, 32))
    with pytest.raises(ValueError, match="'avg' or 'token', not by 'max'"):
        VisionTransformer(global_pool="max", **SMALL)
