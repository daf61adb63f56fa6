"""Upstream's weights files into the network: containers of nnU-Net 1 and 2, and what fine-tuning takes over."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.errors import WeightsError
from omlab_sdk.checkpoints import load_into, read_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from omlab_stunet.network import STUNet

#: Where the state dict is: nnU-Net 1, nnU-Net 2.
KEYS = ("state_dict", "network_weights")
#: What data-parallel training and torch.compile put before a name.
PREFIXES = ("module.", "_orig_mod.")
_STEM = re.compile(r"conv_blocks_context\.0\.0\.conv[13]\.weight")


def read(path: Path, key: str = "") -> dict[str, Tensor]:
    """The state dict of a ``.model`` or ``.pth`` file of nnU-Net 1 or 2, or of a bare one, with the network's names.

    Raises
    ------
    omlab.errors.WeightsError
        The file is missing or damaged, or holds no state dict.
    """
    state = None
    for candidate in (key,) if key else KEYS:
        try:
            state = read_checkpoint(path, key=candidate)
            break
        except WeightsError as error:
            if "has no entry" not in error.message:
                raise
    if state is None:
        state = read_checkpoint(path)
    for prefix in PREFIXES:
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments that the shapes of a state dict tell: ``input_channels``, ``num_classes``, ``depth``,
    ``dims``.

    Raises
    ------
    omlab.errors.WeightsError
        It is of another network.
    """
    try:
        stem = state["conv_blocks_context.0.0.conv1.weight"]
        head = state["seg_outputs.4.weight"]
        dims = [int(state[f"conv_blocks_context.{d}.0.conv1.weight"].shape[0]) for d in range(6)]
    except KeyError as error:
        raise WeightsError(
            f"the weights have no entry {error}: they are not those of a STU-Net", remedy="Check the file"
        ) from None
    depth = []
    for d in range(6):
        blocks = [name for name in state if re.fullmatch(rf"conv_blocks_context\.{d}\.\d+\.conv1\.weight", name)]
        depth.append(len(blocks))
    return {
        "input_channels": int(stem.shape[1]), "num_classes": int(head.shape[0]), "depth": depth, "dims": dims,
    }  # fmt: skip


def load(network: STUNet, path: Path, key: str = "") -> STUNet:
    """Load a file for inference, strictly.

    Raises
    ------
    omlab.errors.WeightsError
        The file does not fit the network.
    """
    load_into(network, read(path, key), name=str(path))
    return network


def transfer(network: STUNet, state: Mapping[str, Tensor], *, strict: bool = False) -> list[str]:
    """Begin a fine-tuning: take over everything but the heads, which stay as they are even with as many classes.

    The first layer of a single-channel network is repeated for every channel of ``network``, not divided by their
    number, as upstream has it.

    Parameters
    ----------
    state : of the pre-trained network, with or without the prefix ``module.``.
    strict : nnU-Net 2's rule: everything but the heads must be there in the right shape. Without, nnU-Net 1's: what
        does not fit keeps its initialisation.

    Returns
    -------
    Names that were taken over.

    Raises
    ------
    omlab.errors.WeightsError
        With ``strict``, an entry is missing or of another shape.
    """
    own = network.state_dict()
    channels = own["conv_blocks_context.0.0.conv1.weight"].shape[1]
    taken: dict[str, Tensor] = {}
    for given, value in state.items():
        name = given.removeprefix("module.")
        stem = _STEM.fullmatch(name) and value.shape[1] == 1
        tensor = value.repeat(1, channels, 1, 1, 1) if stem else value
        if name in own and "seg_outputs" not in name and tensor.shape == own[name].shape:
            taken[name] = tensor
    lacking = [name for name in own if name not in taken and "seg_outputs" not in name]
    if strict and lacking:
        raise WeightsError(
            f"{len(lacking)} entries of the network are missing or of another shape, first '{lacking[0]}'",
            remedy="Fine-tune the size that the weights are of",
        )
    network.load_state_dict(taken, strict=False)
    return list(taken)
