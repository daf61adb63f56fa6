"""How golden files of STU-Net and of the nnU-Net pipeline map onto the networks and steps of this package."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omlab.inference import preparing, resampling
from omlab.inference.cleaning import keep_largest
from omlab.inference.restoring import Late, label_map
from omlab.inference.sliding import Network, Plane, plan, stream
from omlab.inference.windows import gaussian, gaussian_lines, padding, window_starts
from omlab_sdk.golden import Golden, GoldenError, seed_module
from omlab_sdk.training.deep_supervision import DeepSupervision, DiceAndCrossEntropy, labels_at, output_weights
from omlab_stunet import datasets, objective
from omlab_stunet.network import STUNet
from omlab_stunet.pipeline import prepare
from omlab_stunet.plan import Plan

GOLDENS = ("stu-net", "stunet", "nnunet")
Arrays = dict[str, NDArray[Any]]
_NETWORK = {
    "input_channels", "num_classes", "depth", "dims", "pool_op_kernel_sizes", "conv_kernel_sizes",
    "enable_deep_supervision",
}  # fmt: skip
_ALL_AXES = (0, 1, 2)


def compute(golden: Golden) -> Mapping[str, NDArray[Any]]:
    """Every output that the file may ask for.

    Raises
    ------
    GoldenError
        The file is of a network or step that this package does not have.
    """
    meta = golden.meta
    answers: tuple[tuple[bool, Callable[[Golden], Arrays]], ...] = (
        ("file" in meta, _file),
        ("predict" in meta, _sliding),
        ("mirroring" in meta, _sliding_v2),
        ("dims" in golden.kwargs, _network),
        ("sizes" in meta, _gaussian),
        ("zeroed" in meta, _case),
        ("size_after_cropping" in meta, _export),
        ("names" in meta, _label_map),
        ("volume_per_voxel" in meta, _components),
        ("scales" in meta, _loss),
        ("epochs" in meta, _rates),
        ("resampled_aniso" in meta or "gaussian_half" in meta, _steps_v2),
        (isinstance(meta.get("cases"), dict), _resample),
        (isinstance(meta.get("cases"), list), _cases),
    )
    with torch.inference_mode(mode="scales" not in meta):
        for asked, answer in answers:
            if asked:
                return answer(golden)
    raise GoldenError(f"{golden.path}: is of '{meta.get('entry', '')}', which stunet does not have")


def network_of(golden: Golden) -> STUNet:
    """The network of the file's constructor arguments, name-seeded."""
    network = STUNet(**{key: value for key, value in golden.kwargs.items() if key in _NETWORK}).eval()
    seed_module(network, golden.kept)
    network.deep_supervision = False
    return network


def _network(golden: Golden) -> Arrays:
    network = network_of(golden)
    name = next(iter([*golden.meta.get("inputs", {}), *golden.literal]))
    image = torch.from_numpy(np.ascontiguousarray(golden.input(name), np.float32))
    encoded = network.encoded(image)
    decoded = network.decoded(encoded)
    found = {f"encoder_{i}": tensor for i, tensor in enumerate(encoded)}
    found |= {f"decoder_{i}": tensor for i, tensor in enumerate(decoded)}
    heads = [head(y) for head, y in zip(network.seg_outputs, decoded, strict=True)][::-1]
    found |= {f"logits_{i}": tensor for i, tensor in enumerate(heads)}
    found["logits"] = heads[0]
    for name in golden.outputs:
        if name.startswith("softmax_"):
            found[name] = torch.softmax(found[f"logits_{name.removeprefix('softmax_')}"], dim=1)
    return {name: tensor.numpy() for name, tensor in found.items()}


def _runner(network: torch.nn.Module) -> Network:
    return lambda windows: network(torch.from_numpy(np.ascontiguousarray(windows))).numpy()  # type: ignore[no-any-return]


def _scores(volume: NDArray[np.float32], patch: Sequence[int], network: Network, **how: Any) -> NDArray[np.float32]:
    """Averaged scores [classes, a, b, c] of the whole volume, which the pipeline itself never makes."""
    step, weighted = how.pop("step", 0.5), how.pop("weighted", True)
    laid = plan(volume.shape[1:], patch, step=step, weighted=weighted, axis=0)
    return np.stack([plane.scores for plane in stream(volume, laid, network, **how)]).transpose(2, 0, 1, 3)


def _sliding(golden: Golden) -> Arrays:
    given = golden.meta["predict"]
    volume = golden.input(next(iter(golden.meta["inputs"])))
    network = network_of(golden)
    mirror = given.get("mirror_axes", _ALL_AXES) if given.get("do_mirroring", True) else ()
    patch = given.get("patch_size")
    if not given.get("use_sliding_window", True):
        # The whole volume at once, padded to what the strides divide.
        divisors = np.prod(np.asarray(golden.kwargs["pool_op_kernel_sizes"]), axis=0).tolist()
        least = patch or volume.shape[1:]
        cut = padding(volume.shape[1:], least, divisors)
        patch = [n + before + after for n, (before, after) in zip(volume.shape[1:], cut, strict=True)]
    found = _scores(
        volume, patch, _runner(network), step=given.get("step_size", 0.5), mirror=mirror,
        weighted=given.get("use_gaussian", True),
    )  # fmt: skip
    return {"probabilities": found, "segmentation": found.argmax(axis=0)}


def _half_gaussian(patch: Sequence[int], factor: float = 1000.0) -> NDArray[np.float16]:
    """nnU-Net 2.2's importance map, in half precision from the start."""
    lines = gaussian_lines(patch)
    found = (lines[0][:, None, None] * lines[1][:, None] * lines[2]).astype(np.float16)
    found = (found / found.max() * np.float16(factor)).astype(np.float16)
    found[found == 0] = found[found > 0].min()
    return found


def _sliding_v2(golden: Golden) -> Arrays:
    """nnU-Net 2.2: logits, the half-precision map, sums in half precision as upstream keeps them."""
    meta = golden.meta
    volume = golden.input(next(iter(meta["inputs"])))
    patch = meta["patch_size"]
    network = _runner(network_of(golden))
    cut = padding(volume.shape[1:], patch)
    padded = np.pad(volume, ((0, 0), *cut))
    weight = _half_gaussian(patch)
    sums: Any = None
    weights = np.zeros(padded.shape[1:], np.float16)
    views = [(), *((a,) for a in meta["mirroring"])]
    axes = sorted(meta["mirroring"])
    views += [(a, b) for i, a in enumerate(axes) for b in axes[i + 1 :]] + ([tuple(axes)] if len(axes) == 3 else [])
    starts = window_starts(padded.shape[1:], patch, meta.get("step", 0.5))
    for i in starts[0]:
        for j in starts[1]:
            for k in starts[2]:
                place = tuple(slice(s, s + p) for s, p in zip((i, j, k), patch, strict=True))
                window = padded[(slice(None), *place)]
                logits = 0
                for flips in views:
                    turned = tuple(axis + 1 for axis in flips)
                    logits = logits + np.flip(network(np.flip(window, turned)[None])[0], turned)
                logits = logits / np.float32(len(views))
                if sums is None:
                    sums = np.zeros((len(logits), *padded.shape[1:]), np.float16)
                # As upstream adds in place into halves: product and sum in single precision, rounded once.
                here = sums[(slice(None), *place)]
                here[...] = here.astype(np.float32) + logits * weight.astype(np.float32)
                weights[place] += weight
    sums = sums / weights
    inside = tuple(slice(before, n - after) for n, (before, after) in zip(sums.shape[1:], cut, strict=True))
    return {"logits": sums[(slice(None), *inside)].astype(np.float32)}


def _gaussian(golden: Golden) -> Arrays:
    sigma = golden.meta.get("sigma_scale", 1 / 8)
    return {"x".join(map(str, size)): gaussian(size, sigma) for size in golden.meta["sizes"]}


def _cases(golden: Golden) -> Arrays:
    found: Arrays = {}
    for number, case in enumerate(golden.meta["cases"]):
        if "patch" in case:
            for axis, starts in enumerate(window_starts(case["image"], case["patch"], case["step"])):
                found[f"case{number}_axis{axis}"] = np.array(starts)
            continue
        volume = (
            golden.input(case["input"])
            if case["input"] in golden.literal or case["input"] in golden.meta.get("inputs", {})
            else _drawn(case["input"], case["shape"])
        )
        cut = padding(volume.shape[1:], case["new_shape"], case.get("divisible_by"))
        found[f"case{number}"] = np.pad(volume, ((0, 0), *cut))
        whole = [(0, volume.shape[0])]
        found[f"slice{number}"] = np.array(
            whole + [(before, before + n) for n, (before, _) in zip(volume.shape[1:], cut, strict=True)]
        )
    return found


def _drawn(name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    from omlab_sdk.golden import u

    return u(f"input:{name}", tuple(shape))


def _resample(golden: Golden) -> Arrays:
    found: Arrays = {}
    for name, case in golden.meta["cases"].items():
        old, new = case["original_spacing"], case["target_spacing"]
        volume = golden.input(f"rs_{name}")
        shape = resampling.target_shape(volume.shape[1:], old, new)
        apart = resampling.separate_axis(old, new)
        for key, order in (("data", 3), ("data_order1", 1)):
            found[f"{name}__{key}"] = np.stack(
                [resampling.resample_image(channel, shape, order=order, apart=apart) for channel in volume]
            )
        if f"label_{name}" in golden.literal:
            labels = golden.input(f"label_{name}").astype(np.float32)
            for order in (1, 0):
                found[f"{name}__seg_order{order}"] = np.stack(
                    [
                        resampling.resample_labels(channel, shape, order=order, apart=apart)
                        for channel in labels.reshape(-1, *labels.shape[-3:])
                    ]
                )
    return found


def _case(golden: Golden) -> Arrays:
    meta = golden.meta
    volume = golden.input(next(iter(meta["inputs"]))).copy()
    box = tuple(slice(low, high) for low, high in meta["box"])
    outside = np.ones(volume.shape[1:], bool)
    outside[box] = False
    volume[:, outside] = 0
    centre = [(low + high) // 2 for low, high in meta["box"]]
    volume[(slice(None), *(slice(c - 2, c + 2) for c in centre))] = 0
    volume[(slice(None), *(slice(low, low + 4) for low, _ in meta["box"]))] = 0
    cut = preparing.nonzero_box(volume)
    assert cut is not None
    cropped = volume[(slice(None), *cut)]
    mask = np.where(preparing.foreground(volume)[cut], 0, -1)[None]
    old, new = meta["spacing"], meta["target_spacing"]
    shape, apart = resampling.target_shape(cropped.shape[1:], old, new), resampling.separate_axis(old, new)
    image = np.stack([resampling.resample_image(channel, shape, order=3, apart=apart) for channel in cropped])
    marked = resampling.resample_labels(mask[0].astype(np.float32), shape, order=1, apart=apart)[None]
    found: Arrays = {"cropped": cropped, "mask": mask, "mask_resampled": marked}
    schemes = {"nonct": "nonCT", "ct": "CT", "ct2": "CT2", "none": "noNorm"}
    for key, scheme in schemes.items():
        for suffix, inside in (("", None), ("_masked", marked[0] >= 0)):
            found[key + suffix] = np.stack(
                [
                    preparing.normalise(
                        channel.copy(), preparing.Scheme.of(scheme), meta.get("intensityproperties"), mask=inside
                    )
                    for channel in image
                ]
            )
    return found


def _softmax(scores: NDArray[Any]) -> NDArray[np.float32]:
    exponents = np.exp(scores - scores.max(axis=0))
    return (exponents / exponents.sum(axis=0)).astype(np.float32)


def _restored(
    probabilities: NDArray[np.float32], shape: Sequence[int], apart: int | None, mode: str = "normal"
) -> NDArray[np.uint8]:
    """Labels on the grid of ``shape``, by the very steps of the pipeline."""
    if mode != "normal":
        labels = probabilities.argmax(axis=0).astype(np.uint8)
        fast = mode == "fast"
        return resampling.resample_labels(labels, shape, order=1 if fast else 0, apart=apart if fast else None)
    out = np.zeros(shape, np.uint8)
    matrices = [
        None if n == m else resampling.matrix(n, m, 0 if axis == apart else 1)
        for axis, (n, m) in enumerate(zip(probabilities.shape[1:], shape, strict=True))
    ]
    planes = (
        Plane(number, np.ascontiguousarray(scores)) for number, scores in enumerate(probabilities.transpose(1, 2, 0, 3))
    )
    label_map(planes, out, Late.of(matrices[0], matrices[1], matrices[2], shape[0]))
    return out


def _export(golden: Golden) -> Arrays:
    meta = golden.meta
    probabilities = _softmax(golden.input(next(iter(meta["inputs"]))))
    inner = meta["size_after_cropping"]
    apart = resampling.separate_axis(meta["original_spacing"], meta["spacing_after_resampling"])
    found: Arrays = {
        "probabilities_float16": np.stack(
            [resampling.resample_image(channel, inner, order=1, apart=apart) for channel in probabilities]
        ).astype(np.float16)
    }
    box = tuple(slice(low, high) for low, high in meta["crop_bbox"])
    for mode in ("normal", "fast", "fastest"):
        whole = np.zeros(meta["original_size"], np.uint8)
        whole[box] = _restored(probabilities, inner, apart, mode)
        found[mode] = whole
    return found


def _label_map(golden: Golden) -> Arrays:
    found: Arrays = {}
    values = {name: value for value, name in enumerate(["background", *_structures()])}
    for task in golden.meta["names"]:
        rows = datasets.table(task)
        groups = {"pred": [[values[name] for name in row.classes] for row in rows]}
        groups["ref"] = [list(row.reference) for row in rows]
        for key, array in (("pred", "prediction"), ("ref", "reference")):
            found[f"{task}__{key}"] = datasets.renumber(golden.input(array), groups[key])
    return found


def _structures() -> list[str]:
    import tomllib
    from importlib.resources import files

    manifest = tomllib.loads((files("omlab_stunet") / "omlab.toml").read_text("utf-8"))
    return [label["name"] for label in manifest["model"][0]["labels"]]


def _components(golden: Golden) -> Arrays:
    """Groups and least volumes stand in words: ``a: for_which_classes [1, 2]; b: [(1, 2) jointly, then 3] with minimum
    sizes 400 and 200 mm3``."""
    found: Arrays = {}
    for text in str(golden.meta["outputs"]).split(";"):
        name, _, rule = text.partition(":")
        listed = re.search(r"\[(.*)\]", rule)
        if listed is None:
            raise GoldenError(f"{golden.path}: says nothing of the groups of '{name.strip()}'")
        groups: list[Any] = []
        for joint, single in re.findall(r"\(([\d, ]+)\)|(\d+)", listed.group(1)):
            groups.append(tuple(int(n) for n in joint.split(",") if n.strip()) if joint else int(single))
        least = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", rule.partition("minimum sizes")[2].partition("mm")[0])]
        found[name.strip()] = keep_largest(
            golden.input("labels").copy(), groups, voxel_mm3=golden.meta["volume_per_voxel"],
            least_mm3=dict(zip(groups, least, strict=False)),
        )  # fmt: skip
    return found


def _loss(golden: Golden) -> Arrays:
    meta = golden.meta
    names = [name for name in meta["inputs"] if re.search(r"logits_\d+$", name)]
    outputs = [torch.from_numpy(golden.input(name)) for name in sorted(names, key=lambda n: int(n.rpartition("_")[2]))]
    outputs[0].requires_grad_()
    target = torch.from_numpy(golden.input("target").astype(np.int64))
    targets = [labels_at(target, output.shape[2:]) for output in outputs]
    loss = DiceAndCrossEntropy(batch=meta.get("batch_dice", True))
    weights = output_weights(len(outputs))
    total = DeepSupervision(loss, weights)(outputs, target)
    total.backward()
    found: Arrays = {"total": total.detach().numpy(), "weights": np.array(weights)}
    assert outputs[0].grad is not None
    found["gradient_0"] = outputs[0].grad.numpy()
    with torch.no_grad():
        for i, (output, target) in enumerate(zip(outputs, targets, strict=True)):
            found |= {
                f"loss_{i}": loss(output, target).numpy(), f"target_{i}": target.numpy(),
                f"dice_{i}": loss.dice(output, target).numpy(), f"ce_{i}": loss.cross_entropy(output, target).numpy(),
            }  # fmt: skip
    return found


def _rates(golden: Golden) -> Arrays:
    found: Arrays = {}
    for name in golden.outputs:
        initial = float(name.rpartition("_")[2])
        found[name] = np.array([objective.learning_rate(epoch, initial=initial) for epoch in golden.meta["epochs"]])
    return found


def _steps_v2(golden: Golden) -> Arrays:
    meta = golden.meta
    volume = golden.input("v2vol")
    found: Arrays = {}
    zscore, ct = preparing.Scheme.ZSCORE, preparing.Scheme.CT
    found["zscore"] = preparing.normalise(volume[0].copy(), zscore, version=2)
    first = re.search(r"first (\d+) slices", str(meta.get("masked", "")))
    inside = np.ones(volume.shape[1:], bool)
    inside[: int(first.group(1)) if first else 0] = False
    found["zscore_masked"] = preparing.normalise(volume[0].copy(), zscore, mask=inside, version=2)
    found["ct"] = preparing.normalise(volume[0].copy(), ct, meta["ct"], version=2)
    old, new = meta["spacing"], meta["target"]
    shape = [round(a / b * n) for a, b, n in zip(old, new, volume.shape[1:], strict=True)]
    found["new_shape"] = np.array(shape)
    for key, size, given, target in (
        ("resampled", shape, old, new),
        ("resampled_aniso", *(meta["resampled_aniso"][name] for name in ("new_shape", "spacing", "target"))),
    ):
        apart = resampling.separate_axis(given, target)
        found[key] = np.stack([resampling.resample_image(one, size, order=3, apart=apart) for one in volume])
    words = re.findall(r"\d+", str(meta.get("gaussian_half", "")))
    if len(words) >= 4:
        found["gaussian_half"] = _half_gaussian([int(n) for n in words[:3]], float(words[3])).astype(np.float32)
    return found


def _data(name: str, golden: Path | None) -> Path:
    """A scan that a golden file names: in the folder of ``OMLAB_SHARED_DATA``, or in ``data`` beside the golden files,
    or in the ``shared/data`` that lies beside the repository."""
    places = [Path(os.environ["OMLAB_SHARED_DATA"])] if "OMLAB_SHARED_DATA" in os.environ else []
    if golden is not None:
        places.append(golden.resolve().parents[1] / "data")
    places += [parent / "shared" / "data" for parent in Path(__file__).resolve().parents]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise GoldenError(f"the scan {name} is not here", remedy="Name the folder that holds it in OMLAB_SHARED_DATA")


def _file(golden: Golden) -> Arrays:
    """A whole run, from file to label map."""
    from omlab.cases import Volume, read

    meta = golden.meta
    case = read(_data(meta["file"], golden.path))
    assert isinstance(case, Volume)
    sizes = golden.kwargs
    chosen = Plan(
        dims=sizes["dims"], depth=sizes["depth"], strides=sizes["pool_op_kernel_sizes"],
        spacing_mm=meta["target_spacing"], patch=meta["patch_size"], scheme=meta["normalisation"],
        use_mask=meta.get("use_mask", False), intensities=meta.get("intensityproperties", {}),
    )  # fmt: skip
    voxels, spacing_mm = case.voxels.T, case.geometry.spacing_mm[::-1]
    prepared = prepare(voxels, spacing_mm, chosen, case.name)
    mirror = meta.get("mirror_axes", _ALL_AXES) if meta.get("mirroring") else ()
    scores = _scores(
        prepared.image, chosen.patch, _runner(network_of(golden)), step=meta.get("step_size", 0.5),
        weighted=meta.get("gaussian", True), mirror=mirror,
    )  # fmt: skip
    whole = np.zeros(voxels.shape, np.uint8)
    whole[prepared.box] = _restored(scores, whole[prepared.box].shape, prepared.apart, meta.get("mode", "normal"))
    return {
        "preprocessed": prepared.image, "probabilities": scores, "labels_target": scores.argmax(axis=0),
        "label_map": whole,
    }  # fmt: skip
