"""How golden files of MIS-FM map onto the networks and steps of this package."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omlab_mis_fm import fusion, intensity, losses
from omlab_mis_fm.fmunet import FMUNet
from omlab_mis_fm.pctnet import PCTNet
from omlab_mis_fm.tiles import logits_of
from omlab_sdk.golden import Golden, GoldenError, seed_module

GOLDENS = ("mis-fm",)
Arrays = dict[str, NDArray[Any]]
#: Arguments of upstream's constructors that change nothing in the network's answer.
_IDLE = ("update_mode", "initialization", "finetune_mode", "weights_load_mode")


def compute(golden: Golden) -> Mapping[str, NDArray[Any]]:
    """Every output that the file may ask for.

    Raises
    ------
    GoldenError
        The file is of a network or step that this package does not have.
    """
    entry = str(golden.meta.get("entry", ""))
    for word, answer in _ANSWERS.items():
        if word in entry:
            return answer(golden)
    raise GoldenError(f"{golden.path}: is of '{entry}', mis-fm has {', '.join(_ANSWERS)}")


def network_of(golden: Golden, name: str) -> torch.nn.Module:
    """The seeded network that the file's constructor arguments describe."""
    arguments = {key: value for key, value in golden.kwargs.items() if key not in _IDLE}
    try:
        network = {"PCTNet": PCTNet, "FMUNet": FMUNet}[name](**arguments).eval()
    except (TypeError, KeyError) as error:
        raise GoldenError(f"{golden.path}: {name} cannot be made of its arguments: {error}") from None
    return seed_module(network, golden.kept)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _network(golden: Golden) -> Arrays:
    name = "PCTNet" if "PCTNet" in str(golden.meta["entry"]) else "FMUNet"
    network = network_of(golden, name)
    found: Arrays = {}
    handles = []
    # The file says which submodules its outputs are of: "up4 = pyramid_ct.up4".
    for word, path in re.findall(r"(\w+) = ([\w.]+)", str(golden.meta.get("outputs", ""))):
        if word not in golden.outputs:
            continue

        def keep(_: Any, __: Any, output: Any, word: str = word) -> None:
            found[word] = output.numpy()

        handles.append(network.get_submodule(path).register_forward_hook(keep))
    with torch.no_grad():
        given = network(_tensor(golden.input("image")))
    for number, output in enumerate(given if isinstance(given, list) else [given]):
        found[f"output_{number}"] = output.numpy()
    for handle in handles:
        handle.remove()
    return found


def _tiles(golden: Golden) -> Arrays:
    config = golden.meta["config"]
    network: Any = network_of(golden, str(golden.meta.get("network", "FMUNet")))
    if isinstance(network, FMUNet):
        network.set_stage("test")

    def run(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            found = network(torch.from_numpy(windows))
        return (found[0] if isinstance(found, list) else found).numpy()  # type: ignore[no-any-return]

    image = golden.input(next(iter(golden.meta["inputs"])))
    sizes = config["sliding_window_size"], config["sliding_window_stride"]
    if not config.get("sliding_window_enable", True):
        sizes = image.shape[2:], image.shape[2:]
    volumes = [
        logits_of(
            volume, run, *sizes, tta=int(config.get("tta_mode", 0)), batch=int(config.get("sliding_window_batch", 1))
        )
        for volume in image
    ]
    return {"logits": np.stack(volumes)}


def _fusion(golden: Golden) -> Arrays:
    given = golden.meta["parameters"]
    names = list(golden.meta["inputs"])
    base = min(names, key=len)
    task = fusion.VolumeFusion(
        size=tuple(given["crop4volumefusion_output_size"]), classes=int(given["volumefusion_cls_num"]),
        ratio=float(given["volumefusion_foreground_ratio"]), block_min=tuple(given["volumefusion_patchsize_min"]),
        block_max=tuple(given["volumefusion_patchsize_max"]), mode=int(given["crop4volumefusion_augentation_mode"]),
    )  # fmt: skip
    made = task.make(golden.input(base), random.Random(int(golden.meta["seed"])))
    found: Arrays = {
        "patch_1": made.patches[0], "patch_2": made.patches[1], "fused": made.image, "label": made.label,
    }  # fmt: skip
    if f"{base}_a" in names:
        label = golden.input("label")
        label = label if label.ndim == 4 else label[None]
        found["fixed"] = fusion.fuse(golden.input(f"{base}_a"), golden.input(f"{base}_b"), label, task.classes)
    return found


_CROP = re.compile(r"random\.seed\((\d+)\), output \(([\d, ]+)\), scales ([\d.]+?)\.\.([\d.]+)")


def _intensity(golden: Golden) -> Arrays:
    volume = golden.input(next(iter(golden.meta["inputs"])))
    found: Arrays = {
        "contrast": fusion.stretch(volume, float(golden.meta["p0"]), float(golden.meta["p1"])),
        "gamma": fusion.gamma(volume, float(golden.meta["gamma"])),
    }
    matched = _CROP.search(str(golden.meta.get("outputs", "")))
    if matched:
        seed, size, low, high = matched.groups()
        draw = random.Random(int(seed))
        found["crop"] = fusion.random_crop(volume, [int(n) for n in size.split(",")], (float(low), float(high)), draw)
    return found


_ABOVE = re.compile(r"statistics where > (-?\d+(?:\.\d+)?)")
_RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?) to -1\.\.1")


def _normalize(golden: Golden) -> Arrays:
    volume = golden.input(next(iter(golden.meta["inputs"])))
    told = str(golden.meta.get("outputs", ""))
    matched, above = _RANGE.search(told), _ABOVE.search(told)
    low, high = (float(n) for n in matched.groups()) if matched else (-800.0, 500.0)
    return {
        "mean_std": intensity.mean_std(volume, [0]),
        "mean_std_masked": intensity.mean_std(volume, above=float(above[1]) if above else 0.0),
        "min_max": intensity.min_max(volume, (low, high), [0]),
    }


def _loss(golden: Golden) -> Arrays:
    names = sorted(golden.meta["inputs"], key=lambda name: int(name.rpartition("_")[2]))
    predictions = [_tensor(golden.input(name)).requires_grad_() for name in names]
    first = predictions[0]
    target = losses.one_hot(torch.from_numpy(golden.input("label").astype(np.int64)), first.shape[1])
    combined = losses.CombinedLoss()(first, target)
    combined.backward()
    assert first.grad is not None
    found = {
        "dice": losses.DiceLoss()(first, target), "ce": losses.CrossEntropyLoss()(first, target), "combined": combined,
        "gradient": first.grad,
    }  # fmt: skip
    found |= {f"deep_{mode}": losses.DeepSupervision(mode=mode)(predictions, target) for mode in range(3)}
    return {name: value.detach().numpy() for name, value in found.items()}


_ANSWERS: Mapping[str, Callable[[Golden], Arrays]] = {
    "Inferer": _tiles,
    "VolumeFusion": _fusion,
    "adaptive_contrast_adjust": _intensity,
    "NormalizeWith": _normalize,
    "DeepSuperviseLoss": _loss,
    "PCTNet": _network,
    "FMUNet": _network,
}
