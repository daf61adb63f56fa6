"""The networks and steps against upstream's golden files, its key manifests, and themselves in two engines.

The largest networks take half a minute and run with ``OMLAB_FULL_GOLDENS=1``; ``omlab check`` runs them always.
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
from omlab_d_mim import goldens  # noqa: E402
from omlab_d_mim.network import CONV_SIZES, VIT_SIZES, ConvViT, VisionTransformer  # noqa: E402
from omlab_d_mim.pretraining import ConvAutoencoder, VisionAutoencoder  # noqa: E402
from omlab_d_mim.segmenter import ConvEncoder, UNet, UPerNet, VisionEncoder, unet, upernet  # noqa: E402
from omlab_sdk.export import TorchOnnxExporter  # noqa: E402
from omlab_sdk.golden import Golden, GoldenError, seed_module  # noqa: E402

FOLDER = Path(__file__).parent.parent / "goldens"
#: A wrong epsilon in a norm shows at 2e-5.
TIGHT = 1e-5
SLOW = {"dmim-unetpp-base", "dmim-upernet-base", "dmim-pretrain-base"}
CONV = {"img_size": (64, 16, 8), "embed_dim": (8, 12, 16), "depth": (1, 1, 2), "num_heads": 2}
VIT = {"img_size": 64, "embed_dim": 24, "depth": 4, "num_heads": 3}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.npz")), ids=lambda p: p.stem)
def test_outputs_equal_upstream(path: Path) -> None:
    if path.stem in SLOW and not os.environ.get("OMLAB_FULL_GOLDENS"):
        pytest.skip("takes up to half a minute; set OMLAB_FULL_GOLDENS=1")
    golden = Golden.read(path)
    computed = goldens.compute(golden)
    assert golden.outputs
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < TIGHT, output


_BUILDS = {
    "cls-convvit-base": lambda: ConvViT(**CONV_SIZES["base"]),
    "seg-upernet-convmae": upernet,
    **{f"pretrain-convmae-{size}": lambda size=size: ConvAutoencoder(**CONV_SIZES[size]) for size in CONV_SIZES},
    **{f"pretrain-mae-{size}": lambda size=size: VisionAutoencoder(**VIT_SIZES[size]) for size in VIT_SIZES},
    **{f"cls-vit-{size}": lambda size=size: VisionTransformer(**VIT_SIZES[size]) for size in VIT_SIZES},
    **{
        f"seg-unet{'pp' * nested}-{encoder}": lambda nested=nested, encoder=encoder: unet(encoder, nested=nested)
        for nested in (False, True)
        for encoder in ("convmae", "mae")
    },
}


@pytest.mark.parametrize("name", _BUILDS)
def test_names_and_shapes_are_upstreams(name: str) -> None:
    keys = json.loads(gzip.decompress((FOLDER / f"dmim-{name}.keys.json.gz").read_bytes()))
    with torch.device("meta"):
        network = _BUILDS[name]()
    own = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert own == {key: shape for key, (shape, _, _) in keys.items()}


def test_every_manifest_is_compared() -> None:
    assert {f"dmim-{name}.keys.json.gz" for name in _BUILDS} == {path.name for path in FOLDER.glob("*.keys.json.gz")}


def test_an_unknown_entry_is_refused() -> None:
    golden = Golden.make({"model": "d-mim", "entry": "model.Something", "kwargs": {}}, {"x": np.zeros(3)})
    with pytest.raises(GoldenError, match=r"model\.Something"):
        goldens.compute(golden)


@pytest.mark.parametrize(
    ("entry", "kwargs", "outputs"),
    [
        ("model.models_convmae.MaskedAutoencoderConvViT", CONV, ["pred", "loss"]),
        ("model.models_mae.MaskedAutoencoderViT", VIT, ["pred", "loss"]),
        ("SEG_UNET: segmentation_models_pytorch.Unet(encoder_name='mae')",
         {"encoder": VIT | {"out_indices": [0, 1, 2, 3]}}, ["probability", "decoder"]),
        ("SEG_UNET: segmentation_models_pytorch.Unet(encoder_name='convmae')", {"encoder": CONV}, ["probability"]),
    ],
)  # fmt: skip
def test_other_files_are_answered(entry: str, kwargs: dict, outputs: list[str]) -> None:
    """Variants that no file of the repository has: the vanilla objective, U-Net, MAE's encoder."""
    smaller = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2} if "Masked" in entry else {}
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in kwargs.items()} | smaller
    patches = 16
    inputs = {"image": {"shape": [1, 3, 64, 64], "scale": 2.0}, "noise": {"shape": [1, patches], "offset": 0.5}}
    meta = {"model": "d-mim", "entry": entry, "kwargs": given, "inputs": inputs}
    found = goldens.compute(Golden.make(meta, {name: np.zeros(1) for name in outputs}))
    for name in outputs:
        assert np.isfinite(found[name]).all()
    if "Masked" in entry:
        wrong = np.square(found["pred"] - found["patchify(image)"]).mean(axis=-1)
        assert found["loss"] == pytest.approx((wrong * found["mask"]).sum() / found["mask"].sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("entry", "pretrained", "classified", "deblurring"),
    [
        ("model.models_dconvmae.dconvmae_convvit_base_patch16", True, False, True),
        ("model.models_convmae.MaskedAutoencoderConvViT", True, False, False),
        ("dmae_vit_huge_patch14", True, False, True),
        ("mae_vit_large_patch16", True, False, False),
        ("model.models_convvit.ConvViT", False, True, False),
        ("model.models_vit.vit_huge_patch14", False, True, False),
        ("model.models_dmae.DMaskedAutoencoderViT; model.models_vit.VisionTransformer (vit.*)", True, True, True),
        ("util/pos_embed.py, encoders/convmae_ckpt.py", False, False, False),
    ],
)
def test_entries_are_told_apart(entry: str, pretrained: bool, classified: bool, deblurring: bool) -> None:
    found = (goldens._PRETRAINED, goldens._CLASSIFIED, goldens._DEBLURRING)
    assert tuple(bool(names.search(entry)) for names in found) == (pretrained, classified, deblurring)


def test_what_is_hidden_never_shows() -> None:
    """Pixels of hidden patches have no influence on the latent of the visible ones."""
    network = seed_module(ConvAutoencoder(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, **CONV)).eval()
    image, noise = torch.randn(1, 3, 64, 64), torch.rand(1, 16)
    with torch.inference_mode():
        latent, mask, _ = network.encode(image, 0.75, noise)
        pixels = mask.reshape(1, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
        changed, _, _ = network.encode(image + 9 * pixels, 0.75, noise)
        seen, _, _ = network.encode(image + 9 * (1 - pixels), 0.75, noise)
    assert latent.shape == (1, 4, 16)
    torch.testing.assert_close(changed, latent)
    assert (seen - latent).abs().max() > 1e-2


@pytest.mark.parametrize("kind", [ConvAutoencoder, VisionAutoencoder])
def test_the_objectives_are_learned(kind: type) -> None:
    """A few steps on one pair make both losses smaller; positions stay."""
    torch.manual_seed(0)
    shape = CONV if kind is ConvAutoencoder else VIT
    for original in (torch.randn(2, 3, 64, 64), None):
        network = kind(decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2, **shape)
        image, noise, before = torch.randn(2, 3, 64, 64), torch.rand(2, 16), network.pos_embed.clone()
        optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 3e-3, betas=(0.9, 0.95))
        losses = []
        for _ in range(12):
            loss, prediction, mask = network(image, original, noise=noise)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.97 * losses[0]
        assert torch.equal(network.pos_embed, before)
        assert prediction.shape == (2, 16, 768)
        assert mask.sum() == 2 * 12


def _networks() -> dict[str, tuple[torch.nn.Module, tuple[int, ...]]]:
    return {
        "convvit": (ConvViT(num_classes=3, **CONV), (3,)),
        "vit": (VisionTransformer(num_classes=3, **VIT), (3,)),
        "unetpp": (UNet(ConvEncoder(**CONV), nested=True, widths=(16, 12, 8, 8)), (1, 32, 32)),
        "unet": (
            UNet(VisionEncoder(out_indices=(0, 1, 2, 3), **VIT), nested=False, widths=(16, 12, 8, 8)),
            (1, 32, 32),
        ),
        "upernet": (UPerNet(classes=3, channels=12, auxiliary_channels=8, **CONV), (3, 64, 64)),
    }


@pytest.mark.parametrize("name", ["convvit", "vit", "unetpp", "unet", "upernet"])
def test_exported_equals_torch(tmp_path: Path, name: str) -> None:
    openvino = pytest.importorskip("openvino")
    network, shape = _networks()[name]
    seed_module(network.eval())
    batch = {"batch": (1, 2, 8)}
    graph = Graph(
        name="net", inputs=(TensorSpec("image", "float32", ("batch", 3, 64, 64), ranges=batch),),
        outputs=(TensorSpec("out", "float32", ("batch", *shape), ranges=batch),), judge=Judge.VALUES,
    )  # fmt: skip
    TorchOnnxExporter().export(network, graph, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    compiled = openvino.compile_model(str(tmp_path / "net.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in (1, 3):
        image = np.random.default_rng(size).standard_normal((size, 3, 64, 64), dtype=np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(image)).numpy()
        for found in (session.run(None, {"image": image})[0], compiled({"image": image})[0]):
            assert found.shape == (size, *shape)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_rtx_builds_an_engine(tmp_path: Path) -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    network = seed_module(_networks()["unetpp"][0].eval())
    graph = Graph(
        name="net", inputs=(TensorSpec("image", "float32", (1, 3, 64, 64)),),
        outputs=(TensorSpec("out", "float32", (1, 1, 32, 32)),), judge=Judge.VALUES,
    )  # fmt: skip
    TorchOnnxExporter().export(network, graph, tmp_path / "net.onnx")
    logger = rtx.Logger(rtx.Logger.ERROR)
    builder = rtx.Builder(logger)
    parsed = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(parsed, logger)
    assert parser.parse_from_file(str(tmp_path / "net.onnx")), [parser.get_error(i) for i in range(parser.num_errors)]
    assert builder.build_serialized_network(parsed, builder.create_builder_config()) is not None


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="has 32 x 64 pixels, the network takes 64 x 64"):
        ConvViT(**CONV)(torch.zeros(1, 3, 32, 64))
    with pytest.raises(ValueError, match="does not go with patch_size"):
        ConvViT(**(CONV | {"img_size": (64, 32, 8)}))
    with pytest.raises(ValueError, match="expected four of the blocks 0 to 3"):
        VisionEncoder(**VIT)
