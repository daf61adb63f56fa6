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
from omlab_retfound import goldens  # noqa: E402
from omlab_retfound.mae import MaskedAutoencoder  # noqa: E402
from omlab_retfound.network import LARGE, Embedder, VisionTransformer  # noqa: E402
from omlab_sdk.export import TorchOnnxExporter  # noqa: E402
from omlab_sdk.golden import TOLERANCE, Golden, GoldenError, seed_module  # noqa: E402

FOLDER = Path(__file__).parent.parent / "goldens"
SHARED = Path(__file__).resolve().parents[4] / "shared" / "goldens"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.npz")), ids=lambda p: p.stem)
def test_outputs_equal_upstream(path: Path) -> None:
    golden = Golden.read(path)
    computed = goldens.compute(golden)
    assert golden.outputs
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < TOLERANCE, output


@pytest.mark.parametrize("name", ["retfound-large", "retfound-mae-large"])
def test_full_size_outputs_equal_upstream(name: str) -> None:
    path = SHARED / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"needs {path.name} in the folder shared beside the project")
    golden = Golden.read(path)
    computed = goldens.compute(golden)
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < TOLERANCE, output


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("retfound-large-cls", lambda: VisionTransformer(num_classes=5, global_pool=False, **LARGE)),
        ("retfound-large-gap", lambda: VisionTransformer(num_classes=5, global_pool=True, **LARGE)),
        ("retfound-mae-large", MaskedAutoencoder),
    ],
)
def test_names_and_shapes_are_upstreams(name: str, build) -> None:
    keys = json.loads(gzip.decompress((FOLDER / f"{name}.keys.json.gz").read_bytes()))
    network = build()
    own = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    classes = keys.get("head.weight", ([5], None, None))[0][0]
    own |= {key: [classes, *own[key][1:]] for key in ("head.weight", "head.bias") if key in own}
    assert own == {key: shape for key, (shape, _, _) in keys.items()}


def test_an_unknown_entry_is_refused() -> None:
    golden = Golden.make({"model": "retfound", "entry": "SomethingElse(depth=2)", "kwargs": {}}, {"x": np.zeros(3)})
    with pytest.raises(GoldenError, match="SomethingElse"):
        goldens.compute(golden)


@pytest.mark.parametrize("classes", [0, 3])
def test_exported_equals_torch(tmp_path: Path, classes: int) -> None:
    network = VisionTransformer(
        img_size=64, num_classes=classes, global_pool=True, embed_dim=48, depth=2, num_heads=3
    ).eval()
    seed_module(network)
    whole = network if classes else Embedder(network).eval()
    batch = {"batch": (1, 2, 8)}
    # The number of classes is the file's: an output axis that no input has may come out fixed.
    output = TensorSpec("out", "float32", ("batch", "classes" if classes else 48), ranges=batch)
    graph = Graph(
        name="net", inputs=(TensorSpec("image", "float32", ("batch", 3, 64, 64), ranges=batch),), outputs=(output,),
        judge=Judge.LOGITS,
    )  # fmt: skip
    TorchOnnxExporter().export(whole, graph, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for size in (1, 5):
        image = np.random.default_rng(size).standard_normal((size, 3, 64, 64), dtype=np.float32)
        with torch.inference_mode():
            expected = whole(torch.from_numpy(image)).numpy()
        (found,) = session.run(None, {"image": image})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_masked_autoencoder_learns() -> None:
    torch.manual_seed(0)
    network = MaskedAutoencoder(
        img_size=32, embed_dim=32, depth=1, num_heads=2, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2
    )
    images = torch.rand(4, 3, 1, 1).expand(4, 3, 32, 32).contiguous()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = network(images, mask_ratio=0.75)[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
