"""The networks against what the TorchScript archives of deepbet gave."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from omlab_deepbet import goldens  # noqa: E402
from omlab_deepbet.network import LinkNet3d, MaskProbability, blocks_to_volume  # noqa: E402
from omlab_sdk.golden import Golden, seed_module  # noqa: E402

FOLDER = Path(__file__).parent.parent / "goldens"
NAMES = ["deepbet-bbox", "deepbet-mask"]


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_names_are_those_of_the_archive(name: str) -> None:
    keys = json.loads(gzip.decompress((FOLDER / f"{name}.keys.json.gz").read_bytes()))
    own = {key: list(tensor.shape) for key, tensor in LinkNet3d().state_dict().items()}
    assert own == {key: shape for key, (shape, _, _) in keys.items()}


@pytest.mark.parametrize("name", NAMES)
def test_outputs_equal_the_archive(name: str) -> None:
    golden = Golden.read(FOLDER / f"{name}.npz")
    computed = goldens.compute(golden)
    assert set(computed) == set(golden.outputs)
    for output, mark in golden.outputs.items():
        assert mark.error(computed[output]) < 1e-5, output


def test_a_wrong_network_is_noticed() -> None:
    golden = Golden.read(FOLDER / "deepbet-mask.npz")
    network = seed_module(LinkNet3d().eval())
    network.init[1].eps = 1e-3
    with torch.inference_mode():
        found = network(torch.from_numpy(golden.input("image"))).numpy()
    assert golden.outputs["probability"].error(found) > 1e-4


def test_exported_form_keeps_its_digits_on_bright_input() -> None:
    """The variance comes from the mean square: an input far from zero must not cost digits."""
    network = seed_module(LinkNet3d().eval())
    image = torch.from_numpy(np.random.default_rng(1).uniform(0.2, 1.0, (1, 1, 64, 96, 64)).astype(np.float32))
    with torch.inference_mode():
        exported = blocks_to_volume(MaskProbability(network).eval()(image))
        truth = network.double()(image.double())[:, 1:]
    assert (exported - truth).norm() / truth.norm() < 1e-5
