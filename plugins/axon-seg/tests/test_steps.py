"""Networks, stitching, labels, cubes and scores against upstream's golden files, on its example data, and by hand.

The published network takes some ten seconds and runs with ``OMLAB_FULL_GOLDENS=1``; ``omlab check`` runs it always.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
tifffile = pytest.importorskip("tifffile")
pytest.importorskip("skimage")
pytest.importorskip("cc3d")
pytest.importorskip("cv2")

import omlab  # noqa: E402
from omlab.cases import Volume  # noqa: E402
from omlab.errors import InputError, UsageError  # noqa: E402
from omlab.geometry import Geometry  # noqa: E402
from omlab.results import Label, Segmentation  # noqa: E402
from omlab_axon_seg import (  # noqa: E402
    brain,
    checkpoint,
    cubes,
    goldens,
    labels,
    losses,
    metrics,
    model,
    training_set,
    tuning,
)
from omlab_axon_seg.attention import AxialAttention  # noqa: E402
from omlab_axon_seg.ceanet import CEANet  # noqa: E402
from omlab_axon_seg.network import GenericUNet  # noqa: E402
from omlab_axon_seg.tracing import CellSums, Thinner  # noqa: E402
from omlab_axon_seg.unet import UNet  # noqa: E402
from omlab_sdk.golden import Golden, GoldenError, seed_module  # noqa: E402
from omlab_sdk.networks.steady import steady  # noqa: E402
from omlab_sdk.segmenters import Tunable  # noqa: E402

FOLDER = Path(__file__).parent.parent / "goldens"
DATA = goldens.DATA / "axon_cubes"
SMALL = {"side": (16, 16, 16), "base": 4, "num_pool": 2, "skip": (1,)}
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="needs data/axon_cubes in the folder shared beside the project"
)


def cube(name: str) -> np.ndarray:
    return tifffile.imread(io.BytesIO(gzip.decompress((DATA / f"{name}.tiff.gz").read_bytes())))


@pytest.mark.parametrize("name", ["attention", "axial-small", "unet", "ceanet", "brain", "brain-roi", "prepare"])
def test_outputs_equal_upstream(name: str) -> None:
    golden = Golden.read(FOLDER / f"axonseg-{name}.npz")
    computed = goldens.compute(golden)
    assert golden.outputs
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < 1e-5, output


@needs_data
@pytest.mark.parametrize("name", ["brain-real", "skeleton", "metrics"])
def test_outputs_on_example_data_equal_upstream(name: str) -> None:
    golden = Golden.read(FOLDER / f"axonseg-{name}.npz")
    computed = goldens.compute(golden)
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < 1e-6, output


@pytest.mark.skipif(os.environ.get("OMLAB_FULL_GOLDENS") != "1", reason="set OMLAB_FULL_GOLDENS=1 for the full size")
def test_full_size_outputs_equal_upstream() -> None:
    golden = Golden.read(FOLDER / "axonseg-axial.npz")
    computed = goldens.compute(golden)
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < 1e-4, output


def test_names_and_shapes_are_upstreams() -> None:
    with torch.device("meta"):
        networks = {"axial": GenericUNet(), "unet": UNet(), "ceanet": CEANet()}
    for name, network in networks.items():
        keys = json.loads(gzip.decompress((FOLDER / f"axonseg-{name}.keys.json.gz").read_bytes()))
        own = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
        assert own == {key: shape for key, (shape, _, _) in keys.items()}
    assert sum(p.numel() for p in networks["axial"].parameters()) == 50_558_368


@needs_data
def test_published_fine_label_voxel_for_voxel() -> None:
    assert np.array_equal(labels.fine_label(cube("rough-label-1002")), cube("fine-label-1002") > 0)


@needs_data
def test_cube_of_a_marked_centre() -> None:
    """The published cube is what cutting around its centre gives (in a brain that begins 53 planes earlier)."""
    stack = np.concatenate([np.zeros((53, 256, 256), np.uint16), cube("brain-example-crop")])
    found = cubes.cropped(stack, (53 + 22, 255 - 120, 250 - 130))
    assert np.array_equal(found[53:], cube("volume-1000-z53"))


def test_networks_say_what_they_take() -> None:
    for make, shape, message in (
        (lambda: GenericUNet(**SMALL), (1, 1, 16, 16, 8), "takes volumes of"),
        (UNet, (1, 1, 16, 24, 16), "multiples of 16"),
        (CEANet, (1, 1, 160, 192), "from 192 on"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make().eval()(torch.zeros(shape))
    with pytest.raises(ValueError, match="divisible by"):
        GenericUNet((18, 16, 16), base=4, num_pool=2)
    with pytest.raises(ValueError, match="2 factors are given"):
        GenericUNet(base=4, num_pool=3, pool=[(2, 2, 2), (2, 2, 2)])
    with pytest.raises(ValueError, match="two convolutions or more"):
        GenericUNet(base=4, num_conv_per_stage=1)


def test_attention_adds_axes_up() -> None:
    x = torch.randn(2, 6, 3, 4, 5)
    summed = seed_module(AxialAttention(6, 3, heads=2, dim_heads=4, sum_axial_out=True))
    chained = seed_module(AxialAttention(6, 3, heads=2, dim_heads=4))
    with torch.inference_mode():
        parts = [along(x) for along in summed.axial_attentions]
        assert torch.allclose(summed(x), parts[0] + parts[1] + parts[2], atol=1e-5)
        assert not torch.allclose(chained(x), summed(x), atol=1e-3)
        last = seed_module(AxialAttention(6, 3, heads=2, dim_heads=4, dim_index=-1))
        assert torch.allclose(last(x.movedim(1, -1)).movedim(-1, 1), chained(x), atol=1e-5)


def test_steady_norms_change_nothing() -> None:
    for network in (GenericUNet(**SMALL), UNet(base_n_filter=2, n_classes=2)):
        seed_module(network).eval()
        x = torch.randn(1, 1, 16, 16, 16) if isinstance(network, GenericUNet) else torch.randn(1, 1, 32, 32, 32)
        with torch.inference_mode():
            before = network(x)
            assert torch.allclose(steady(network)(x), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["axial", "unet", "ceanet"])
def test_exported_networks_agree(name: str, tmp_path: Path) -> None:
    """Each network as ONNX, on ONNX Runtime and OpenVINO; TensorRT for RTX builds its engine without a GPU."""
    onnxruntime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
    network, shape = {
        "axial": (GenericUNet(**SMALL), (1, 1, 16, 16, 16)), "unet": (UNet(base_n_filter=2), (1, 1, 32, 32, 32)),
        "ceanet": (CEANet(), (1, 1, 192, 224)),
    }[name]  # fmt: skip
    network = model.AxonSeg.as_graph(seed_module(network).eval())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(x).numpy()
    path = tmp_path / f"{name}.onnx"
    torch.onnx.export(network, (x,), path, dynamo=True, verbose=False, input_names=["image"], output_names=["logits"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = {"onnxruntime": session.run(None, {"image": x.numpy()})[0]}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found["openvino"] = compiled({"image": x.numpy()})[0]
    for engine, values in found.items():
        assert np.linalg.norm(values - expected) / np.linalg.norm(expected) < 1e-4, engine
    if find_spec("tensorrt_rtx") and not find_spec("tensorrt"):
        assert _tensorrt(path) > 1000


def _tensorrt(path: Path) -> int:
    """Bytes of the engine that TensorRT for RTX builds for one kind of GPU."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    graph = builder.create_network()
    parser = trt.OnnxParser(graph, logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(n).desc() for n in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    return int(builder.build_serialized_network(graph, config).nbytes)


def test_lengths() -> None:
    straight = np.zeros((5, 9, 9), bool)
    straight[2, 4, 1:8] = True
    assert labels.line_length(straight) == pytest.approx(6)
    assert labels.line_length(straight, (5, 1, 0.5)) == pytest.approx(3)
    diagonal = np.zeros((6, 6, 6), bool)
    diagonal[np.arange(6), np.arange(6), np.arange(6)[::-1]] = True
    assert labels.line_length(diagonal) == pytest.approx(5 * 3**0.5, rel=1e-5)
    corner = np.zeros((1, 4, 4), bool)
    corner[0, 1, 1:3] = corner[0, 2, 2] = True  # two steps, and no third along the diagonal
    assert labels.line_length(corner) == pytest.approx(2)
    assert labels.line_length(np.zeros((2, 3, 3), bool)) == 0


def test_thinning_by_parts() -> None:
    """Centre lines of a mask that comes plane by plane are those of the whole mask."""
    z, y, x = np.mgrid[0:70, 0:60, 0:50].astype(np.float32)
    mask = (y - 20 - 8 * np.sin(z / 9)) ** 2 + (x - 25 - z / 5) ** 2 < 9
    mask |= (z - 30 - y / 4) ** 2 + (x - 12) ** 2 < 6
    expected = labels.skeleton(mask)
    for arguments in ({}, {"planes": 16, "tile": 24, "margin": 12}):
        thinner = Thinner(mask.shape[1:], **arguments)
        found = [line for plane in mask for line in thinner.push(plane)]
        found = np.stack([*found, *thinner.finish()])
        assert np.array_equal(found, expected) and expected.any()
    flat = np.zeros((1, 9, 9), bool)
    flat[0, 3:6, 1:8] = True
    assert 0 < labels.skeleton(flat).sum() < flat.sum()


def test_cell_sums() -> None:
    values = np.random.default_rng(0).random((7, 9, 10))
    sums = CellSums((9, 10), 4)
    found = [plane for row in values for plane in sums.push(row)]
    found = np.stack([*found, *sums.finish()])
    assert found.shape == (2, 3, 3)
    assert found[1, 2, 2] == pytest.approx(values[4:, 8:, 8:].mean(), rel=1e-6)


def test_windows_of_thin_regions() -> None:
    values = np.random.default_rng(0).integers(0, 9000, (6, 5, 40), dtype=np.uint16)
    windows = brain.Windows((0, 0, 0), values.shape, 16, 4)
    assert windows.blocks() == [-2] and len(windows.corners()) == 5
    planes = list(brain.probabilities(values, windows, lambda tile: np.stack([-tile, tile])))
    assert [number for number, _ in planes] == list(range(6)) and planes[0][1].shape == (5, 40)
    expected = 255 / (1 + np.exp(-2 * (values.astype(float) - values[5].mean()) / values[5].std()))
    found = np.stack([p.copy() for _, p in brain.probabilities(values, windows, lambda tile: np.stack([-tile, tile]))])
    assert np.abs(found - np.floor(expected)).max() <= 1
    assert brain.axon(np.array([[1000.0], [-1000.0], [0.0]]))[0] == 0
    assert brain.axon(np.array([[-800.0]]))[0] == 0 and brain.axon(np.zeros((1, 1)))[0] == 0.5


def test_centres_and_crops(tmp_path: Path) -> None:
    table = tmp_path / "centres.csv"
    table.write_text(" ,Area,X,Y,Slice\n1,0,250.5,255.0,22\n")
    assert cubes.centres(table) == [(22, 255, 250)]
    volume = np.arange(8 * 9 * 10).reshape(8, 9, 10)
    assert np.array_equal(cubes.cropped(volume, (3, 4, 5), 2), volume[1:5, 2:6, 3:7])
    assert np.array_equal(cubes.cropped(volume, (1, 4, 5), 2, wrap=True), volume[[7, 0, 1, 2], 2:6, 3:7])
    for centre in ((1, 4, 5), (3, 1, 5), (3, 4, 9)):
        with pytest.raises(InputError, match="reaches over the border"):
            cubes.cropped(volume, centre, 2)
    for text, message in (("A,B\n1,2\n", "columns X, Y"), ("X,Y,Slice\n1,x,2\n", "line 2 has a centre")):
        table.write_text(text)
        with pytest.raises(InputError, match=message):
            cubes.centres(table)
    with pytest.raises(InputError, match="does not exist"):
        cubes.centres(tmp_path / "none.csv")


def test_proposals_of_wide_cubes() -> None:
    """Planes along x are blurred each for itself, however many there are."""
    values = np.random.default_rng(0).integers(0, 9000, (20, 21, 150), dtype=np.uint16)
    found = cubes.difference(values)
    assert np.array_equal(found[:, :, 100:], cubes.difference(values[:, :, 100:])) and found.any()


def test_weakening_moves_values_to_their_mean() -> None:
    values = np.random.default_rng(0).normal(100, 20, (20, 20, 20))
    found = cubes.weakened(values, [(10, 10, 10)], radius=5)
    middle = np.s_[8:12, 8:12, 8:12]
    assert found[middle].std() < values[middle].std() and np.array_equal(found[0], values[0])
    aside = cubes.weakened(values, [(10, 10, 3)], radius=3, as_published=False)
    assert not np.array_equal(aside[10, 10, 2:5], values[10, 10, 2:5])
    assert np.array_equal(aside[10, 10, 8:], values[10, 10, 8:])


@needs_data
def test_training_set_of_real_cubes(tmp_path: Path) -> None:
    """Cube 1000 with its fine label, and a dark part of the brain for an artefact, to a data set that omlab reads."""
    axons = [(cube("volume-1000-z53"), cube("fine-label-1000-z53"))]
    artefacts = [cube("brain-example-crop")[:90, :90, 160:250]]
    settings = training_set.Settings(size=64, samples=2)
    made = list(training_set.examples(axons, artefacts, np.random.default_rng(0), settings))
    again = list(training_set.examples(axons, artefacts, np.random.default_rng(0), settings))
    # The cube, its match and its mix give two crops each; the artefact and its match one each.
    assert len(made) == 3 * 2 + 2
    assert all(np.array_equal(a.image, b.image) for a, b in zip(made, again, strict=True))
    for number, example in enumerate(made):
        assert example.image.shape == (64, 64, 64) and example.image.min() == 0 and example.image.max() == 1
        assert set(np.unique(example.label)) <= {0, 1} and (number < 6 or not example.label.any())
    first = made[0]
    assert first.image[first.label > 0].mean() > 1.5 * first.image[first.label == 0].mean()
    assert training_set.write(tmp_path / "Dataset001_axons", iter(made)) == 8
    bound = omlab.load_dataset(f"nnunet-raw:{tmp_path / 'Dataset001_axons'}")
    item = next(iter(bound.items()))
    assert item.read().voxels.shape == (64, 64, 64) and item.reference().labels.max() == 1
    with pytest.raises(InputError, match="none of 1 axon cubes"):
        next(training_set.examples(axons, [], np.random.default_rng(0)))


def test_mixing_takes_a_corner() -> None:
    generator = np.random.default_rng(1)
    ones, zeros = np.ones((6, 6, 6)), np.zeros((6, 6, 6))
    kept = []
    for _ in range(20):
        image, label = training_set.mixed(ones, ones, zeros, generator)
        assert np.array_equal(image, label) and (image[-1, -1, -1] == 1 or not image.any())
        kept.append(int(image.sum()))
    assert len(set(kept)) > 5 and ones.all()


def test_scores_by_hand() -> None:
    truth = np.zeros((20, 20, 20), bool)
    truth[10, 10, 2:18] = True
    beside = np.roll(truth, 1, axis=1)
    same, other = metrics.scores(truth, truth), metrics.scores(beside, truth)
    assert same["iou"] == same["t_iou"] == pytest.approx(1) and same["junk_ratio"] == 0
    assert other["iou"] == 0 and other["t_iou"] == pytest.approx(1 / 3)
    assert metrics.scores(beside, truth, kernel=5)["dice"] > 0.7
    empty = metrics.scores(np.stack([truth, beside]), np.stack([np.zeros_like(truth), truth]))
    assert empty["junk_ratio"] == pytest.approx(16 / 48)
    with pytest.raises(ValueError, match="cannot be compared"):
        metrics.scores(truth, truth[:5])


def test_training_lowers_the_loss() -> None:
    """A few steps of the objective on one example, all heads supervised; and of the centre-line loss."""
    torch.manual_seed(0)
    volume = torch.from_numpy(model.threads((16, 16, 16)))[None, None]
    target = (volume > 1).long()
    network = GenericUNet(**SMALL, deep_supervision=True)
    objective = losses.AxonObjective(network)
    optimiser = losses.optimiser(network, 3e-3)
    values = []
    for _ in range(12):
        loss = objective(volume, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert values[-1] < values[0] - 0.2
    perfect = losses.ClDiceLoss()(target.float(), target.float())
    assert float(perfect) == pytest.approx(-1)
    assert float(losses.ClDiceLoss()(1 - target.float(), target.float())) > -0.5
    schedule = losses.plateau(optimiser)
    for _ in range(losses.PATIENCE + 2):
        schedule.step(1.0)
    assert schedule.get_last_lr()[0] == pytest.approx(3e-3 * losses.FACTOR)


def test_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model, "side_of", lambda variant: 16)
    monkeypatch.setattr(tuning, "side_of", lambda variant: 16)
    monkeypatch.setattr(tuning, "arguments", lambda variant: SMALL)
    monkeypatch.setattr(model, "arguments", lambda variant: SMALL)
    from omlab.plugins import Registry
    from omlab.vocabulary import Kind

    behind = Registry.discover().load(Kind.MODEL, "axon-seg")
    assert isinstance(behind, Tunable)
    variant = behind.card.variants[0]
    path = tmp_path / "net.pth"
    weights = seed_module(GenericUNet(**SMALL)).state_dict()
    torch.save(weights, path)
    recipe = behind.recipe(variant, {"net": path}, 2)
    assert (
        recipe.patch == (16, 16, 16)
        and recipe.multiple is None
        and torch.equal(recipe.network.state_dict()["tu.0.weight"], weights["tu.0.weight"])
    )
    geometry = Geometry((20, 18, 16), np.eye(4))
    case = Volume(name="cube", voxels=np.random.default_rng(0).random((20, 18, 16)) * 9, geometry=geometry)
    truth = Segmentation(
        labels=(case.voxels > 8).astype(np.uint8), structures=[Label(value=1, name="axon")], geometry=geometry
    )
    prepared = recipe.prepare(case, truth)
    assert prepared.image.shape == (1, 16, 18, 20) and abs(prepared.image.mean()) < 1e-4
    window = torch.from_numpy(prepared.image[:, :, :16, :16])[None]
    given = recipe.network(window)
    loss = recipe.loss(given, torch.from_numpy(prepared.labels[:, :16, :16].astype(np.int64))[None, None])
    assert torch.isfinite(loss) and recipe.labels(given).shape == (1, 16, 16, 16)
    tuned = behind.tuned(behind.graphs(variant)[0], variant, recipe.state.state_dict())
    assert tuned(window).shape == (1, 2, 16, 16, 16)
    for outputs, changes, message in (
        (3, {}, "2 structures"), (2, {"spacing_mm": (1, 1, 1)}, "sees voxels as they are"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            behind.recipe(variant, {"net": path}, outputs, **changes)
    unet = next(v for v in behind.card.variants if v.name == "own-unet")
    with pytest.raises(UsageError, match="has no recipe"):
        behind.recipe(unet, {}, 2)
    with pytest.raises(InputError, match="label map has"):
        recipe.prepare(case, Segmentation(labels=np.zeros((2, 2, 2), np.uint8), structures=[]))


def test_files_of_other_things_are_refused() -> None:
    golden = Golden.make({"model": "axon-seg", "entry": "net.VNet", "kwargs": {}}, {"x": np.zeros(1)})
    with pytest.raises(GoldenError, match=r"is of 'net\.VNet'"):
        goldens.compute(golden)
    golden = Golden.make({"model": "axon-seg", "entry": "Generic_UNet", "kwargs": {"new": 1}}, {"x": np.zeros(1)})
    with pytest.raises(GoldenError, match="cannot be made of its arguments"):
        goldens.compute(golden)
    assert checkpoint.arguments_of(CEANet().state_dict(), "ceanet") == {"num_classes": 2, "num_channels": 1}


def test_readme_makes_a_training_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the README as it is written, on a brain of a folder of pages."""
    pytest.importorskip("nibabel")
    random = np.random.default_rng(0)
    (tmp_path / "brain").mkdir()
    for number in range(152):
        plane = random.normal(3000, 100, (154, 156))
        plane[60:64, 20:140] += 9000 * (number % 40 < 4)
        tifffile.imwrite(tmp_path / "brain" / f"{number:04d}.tif", plane.astype(np.uint16))
    for name in ("axons", "artefacts"):
        (tmp_path / f"{name}.csv").write_text(" ,X,Y,Slice\n1,78,77,76\n")
    text = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    exec(text.split("```python\n")[1].split("```")[0], {})
    images = sorted((tmp_path / "Dataset001_axons" / "imagesTr").iterdir())
    assert len(images) == 3 * 2 + 2 and (tmp_path / "Dataset001_axons" / "dataset.json").is_file()
