"""How golden files of Axon-Seg map onto the networks and steps of this package."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omlab_axon_seg import brain, cubes, labels, losses, metrics
from omlab_axon_seg.attention import AxialAttention, AxialPositionalEmbedding
from omlab_axon_seg.ceanet import CEANet
from omlab_axon_seg.network import GenericUNet
from omlab_axon_seg.unet import UNet
from omlab_sdk.golden import Golden, GoldenError, seed_module

GOLDENS = ("axon-seg",)
Arrays = dict[str, NDArray[Any]]
#: Where the shared data of the project lie.
DATA = Path(__file__).resolve().parents[5] / "shared" / "data"


def compute(golden: Golden) -> Mapping[str, NDArray[Any]]:
    """Every output that the file may ask for.

    Raises
    ------
    GoldenError
        The file is of a network or step that this package does not have, or needs data that are not there.
    """
    entry = str(golden.meta.get("entry", ""))
    for word, answer in _ANSWERS.items():
        if word in entry:
            return answer(golden)
    raise GoldenError(f"{golden.path}: is of '{entry}', axon-seg has {', '.join(_ANSWERS)}")


def _first(golden: Golden) -> torch.Tensor:
    name = next(iter(golden.meta["inputs"]), None) or next(iter(golden.literal))
    return torch.from_numpy(np.ascontiguousarray(golden.input(name), np.float32))


def _made(golden: Golden, make: Callable[..., torch.nn.Module], arguments: Mapping[str, Any]) -> torch.nn.Module:
    try:
        network = make(**arguments)
    except TypeError as error:
        raise GoldenError(f"{golden.path}: {make.__name__} cannot be made of its arguments: {error}") from None
    return seed_module(network.eval(), golden.kept)


def _axial(golden: Golden) -> Arrays:
    network = _made(golden, GenericUNet, golden.kwargs | {"deep_supervision": True})
    modules: dict[str, torch.nn.Module] = {}
    for name in golden.outputs:
        word, _, number = name.partition("_")
        holder = {
            "encoder": "conv_blocks_context", "decoder": "conv_blocks_localization", "up": "tu",
            "embed": "axial_embedding", "attention": "axial_attention",
        }.get(word)  # fmt: skip
        if holder:
            modules[name] = network.get_submodule(f"{holder}.{number}")
    given, found = _hooked(network, modules, _first(golden))
    return found | {f"logits_{number}": head.numpy() for number, head in enumerate(given)}


def _hooked(network: torch.nn.Module, modules: Mapping[str, torch.nn.Module], x: torch.Tensor) -> tuple[Any, Arrays]:
    """What the network gives, and what modules in it gave."""
    found: Arrays = {}
    handles = []
    for name, module in modules.items():

        def keep(_: Any, __: Any, output: torch.Tensor, name: str = name) -> None:
            found[name] = output.numpy()

        handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        given = network(x)
    for handle in handles:
        handle.remove()
    return given, found


def _attention(golden: Golden) -> Arrays:
    embedding = _made(golden, AxialPositionalEmbedding, golden.kwargs["embedding"])
    attention = _made(golden, AxialAttention, golden.kwargs["attention"])
    with torch.no_grad():
        x = embedding(_first(golden))
        found = {"embedded": x}
        given = attention(x)
        for number, along in enumerate(attention.axial_attentions):
            out = along(x)
            x = out if not attention.sum_axial_out else x
            found[f"axis_{number}"] = out
    found["output"] = given
    return {name: value.numpy() for name, value in found.items()}


def _unet(golden: Golden) -> Arrays:
    network = _made(golden, UNet, golden.kwargs)
    with torch.no_grad():
        return {"logits": network(_first(golden)).numpy()}


def _ceanet(golden: Golden) -> Arrays:
    network = _made(golden, CEANet, golden.kwargs)
    modules = {name: network.get_submodule(name) for name in golden.outputs if name != "logits"}
    given, found = _hooked(network, modules, _first(golden))
    return found | {"logits": given.numpy()}


def _file(golden: Golden, named: str) -> NDArray[Any]:
    """A gzipped TIFF of the shared data. Raises :class:`GoldenError` where there are none."""
    import tifffile

    path = DATA / named.split()[0]
    if not path.is_file():
        raise GoldenError(f"{golden.path}: needs {path}, which is not there")
    return np.asarray(tifffile.imread(io.BytesIO(gzip.decompress(path.read_bytes()))))


def _whole_numbers(array: NDArray[Any]) -> NDArray[np.uint16]:
    return np.clip(array, 0, 65535).astype(np.uint16)


def stand_in(tile: NDArray[np.float32]) -> NDArray[np.float32]:
    """What golden files of brains have in place of a network: logits that depend on value and place."""
    r = np.linspace(0.5, 1.5, len(tile))
    ramp = r[:, None, None] * r[::-1][None, :, None] * (0.5 + r / 2)[None, None]
    a = 2 * tile * ramp
    return np.stack([-a, a - 1]).astype(np.float32)


def _brain(golden: Golden) -> Arrays:
    meta = golden.meta
    if "file" in meta:
        volume = _file(golden, meta["file"])
    else:
        volume = _whole_numbers(golden.input(next(iter(meta["inputs"]), "brain")))
    windows = brain.Windows(
        tuple(meta["start_point"][::-1]), tuple(meta["end_point"][::-1]), int(meta["input_dim"]), int(meta["overlap"])
    )
    return {"mask": np.stack([plane.copy() for _, plane in brain.probabilities(volume, windows, stand_in)])}


def _prepare(golden: Golden) -> Arrays:
    names = list(golden.meta["inputs"])
    cube = _whole_numbers(golden.input(names[0]))
    reference = _whole_numbers(golden.input(names[1])) // 3
    middles, radius, strength = golden.meta["mid_points"], int(golden.meta["rad"]), float(golden.meta["sigma"])
    return {
        "difference": cubes.difference(cube),
        "weakened": cubes.weakened(cube, middles, radius=radius, strength=strength),
        "weakened_float": cubes.weakened(cube.astype(np.float64), middles, radius=radius, strength=strength),
        "matched": cubes.matched(cube, reference),
    }


def _skeleton(golden: Golden) -> Arrays:
    rough = _file(golden, golden.meta["files"][0])
    cleaned = labels.without_small(rough > 0, int(golden.meta.get("connectives", labels.LEAST_VOXELS)))
    thin = labels.skeleton(cleaned)
    fine = labels.dilated(thin)
    return {"cleaned": cleaned, "skeleton": thin, "fine": fine, "skeleton_voxels": np.array(np.nonzero(thin))}


def _metrics(golden: Golden) -> Arrays:
    ranges = re.findall(r"(\d+):(\d+)", str(golden.meta.get("crop", "")))
    box = tuple(slice(int(a), int(b)) for a, b in ranges)
    p, t = (_file(golden, name)[box] > 0 for name in golden.meta["files"])
    found: Arrays = {}
    for name in golden.outputs:
        if re.fullmatch(r"k\d+", name):
            found[name] = np.array(list(metrics.scores(p, t, kernel=int(name[1:])).values()))
    prediction, truth = (torch.from_numpy(mask.astype(np.float32))[None, None] for mask in (p, t))
    found["soft_skeleton"] = losses.soft_skeleton(prediction).numpy()
    found["cldice_loss"] = losses.ClDiceLoss()(0.9 * prediction, truth).numpy()
    return found


_ANSWERS: Mapping[str, Callable[[Golden], Arrays]] = {
    "AxialAttention": _attention,
    "segment_brain_batch": _brain,
    "gauss_cal": _prepare,
    "thined_component": _skeleton,
    "soft_cldice": _metrics,
    "CEA_Net": _ceanet,
    "GenericUNet": _axial,
    "Generic_UNet": _axial,
    "UNet": _unet,
}
