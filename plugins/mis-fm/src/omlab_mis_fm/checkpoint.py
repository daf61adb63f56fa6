"""Upstream's files into the networks, to run them or to train on from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.errors import WeightsError
from omlab_mis_fm.fmunet import FMUNet
from omlab_mis_fm.pctnet import PCTNet
from omlab_sdk.checkpoints import load_into, read_checkpoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KEY = "model_state_dict"


def read(path: Path, key: str = KEY) -> dict[str, Tensor]:
    """The state dict of a checkpoint of PyMIC. Raises :class:`omlab.errors.WeightsError`."""
    return read_checkpoint(path, key=key)


def arguments_of(state: Mapping[str, Tensor], network: str, name: str = "checkpoint") -> dict[str, Any]:
    """Constructor arguments that a state dict tells: channels, classes, widths, depths and heads.

    Raises
    ------
    WeightsError
        It is of another network.
    """
    try:
        if network == "fmunet":
            widths = [state[f"encoder.en_conv{k}.conv_list.0.0.weight"].shape[0] for k in range(5)]
            return {
                "in_chns": state["project.weight"].shape[1], "feature_chns": widths,
                "class_num": state["out_layers.0.2.weight"].shape[0],
                "depth": _count(state, "encoder.en_conv0.conv_list."),
            }  # fmt: skip
        embedding, blocks = "embeddings.0", [f"pyramid_ct.convtrans_e{k}.trans.blocks." for k in (2, 3, 4)]
        widths = [state[f"{embedding}.conv{k}.conv_conv.0.weight"].shape[0] for k in range(2)]
        widths += [state[f"pyramid_ct.convtrans_e{k}.conv.conv_conv.0.weight"].shape[0] for k in (2, 3, 4)]
        return {
            "in_chns": state[f"{embedding}.proj.weight"].shape[1], "feature_chns": widths,
            "class_num": state["pred_heads.0.out_conv0.conv.2.weight"].shape[0],
            "depths": [_count(state, prefix) for prefix in blocks],
            "num_heads": [state[f"{prefix}0.attn.relative_position_bias_table"].shape[1] for prefix in blocks],
        }  # fmt: skip
    except KeyError as error:
        raise WeightsError(
            f"{name}: is no checkpoint of {network}: it has no entry {error}",
            remedy="Choose the variant of the other network",
        ) from None


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})


def build(network: str, *, input_size: Sequence[int], mode: int = 0, **arguments: Any) -> torch.nn.Module:
    """One of ``"pctnet"`` and ``"fmunet"``, for inference: the finest level alone."""
    if network == "fmunet":
        return FMUNet(res_mode=mode, **arguments).set_stage("test").eval()
    return PCTNet(input_size=input_size, resolution_mode=mode, **arguments).eval()


def load(path: Path, network: str, *, input_size: Sequence[int], mode: int = 0, key: str = KEY) -> torch.nn.Module:
    """A network as large as a file's weights, with them, in eval mode.

    Raises
    ------
    WeightsError
        The file is of another network, or was made for another input size or mode.
    """
    return fitted(read(path, key), network, input_size=input_size, mode=mode, name=str(path))


def fitted(
    state: Mapping[str, Tensor], network: str, *, input_size: Sequence[int], mode: int = 0, name: str = "checkpoint"
) -> torch.nn.Module:
    """Like :func:`load`, of a state dict."""
    made = build(network, input_size=input_size, mode=mode, **arguments_of(state, network, name))
    load_into(made, state, name=name)
    return made.eval()


def start(network: torch.nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Begin a training from a published file, in place, as PyMIC does: entries whose name and shape agree are loaded.

    Returns
    -------
    What keeps its random start, say the head of another number of classes. PyMIC leaves it out silently; window tables
    among it mean that the input size does not suit the file.

    Raises
    ------
    WeightsError
        Nothing agrees.
    """
    own = network.state_dict()
    shared = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not shared:
        raise WeightsError("no entry of the checkpoint fits the network", remedy="It is of another network")
    network.load_state_dict(shared, strict=False)
    return [key for key in own if key not in shared]
