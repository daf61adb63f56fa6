"""How a golden file of deepbet maps onto its network (:mod:`omlab_sdk.golden`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from omlab_sdk.golden import Golden

GOLDENS = ("deepbet",)


def compute(golden: Golden) -> Mapping[str, np.ndarray]:
    """``probability``: soft-maxed background and brain of the network as published; ``brain``: the second of them, by
    the network as exported."""
    import torch

    from omlab_deepbet.network import LinkNet3d, MaskProbability, blocks_to_volume
    from omlab_sdk.golden import seed_module

    network = LinkNet3d(**golden.kwargs).eval()
    seed_module(network, golden.kept)
    image = torch.from_numpy(golden.input("image"))
    with torch.inference_mode():
        published = network(image)
        exported = blocks_to_volume(MaskProbability(network).eval()(image))
    return {"probability": published.numpy(), "brain": exported.numpy()}
