"""Upstream's files into the networks: bare state dicts of the whole-brain script, and nnU-Net's ``.model``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.errors import WeightsError
from omlab_axon_seg.ceanet import CEANet
from omlab_axon_seg.network import GenericUNet
from omlab_axon_seg.unet import UNet
from omlab_sdk.checkpoints import entries_of, load_into, read_checkpoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Keys under which training scripts keep the state dict: nnU-Net's, and that of the brain region networks.
KEYS = ("state_dict", "net")


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, bare or in a container, without the ``module.`` of parallel training.

    Raises
    ------
    omlab.errors.WeightsError
        The file is missing, damaged, or holds no state dict.
    """
    entries = entries_of(path)
    key = next((k for k in KEYS if k in entries and issubclass(entries[k], Mapping)), "")
    return read_checkpoint(path, key=key, prefix="module.")


def arguments_of(state: Mapping[str, Tensor], network: str, name: str = "checkpoint") -> dict[str, Any]:
    """Constructor arguments that the shapes of a state dict tell. How many attention heads share their width is not
    among them: the published models have 2 of width 8 at full resolution.

    Raises
    ------
    omlab.errors.WeightsError
        It is of another network.
    """
    try:
        if network == "unet":
            first = state["conv3d_c1_1.weight"]
            return {
                "in_channels": first.shape[1], "base_n_filter": first.shape[0],
                "n_classes": state["conv3d_l4.weight"].shape[0],
            }  # fmt: skip
        if network == "ceanet":
            return {
                "num_classes": state["finalconv3.weight"].shape[0],
                "num_channels": state["firstconv.weight"].shape[1],
            }
        first = state["conv_blocks_context.0.blocks.0.conv.weight"]
        stages = len({key.split(".")[1] for key in state if key.startswith("tu.")})
        widths = [state[f"tu.{n}.weight"].shape[1] for n in range(stages)]
        attending = sorted({int(key.split(".")[1]) for key in state if key.startswith("axial_embedding.")})
        pools = [tuple(state[f"tu.{stages - 1 - level}.weight"].shape[2:]) for level in range(stages)]
        units = [k for k in state if re.fullmatch(r"conv_blocks_context\.0\.blocks\.\d+\.conv\.weight", k)]
        return {
            "side": _side(state, attending, pools), "base": first.shape[0], "channels": first.shape[1],
            "conv_kernel": tuple(first.shape[2:]), "num_pool": stages, "pool": pools,
            "max_num_features": max(*widths, state["tu.0.weight"].shape[0]), "num_conv_per_stage": len(units),
            "skip": [n for n in range(stages) if n not in attending],
            "num_classes": state["seg_outputs.0.weight"].shape[0],
        }  # fmt: skip
    except KeyError as error:
        raise WeightsError(
            f"{name}: is no checkpoint of {network}: it has no entry {error}",
            remedy="Choose the variant of the other network",
        ) from None


def _side(state: Mapping[str, Tensor], attending: Sequence[int], pools: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Sides of the input, by the positions of the finest stage that attends; 128 where none does."""
    if not attending:
        return (128, 128, 128)
    stage = attending[-1]
    side = [int(state[f"axial_embedding.{stage}.param_{axis}"].shape[2 + axis]) for axis in range(3)]
    for pool in pools[: len(pools) - 1 - stage]:
        side = [n * p for n, p in zip(side, pool, strict=True)]
    return tuple(side)


def build(network: str, *, deep_supervision: bool = False, **arguments: Any) -> torch.nn.Module:
    """One of ``"axial"``, ``"unet"`` and ``"ceanet"``, in eval mode."""
    if network == "unet":
        return UNet(**arguments).eval()
    if network == "ceanet":
        return CEANet(**arguments).eval()
    return GenericUNet(deep_supervision=deep_supervision, **arguments).eval()


def load(path: Path, network: str, *, side: Sequence[int] | None = None, **arguments: Any) -> torch.nn.Module:
    """A network as large as a file's weights, with them, in eval mode.

    Upstream's script leaves out silently what the network lacks; here the file must fit.

    Parameters
    ----------
    side : sides of the input that are needed.
    arguments : constructor arguments that the file does not tell.

    Raises
    ------
    omlab.errors.WeightsError
        The file is of another network, or takes volumes of another size.
    """
    state = read(path)
    found = arguments_of(state, network, str(path)) | arguments
    if side is not None and "side" in found and tuple(found["side"]) != tuple(side):
        raise WeightsError(f"{path}: takes volumes of {found['side']}, the variant those of {tuple(side)}")
    made = build(network, **found)
    load_into(made, state, name=str(path))
    return made.eval()
