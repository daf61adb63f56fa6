"""The network and every step around it against upstream's golden files.

The published size takes some seconds and runs with ``OMLAB_FULL_GOLDENS=1``; ``omlab check`` runs it always.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from omlab_sam_med3d import goldens  # noqa: E402
from omlab_sam_med3d.network import Sam3d  # noqa: E402
from omlab_sdk.golden import Golden, GoldenError  # noqa: E402

FOLDER = Path(__file__).parent.parent / "goldens"
BRATS = Path(__file__).resolve().parents[4] / "shared" / "data" / "brats_flair"
SMALL = 1e-5


@pytest.mark.parametrize("name", ["tiny", "infer", "orient", "windows"])
def test_outputs_equal_upstream(name: str) -> None:
    golden = Golden.read(FOLDER / f"sam_med3d-{name}.npz")
    computed = goldens.compute(golden)
    assert golden.outputs
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < SMALL, output


@pytest.mark.parametrize("name", ["brats", "brats_e2e"])
def test_real_scan_equals_upstream(name: str) -> None:
    """Resampling, cropping, clicks and label map of upstream's demonstration scan."""
    if not BRATS.is_dir():
        pytest.skip("needs data/brats_flair in the folder shared beside the project")
    golden = Golden.read(FOLDER / f"sam_med3d-{name}.npz")
    computed = goldens.compute(golden)
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < SMALL, output


@pytest.mark.skipif(os.environ.get("OMLAB_FULL_GOLDENS") != "1", reason="set OMLAB_FULL_GOLDENS=1 for the full size")
def test_full_size_outputs_equal_upstream() -> None:
    golden = Golden.read(FOLDER / "sam_med3d-vit_b_ori.npz")
    computed = goldens.compute(golden)
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < 1e-4, output


def test_names_and_shapes_are_upstreams() -> None:
    keys = json.loads(gzip.decompress((FOLDER / "sam_med3d-vit_b_ori.keys.json.gz").read_bytes()))
    with torch.device("meta"):
        own = {key: list(tensor.shape) for key, tensor in Sam3d.of_size().state_dict().items()}
    assert own == {key: shape for key, (shape, _, _) in keys.items()}


def test_textbook_positions_are_noticed() -> None:
    """Position terms that add up over three axes, as everyone would expect, do not pass."""
    golden = Golden.read(FOLDER / "sam_med3d-tiny.npz")
    sam = goldens.sam_of(golden)
    for block in sam.image_encoder.blocks:
        block.attn.rel_pos_h, block.attn.rel_pos_w = block.attn.rel_pos_w, block.attn.rel_pos_h
    with torch.inference_mode():
        found = sam.image_encoder(torch.from_numpy(golden.input("image"))).numpy()
    assert golden.outputs["image_embedding"].error(found) > 0.01


@pytest.mark.parametrize(
    ("entry", "kwargs", "message"),
    [
        ("Sam3D", {"surprise": 1}, "unknown arguments surprise"),
        ("sam_model_registry3D", {"model_type": "vit_z"}, "size 'vit_z'"),
        ("SomethingElse", {}, "is of 'SomethingElse'"),
    ],
)
def test_files_of_other_things_are_refused(entry: str, kwargs: dict, message: str) -> None:
    golden = Golden.make({"model": "sam-med3d", "entry": entry, "kwargs": kwargs}, {"x": np.zeros(1)})
    with pytest.raises(GoldenError, match=message):
        goldens.compute(golden)
