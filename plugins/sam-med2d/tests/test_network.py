"""The networks against upstream's golden files, its key manifests, and themselves as ONNX.

The published size takes half a minute and runs with ``OMLAB_FULL_GOLDENS=1``; ``omlab check`` runs it always.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from omlab.plugins import Registry  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab_sam_med2d import goldens, network  # noqa: E402
from omlab_sam_med2d.network import Decoder, Encoder, Sam  # noqa: E402
from omlab_sdk.golden import Golden, GoldenError, seed_module  # noqa: E402

FOLDER = Path(__file__).parent.parent / "goldens"
SHARED = Path(__file__).resolve().parents[4] / "shared"
#: A wrong epsilon shows at 2e-5; a quality near zero has fewer digits.
SMALL, ODD = 1e-5, {"longest_scores": 1e-4}


@pytest.mark.parametrize("name", ["tiny", "tiny-onnx", "tiny-predictor", "load1024"])
def test_outputs_equal_upstream(name: str) -> None:
    golden = Golden.read(FOLDER / f"sam_med2d-{name}.npz")
    computed = goldens.compute(golden)
    assert golden.outputs
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < ODD.get(output, SMALL), output


def test_data_and_losses_equal_upstream() -> None:
    """Pictures and masks of the demonstration in the frame, boxes, metrics and losses."""
    path = SHARED / "goldens" / "sam_med2d-data.npz"
    if not path.is_file():
        pytest.skip(f"needs {path.name} and upstream's demonstration files in the folder shared beside the project")
    golden = Golden.read(path)
    computed = goldens.compute(golden)
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < SMALL, output


@pytest.mark.skipif(os.environ.get("OMLAB_FULL_GOLDENS") != "1", reason="set OMLAB_FULL_GOLDENS=1 for the full size")
def test_full_size_outputs_equal_upstream() -> None:
    golden = Golden.read(FOLDER / "sam_med2d-vit_b.npz")
    computed = goldens.compute(golden)
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < 1e-4, output


@pytest.mark.parametrize(("name", "adapter"), [("vit_b", True), ("ft_sam_vit_b", False)])
def test_names_and_shapes_are_upstreams(name: str, adapter: bool) -> None:
    keys = json.loads(gzip.decompress((FOLDER / f"sam_med2d-{name}.keys.json.gz").read_bytes()))
    with torch.device("meta"):
        own = {key: list(tensor.shape) for key, tensor in Sam.of_size(adapter=adapter).state_dict().items()}
    assert own == {key: shape for key, (shape, _, _) in keys.items()}


@pytest.mark.parametrize(("size", "width", "depth"), [("vit_l", 1024, 24), ("vit_h", 1280, 32)])
def test_larger_builders(size: str, width: int, depth: int) -> None:
    with torch.device("meta"):
        encoder = Sam.of_size(size, img_size=1024, adapter=False).image_encoder
    assert encoder.pos_embed.shape == (1, 64, 64, width)
    assert len(encoder.blocks) == depth
    assert sum(not block.window for block in encoder.blocks) == 4


def test_a_wrong_epsilon_is_noticed() -> None:
    golden = Golden.read(FOLDER / "sam_med2d-tiny.npz")
    sam = goldens.sam_of(golden)
    block = sam.image_encoder.blocks[0]
    tokens = torch.from_numpy(golden.input("small_tokens"))
    with torch.inference_mode():
        assert golden.outputs["adapter_small"].error(block.Adapter(tokens).numpy()) < SMALL
        block.Adapter.norm.eps = 1e-6
        assert golden.outputs["adapter_small"].error(block.Adapter(tokens).numpy()) > SMALL


def test_other_configurations_are_answered() -> None:
    """No adapters, another frame and depth, no relative positions, another decoder: shapes follow the arguments."""
    kwargs = {
        "img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2, "window_size": 3, "global_attn_indexes": [1],
        "adapter": False, "prompt_dim": 16, "dec_heads": 2, "dec_mlp": 8, "dec_depth": 1, "iou_hidden": 8,
        "use_rel_pos": False, "out_chans": 16,
    }  # fmt: skip
    inputs = {"image": {"shape": [1, 3, 64, 64]}, "mask_input": {"shape": [1, 1, 16, 16]}}
    literal = {"point_coords": np.float32([[[3, 4]]]), "point_labels": np.int32([[1]])}
    meta = {"model": "sam-med2d", "entry": "ImageEncoderViT + PromptEncoder", "kwargs": kwargs, "inputs": inputs}
    found = goldens.compute(Golden.make(meta, {"image_embedding": np.zeros(1)}, literal))
    assert found["image_embedding"].shape == (1, 16, 4, 4)
    assert found["points_mask_masks"].shape == (1, 3, 16, 16)
    assert "adapter0" not in found


@pytest.mark.parametrize(
    ("entry", "kwargs", "message"),
    [("Unknown", {}, "is of 'Unknown'"), ("ImageEncoderViT", {"embed": 3}, "unknown arguments embed"),
     ("sam_model_registry", {"model_type": "vit_x"}, "size 'vit_x'")],
)  # fmt: skip
def test_what_no_file_of_ours_asks_is_refused(entry: str, kwargs: dict, message: str) -> None:
    golden = Golden.make({"model": "sam-med2d", "entry": entry, "kwargs": kwargs}, {"x": np.zeros(3)})
    with pytest.raises(GoldenError, match=message):
        goldens.compute(golden)


TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3, "global_attn_indexes": (1,)}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(network.SIZES, "vit_b", TINY)


def _onnxruntime(path: Path) -> Any:
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    return lambda example: session.run(None, example)


def _openvino(path: Path) -> Any:
    core = pytest.importorskip("openvino").Core()
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda example: list(compiled(example).values())


def test_exported_graphs_equal_torch(tiny: None, tmp_path: Path) -> None:
    """Both graphs as the model declares them, with several prompts of different kinds and lengths at once."""
    from omlab_sdk.export import TorchOnnxExporter

    model = Registry.discover().load(Kind.MODEL, "sam-med2d")
    variant = model.card.variant()
    for graph in model.graphs(variant):
        module = model.untrained(graph, variant)
        seed_module(module)
        TorchOnnxExporter().export(module, graph, tmp_path / f"{graph.name}.onnx")
        examples = list(model.examples(graph, variant))
        assert len(examples) == (2 if graph.name == "decoder" else 1)
        for engine in (_onnxruntime, _openvino):
            run = engine(tmp_path / f"{graph.name}.onnx")
            for example in examples:
                with torch.inference_mode():
                    expected = module(*(torch.from_numpy(example[spec.name]) for spec in graph.inputs))
                expected = expected if isinstance(expected, tuple) else (expected,)
                for spec, array, tensor in zip(graph.outputs, run(example), expected, strict=True):
                    assert np.linalg.norm(array - tensor.numpy()) / np.linalg.norm(tensor.numpy()) < 1e-4, spec.name


def test_the_folded_encoder_answers_as_upstreams_order_does(tiny: None) -> None:
    sam = Sam.of_size().eval()
    seed_module(sam)
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        folded = Encoder(sam)(image)
        for block in sam.image_encoder.blocks:
            block.folding = False
        padded = Encoder(sam)(image)
    assert (folded - padded).norm() / padded.norm() < 1e-5


def test_one_embedding_serves_many_prompts(tiny: None) -> None:
    """A batch of prompts is answered as each alone would be."""
    sam = Sam.of_size().eval()
    seed_module(sam)
    decoder = Decoder(sam)
    registry = Registry.discover()
    model = registry.load(Kind.MODEL, "sam-med2d")
    graph = model.graphs(model.card.variant())[1]
    *_, example = model.examples(graph, model.card.variant())
    tensors = [torch.from_numpy(example[spec.name]) for spec in graph.inputs]
    with torch.inference_mode():
        together = decoder(*tensors)
        for number in range(3):
            alone = decoder(tensors[0], *(t[number : number + 1] for t in tensors[1:]))
            for a, b in zip(alone, together, strict=True):
                torch.testing.assert_close(a[0], b[number], rtol=1e-4, atol=1e-5)
