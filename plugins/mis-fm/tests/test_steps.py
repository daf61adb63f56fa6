"""Networks, tiles, Volume Fusion, losses and normalisation against upstream's golden files, and by hand.

The published PCT-Net takes most of a minute and runs with ``OMLAB_FULL_GOLDENS=1``; ``omlab check`` runs it always.
"""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from omlab_mis_fm import checkpoint, fusion, goldens, intensity, losses, preparing  # noqa: E402
from omlab_mis_fm.fmunet import FMUNet  # noqa: E402
from omlab_mis_fm.pctnet import PCTNet  # noqa: E402
from omlab_mis_fm.tiles import fitted, logits_of, starts_of  # noqa: E402
from omlab_sdk.golden import Golden, GoldenError, seed_module  # noqa: E402
from omlab_sdk.networks.steady import steady  # noqa: E402

FOLDER = Path(__file__).parent.parent / "goldens"
FILES = [
    "pctnet-small", "fmunet-small", "fmunet-abk1k", "normalize", "intensity", "fusion", "fusion-plain", "tiles",
    "tiles-flip", "loss",
]  # fmt: skip
SMALL_PCTNET = {"input_size": (16, 16, 16), "feature_chns": (4, 4, 8, 8, 8), "num_heads": (2, 2, 2)}


@pytest.mark.parametrize("name", FILES)
def test_outputs_equal_upstream(name: str) -> None:
    golden = Golden.read(FOLDER / f"misfm-{name}.npz")
    computed = goldens.compute(golden)
    assert golden.outputs
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < 1e-5, output


@pytest.mark.skipif(os.environ.get("OMLAB_FULL_GOLDENS") != "1", reason="set OMLAB_FULL_GOLDENS=1 for the full size")
def test_full_size_outputs_equal_upstream() -> None:
    golden = Golden.read(FOLDER / "misfm-pctnet-ct10k.npz")
    computed = goldens.compute(golden)
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < 1e-4, output


def test_names_and_shapes_are_upstreams() -> None:
    with torch.device("meta"):
        networks = {
            "pctnet": PCTNet(
                input_size=(64, 128, 128), feature_chns=(24, 48, 128, 256, 512), resolution_mode=1, class_num=2
            ),
            "fmunet": FMUNet(class_num=2),
        }
    for name, network in networks.items():
        keys = json.loads(gzip.decompress((FOLDER / f"misfm-{name}.keys.json.gz").read_bytes()))
        own = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
        assert own == {key: shape for key, (shape, _, _) in keys.items()}


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_modes(mode: int) -> None:
    """All three embeddings and heads are there; the mode's sizes are checked."""
    size = ((16, 16, 16), (8, 16, 16), (4, 16, 16))[mode]
    network = seed_module(PCTNet(**{**SMALL_PCTNET, "input_size": size}, resolution_mode=mode)).eval()
    with torch.inference_mode():
        assert network(torch.randn(1, 1, *size)).shape == (1, 2, *size)
        with pytest.raises(ValueError, match="PCT-Net: takes"):
            network(torch.randn(1, 1, 32, 16, 16))
    with pytest.raises(ValueError, match="must be divisible by"):
        PCTNet(**{**SMALL_PCTNET, "input_size": (10, 16, 16)}, resolution_mode=mode)
    small = FMUNet(feature_chns=(4, 4, 4, 4, 4), depth=1, res_mode=mode).eval()
    size = tuple(small.divisor)
    assert size == ((16, 16, 16), (8, 16, 16), (4, 16, 16))[mode]
    large = tuple(2 * n for n in size)
    with torch.inference_mode():
        assert small(torch.randn(1, 1, *large))[0].shape[2:] == large
        assert isinstance(small.set_stage("test")(torch.randn(1, 1, *large)), torch.Tensor)
        with pytest.raises(ValueError, match="FMUNet: sides must be divisible"):
            small(torch.randn(1, 1, 18, 16, 16))


def test_steady_norms_change_nothing() -> None:
    network = seed_module(FMUNet(feature_chns=(4, 4, 4, 4, 4), depth=1)).set_stage("test").eval()
    x = torch.randn(1, 1, 16, 32, 32)
    with torch.inference_mode():
        before = network(x)
        assert torch.allclose(steady(network)(x), before, rtol=1e-4, atol=1e-5)


def test_starts_are_repeated() -> None:
    assert starts_of((20, 40, 50), (16, 32, 32), (8, 16, 16)) == ((0, 4, 4), (0, 8, 8), (0, 16, 18, 18))
    assert starts_of((16, 32, 32), (16, 32, 32), (8, 16, 16)) == ((0,), (0,), (0,))
    assert fitted((10, 40, 8), (16, 32, 32), (8, 16, 16)) == ((10, 32, 8), (8, 16, 8))


@pytest.mark.parametrize("tta", [0, 1, 2])
def test_stitching_of_a_pointwise_network_changes_nothing(tta: int) -> None:
    volume = np.random.default_rng(0).standard_normal((1, 18, 18, 18), dtype=np.float32)

    def network(windows: np.ndarray) -> np.ndarray:
        return np.concatenate([windows, -2 * windows], axis=1)

    found = logits_of(volume, network, (8, 8, 8), (5, 5, 5), tta=tta)
    assert np.allclose(found, np.concatenate([volume, -2 * volume]), atol=1e-5)


def test_fusion_examples() -> None:
    task = fusion.VolumeFusion(size=(16, 24, 24), block_min=(3, 4, 4), block_max=(8, 8, 8))
    volume = fusion.clip_ct(np.random.default_rng(0).normal(0, 600, (1, 20, 30, 30)))
    assert volume.min() == -1 and volume.max() == 1
    made, again = (task.make(volume, random.Random(3)) for _ in range(2))
    assert np.array_equal(made.image, again.image)
    assert set(np.unique(made.label)) == {0, 1, 2, 3, 4}
    first, second = made.patches
    for value in range(5):
        there = made.label == value
        assert np.allclose(made.image[there], (value * first[there] + (4 - value) * second[there]) / 4)
    assert np.array_equal(fusion.gamma(np.ones((1, 2, 2, 2)), 1.3), np.ones((1, 2, 2, 2)))
    assert np.isfinite(fusion.stretch(np.full((1, 4, 4, 4), 3.0), 1, 99)).all()


def test_sub_volumes_are_of_the_body() -> None:
    """A body in air with a small second one beside it: cut to it, padded by mirroring, covered to the end."""
    random = np.random.default_rng(0)
    scan = np.full((20, 60, 70), -1000.0)
    scan[:, 10:50, 5:45] = random.normal(0, 100, (20, 40, 40))
    scan[:, 20:24, 60:64] = 40
    assert preparing.body_box(scan) == (slice(10, 50), slice(5, 45))
    assert preparing.body_box(np.full((4, 5, 6), -1000.0)) == (slice(0, 5), slice(0, 6))
    found = list(preparing.sub_volumes(scan, (24, 32, 32), 16))
    assert len(found) == 4 and all(part.shape == (1, 24, 32, 32) for part in found)
    whole = fusion.clip_ct(scan[:, 10:50, 5:45])
    assert np.array_equal(found[0][0, 2:22], whole[:, :32, :32])
    assert np.array_equal(found[0][0, :2], whole[2:0:-1, :32, :32])
    assert np.array_equal(found[3][0, 2:22], whole[:, 8:, 8:])


@pytest.mark.parametrize("network", ["pctnet", "fmunet"])
def test_pretraining_lowers_its_loss(network: str) -> None:
    """A few steps of the objective on one example, all levels supervised."""
    torch.manual_seed(0)
    task = fusion.VolumeFusion(size=(16, 16, 16), block_min=(4, 4, 4), block_max=(8, 8, 8), mode=0)
    made = task.make(np.random.default_rng(0).standard_normal((1, 24, 24, 24)), random.Random(1))
    images = torch.from_numpy(np.ascontiguousarray(made.image, np.float32))[None]
    labels = torch.from_numpy(made.label.astype(np.int64))[None]
    made_network = (
        PCTNet(**SMALL_PCTNET, class_num=5, multiscale_pred=True)
        if network == "pctnet"
        else FMUNet(feature_chns=(8, 8, 8, 8, 8), depth=1, class_num=5)
    )
    objective = losses.FusionObjective(made_network.train())
    optimizer = torch.optim.Adam(made_network.parameters(), 1e-2)
    images, labels = images.repeat(2, 1, 1, 1, 1), labels.repeat(2, 1, 1, 1, 1)
    values = []
    if network == "fmunet":  # its coarsest level needs more than a voxel
        images, labels = (torch.cat([x, x.flip(2)], dim=2) for x in (images, labels))
    for _ in range(25):
        value = objective(images, labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.95 * values[0]


def test_deep_supervision_wants_a_list() -> None:
    with pytest.raises(ValueError, match="list of predictions"):
        losses.DeepSupervision()(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 2, 4, 4, 4))


def test_noise_where_nothing_counts() -> None:
    volume = np.zeros((1, 8, 8, 8), np.float32)
    volume[0, :4] = np.random.default_rng(0).normal(50, 5, (4, 8, 8))
    found = intensity.mean_std(volume, above=0.0, random=np.random.RandomState(0))
    assert abs(found[0, :4].mean()) < 1e-4 and abs(found[0, 4:].std() - 1) < 0.1
    assert np.isfinite(intensity.mean_std(np.zeros((1, 4, 4, 4), np.float32), above=0.0)).all()


def test_start_from_another_number_of_classes() -> None:
    state = seed_module(PCTNet(**SMALL_PCTNET, class_num=5)).state_dict()
    network = PCTNet(**SMALL_PCTNET, class_num=2)
    fresh = checkpoint.start(network, state)
    assert fresh and all("out_conv" in name for name in fresh)
    assert torch.equal(network.state_dict()["pyramid_ct.up4.up.0.weight"], state["pyramid_ct.up4.up.0.weight"])


def test_files_of_other_things_are_refused() -> None:
    golden = Golden.make({"model": "mis-fm", "entry": "net.UNet", "kwargs": {}}, {"x": np.zeros(1)})
    with pytest.raises(GoldenError, match=r"is of 'net\.UNet'"):
        goldens.compute(golden)
    golden = Golden.make({"model": "mis-fm", "entry": "net.FMUNet", "kwargs": {"new": 1}}, {"x": np.zeros(1)})
    with pytest.raises(GoldenError, match="cannot be made of its arguments"):
        goldens.compute(golden)
