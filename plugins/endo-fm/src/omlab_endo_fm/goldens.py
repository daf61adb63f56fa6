"""How golden files of Endo-FM map onto the networks and steps of this package."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from omlab_endo_fm import boxes, clips
from omlab_endo_fm.detection import Detector
from omlab_endo_fm.network import VideoTransformer, sequence
from omlab_endo_fm.pretraining import DinoHead, DinoLoss
from omlab_endo_fm.segmentation import TransUNet
from omlab_sdk.golden import Golden, GoldenError, seed_module, weight

GOLDENS = ("endo-fm",)
_ENCODER = {
    "img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "num_frames",
    "drop_path_rate",
}  # fmt: skip
_SEGMENTER = {
    "n_classes", "hidden_size", "depth", "heads", "grid", "resnet_units", "width_factor", "decoder_channels",
    "skip_channels", "n_skip",
}  # fmt: skip


def compute(golden: Golden) -> Mapping[str, np.ndarray]:
    """Every output that the file may ask for.

    Raises
    ------
    GoldenError
        The file is of a network or step that this package does not have.
    """
    kwargs, entry = golden.kwargs, str(golden.meta.get("entry", ""))
    with torch.no_grad():
        if "nms_thresh" in kwargs or "PostProcessor" in entry:
            return _post(golden)
        if "DINOLoss" in entry or "DINOHead" in entry:
            return _dino(golden)
        if "cases" in kwargs or "crop_size" in kwargs:
            return _preprocess(golden)
        if "hidden_size" in kwargs or "vit_seg_modeling" in entry:
            return _segmenter(golden)
        if "out_channels" in kwargs or "STFT" in entry:
            return _detector(golden)
        if "VisionTransformer" in entry or "timesformer" in entry:
            return _encoder(golden)
    raise GoldenError(f"{golden.path}: is of '{entry}', which endo-fm does not have")


def _given(golden: Golden, name: str) -> Tensor:
    """The input ``name``, or the only one there is."""
    names = [*golden.literal, *golden.meta.get("inputs", {})]
    chosen = name if name in names else names[0]
    return torch.from_numpy(np.ascontiguousarray(golden.input(chosen), dtype=np.float32))


def _numpy(found: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in found.items()}


def _settings(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's arguments by our names; upstream's norm layer is a number or a text with its epsilon."""
    kind = kwargs.get("attention_type", "divided_space_time")
    if kind != "divided_space_time":
        raise GoldenError(f"endo-fm has divided space-time attention, the file asks for '{kind}'")
    settings = {key: value for key, value in kwargs.items() if key in _ENCODER}
    epsilon = re.search(r"[\d.]+(?:e-?\d+)?$", str(kwargs.get("norm_eps", kwargs.get("norm_layer", ""))).rstrip(")"))
    if epsilon:
        settings["eps"] = float(epsilon.group())
    return settings


def _encoder(golden: Golden) -> dict[str, np.ndarray]:
    network = VideoTransformer(**_settings(golden.kwargs)).eval()
    seed_module(network, golden.kept)
    video = _given(golden, "video")
    cls, patches = network.embed(video)
    found = {"embedded": sequence(cls, patches)}
    for number, block in enumerate(network.blocks):
        cls, patches = block(cls, patches)
        found[f"block{number}"] = sequence(cls, patches)
    found["tokens"] = network.norm(sequence(cls, patches))
    found["cls"] = network(video)
    if "attention" in golden.outputs:
        found["attention"] = network.attention(video)
    if "logits" in golden.outputs:
        classes = golden.outputs["logits"].shape[-1]
        matrix = torch.from_numpy(weight("linear.weight", (classes, found["cls"].shape[1])))
        found["logits"] = F.linear(found["cls"], matrix, torch.from_numpy(weight("linear.bias", (classes,))))
    return _numpy(found)


def _segmenter(golden: Golden) -> dict[str, np.ndarray]:
    kwargs = golden.kwargs
    settings = {key: value for key, value in kwargs.items() if key in _SEGMENTER}
    if "grid" not in kwargs and "img_size" in kwargs:
        settings["grid"] = int(kwargs["img_size"]) // 16
    network = TransUNet(**settings).eval()
    seed_module(network, golden.kept)
    steps = network.steps(_given(golden, "frames"))
    skips = {f"skip{number}": skip for number, skip in enumerate(steps.pop("skips"))}
    return _numpy(steps | skips)


def _detector(golden: Golden) -> dict[str, np.ndarray]:
    kwargs = golden.kwargs
    chosen = {key: kwargs[key] for key in ("out_channels", "classes") if key in kwargs}
    network = Detector(**chosen, **_settings(kwargs)).eval()
    seed_module(network, [*golden.kept, *(f"rpn.head.scales.{level}.scale" for level in range(5))])
    # Where a level has a single cell, group norm over two numbers magnifies rounding by some hundred: in float64 the
    # boxes of such a level are 3e-4 away from upstream's. What is compared there is the order of sums. Upstream's is
    # that of oneDNN with AVX-512; without it torch's own kernels come closest.
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # switching tells of GPUs that are not there
        with torch.backends.mkldnn.flags(enabled=wide):
            found = network(_given(golden, "frames"))
    return _numpy({f"{name}{level + 3}": t for name, levels in found.items() for level, t in enumerate(levels)})


def _post(golden: Golden) -> dict[str, np.ndarray]:
    kwargs = golden.kwargs
    size = (int(kwargs["image_size"][0]), int(kwargs["image_size"][1]))  # width, height
    levels = []
    for number in range(len(kwargs["sizes"])):
        if f"pre_box{number}" in golden.literal:
            before = golden.input(f"pre_box{number}")[0]
        else:
            centre = golden.input(f"pre_center{number}")[0] * np.array(size, np.float32)
            half = golden.input(f"pre_half{number}")[0]
            before = np.concatenate([centre - half, centre + half], axis=-1)
        raw = {name: golden.input(f"{name}{number}")[0] for name in ("cls", "centerness", "stft_cls", "stft_box")}
        levels.append(raw | {"pre_box": before.astype(np.float32)})
    found, scores, kinds = boxes.decode(
        levels, size, threshold=kwargs.get("pre_nms_thresh", 0.05), top=kwargs.get("pre_nms_top_n", 1000),
        overlap=kwargs.get("nms_thresh", 0.6), most=kwargs.get("detections", 300),
    )  # fmt: skip
    return {"boxes": found, "scores": scores, "labels": kinds + 1}


def _dino(golden: Golden) -> dict[str, np.ndarray]:
    kwargs = golden.kwargs
    shape = {key: kwargs[key] for key in ("nlayers", "hidden_dim", "bottleneck_dim") if key in kwargs}
    head = DinoHead(kwargs["in_dim"], kwargs["out_dim"], **shape).eval()
    seed_module(head, golden.kept)
    names = (
        "ncrops", "warmup_teacher_temp", "teacher_temp", "warmup_teacher_temp_epochs", "nepochs", "student_temp",
        "center_momentum",
    )  # fmt: skip
    objective = DinoLoss(kwargs["out_dim"], **{key: kwargs[key] for key in names if key in kwargs})
    seed_module(objective)
    student, teacher = head(_given(golden, "student")), head(_given(golden, "teacher"))
    loss = objective(student, teacher, int(kwargs.get("epoch", 0)))
    return _numpy({"student_logits": student, "teacher_logits": teacher, "loss": loss, "center": objective.center})


def _preprocess(golden: Golden) -> dict[str, np.ndarray]:
    kwargs = golden.kwargs
    found: dict[str, np.ndarray] = {}
    if "crop_size" in kwargs:
        frames = np.clip(np.floor(golden.input("frames")), 0, 255).astype(np.uint8)
        for index in range(3):
            found[f"crop{index}"] = clips.prepare(
                frames, size=int(kwargs.get("min_scale", kwargs["crop_size"])), crop=int(kwargs["crop_size"]),
                index=index, mean=kwargs.get("mean", clips.MEAN), std=kwargs.get("std", clips.STD),
            )  # fmt: skip
    if "cases" in kwargs:
        sampling = clips.Sampling(
            frames=kwargs["num_frames"], rate=kwargs["sampling_rate"], target_fps=kwargs["target_fps"]
        )
        found["indices"] = np.stack(
            [clips.spread(0.0, sampling.length(fps) - 1, sampling.frames, int(m)) for m, fps in kwargs["cases"]]
        )
    return found
