"""The encoder against upstream's golden files, its key manifests, and itself as ONNX; the objective of pre-training.

The published size takes half a minute and runs with ``OMLAB_FULL_GOLDENS=1``; ``omlab check`` runs it always.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from omlab.graphs import Graph, Judge, TensorSpec  # noqa: E402
from omlab_brow import goldens, preprocess  # noqa: E402
from omlab_brow.network import SIZES, VisionTransformer  # noqa: E402
from omlab_brow.pretraining import Distillation  # noqa: E402
from omlab_brow.views import Views  # noqa: E402
from omlab_sdk.export import TorchOnnxExporter  # noqa: E402
from omlab_sdk.golden import Golden, GoldenError, seed_module  # noqa: E402

FOLDER = Path(__file__).parent.parent / "goldens"
SMALL = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.npz")), ids=lambda p: p.stem)
def test_outputs_equal_upstream(path: Path) -> None:
    if path.stem == "brow-base" and os.environ.get("OMLAB_FULL_GOLDENS") != "1":
        pytest.skip("takes half a minute; set OMLAB_FULL_GOLDENS=1")
    golden = Golden.read(path)
    computed = goldens.compute(golden)
    assert golden.outputs
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < 1e-5, output


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_names_and_shapes_are_upstreams(size: str) -> None:
    keys = json.loads(gzip.decompress((FOLDER / f"brow-{size}.keys.json.gz").read_bytes()))
    with torch.device("meta"):
        network = VisionTransformer(**SIZES[f"vit_{size}"])
    own = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert own == {key: shape for key, (shape, _, _) in keys.items()}


def test_an_unknown_entry_is_refused() -> None:
    golden = Golden.make({"model": "brow", "entry": "SomethingElse", "kwargs": {}}, {"x": np.zeros(3)})
    with pytest.raises(GoldenError, match="SomethingElse"):
        goldens.compute(golden)


def test_exported_equals_torch(tmp_path: Path) -> None:
    network = seed_module(VisionTransformer(**SMALL).eval())
    batch = {"batch": (1, 2, 8)}
    graph = Graph(
        name="net", inputs=(TensorSpec("image", "float32", ("batch", 3, 64, 64), ranges=batch),),
        outputs=(TensorSpec("feature", "float32", ("batch", 48), ranges=batch),), judge=Judge.EMBEDDING,
    )  # fmt: skip
    TorchOnnxExporter().export(network, graph, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for size in (1, 5):
        image = np.random.default_rng(size).standard_normal((size, 3, 64, 64), dtype=np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(image)).numpy()
        np.testing.assert_allclose(session.run(None, {"image": image})[0], expected, rtol=1e-4, atol=1e-5)


def test_images_of_any_size_and_a_remainder() -> None:
    network = seed_module(VisionTransformer(**SMALL).eval())
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 16, 16)).shape == (1, 48)
        wide = torch.rand(1, 3, 80, 127)
        torch.testing.assert_close(network(wide), network(wide[..., :112]))
        assert network.positions(64, 64) is network.pos_embed
        # As many patches, but not square: interpolated all the same.
        assert not torch.equal(network.positions(32, 128), network.pos_embed)


def test_rows_of_attention_sum_to_one() -> None:
    network = seed_module(VisionTransformer(**SMALL).eval())
    attention = network.get_last_selfattention(torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 3, 17))


def test_distillation_learns_and_only_the_student_by_gradient() -> None:
    torch.manual_seed(0)
    made = Distillation(
        VisionTransformer(**SMALL), global_views=3, local_views=2, out_dim=32, hidden_dim=64, bottleneck_dim=16,
        center_momentum=1.0,
    )  # fmt: skip
    large = [torch.rand(4, 3, 64, 64) for _ in range(3)]
    local = [torch.rand(4, 3, 32, 32) for _ in range(2)]
    optimiser = torch.optim.AdamW(made.student.parameters(), lr=1e-3)
    losses = []
    before = made.teacher.backbone.cls_token.clone()
    for _ in range(25):  # against a teacher that stands still, the student must come closer
        loss = made(large, [*large, *local])
        optimiser.zero_grad()
        loss.backward()
        assert all(parameter.grad is None for parameter in made.teacher.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert torch.equal(before, made.teacher.backbone.cls_token)
    made.follow(0, 25)
    gap = (made.teacher.backbone.cls_token - before).norm() / (made.student.backbone.cls_token - before).norm()
    assert gap.item() == pytest.approx(0.004, rel=1e-2)  # it follows slowly


def test_views_of_a_patch_and_its_region() -> None:
    patch = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    teacher, student = Views(1, local=4, shuffle=1.0).draw(patch, patch[::-1])
    assert [view.shape for view in teacher] == [(3, 224, 224)] * 3
    assert [view.shape for view in student] == [(3, 224, 224)] * 3 + [(3, 96, 96)] * 4
    again = Views(1, local=4, shuffle=1.0).draw(patch, patch[::-1])
    np.testing.assert_array_equal(again[1][5], student[5])
    # A shuffled view has the same squares in other places.
    squares = [
        {view[:, r : r + 56, c : c + 56].tobytes() for r in range(0, 224, 56) for c in range(0, 224, 56)}
        for view in (teacher[0], student[0])
    ]
    assert squares[0] == squares[1]
    assert not np.array_equal(teacher[0], student[0])


def test_the_table_is_the_arithmetic() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    expected = (values.astype(np.float32) / 255 - preprocess.MEAN) / preprocess.STD
    np.testing.assert_array_equal(preprocess.normalised(values), expected.transpose(2, 0, 1))
    with pytest.raises(ValueError, match="has no centre of 224 x 224"):
        preprocess.evaluation(values)
