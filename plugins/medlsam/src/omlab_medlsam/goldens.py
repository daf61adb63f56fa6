"""How golden files of MedLSAM map onto the networks and steps of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omlab.cases import Volume
from omlab.geometry import Geometry
from omlab_medlsam import metrics, pretraining, slices
from omlab_medlsam.localising import boxes, in_source, locate, look
from omlab_medlsam.network import CENTRE, SCALES, Describe, Match, MedLam, Position
from omlab_medlsam.points import corners, extreme_points, part_bounds, part_points, parts_of, support_points
from omlab_medlsam.scans import mapped, padded, prepare, resampled_labels
from omlab_medlsam.templates import KERNELS, template_of
from omlab_sdk.golden import Golden, GoldenError, answered, seed_module
from omlab_sdk.networks.sam.network import SIZES, Sam
from omlab_sdk.segment_anything.frame import encoder_input, frame_of

GOLDENS = ("medlsam",)
_MEDLAM = {"inc", "patch_size", "n_classes", "base_chns", "droprate", "norm", "depth", "dilation"}
_MEDLAM_ALIASES = {
    "in_channels": "inc", "input_channels": "inc", "base_channels": "base_chns", "drop_rate": "droprate",
    "dropout": "droprate",
}  # fmt: skip
_SAM = {
    "img_size", "patch_size", "prompt_dim", "mask_in_chans", "dec_heads", "dec_mlp", "dec_depth", "dec_shrink",
    "iou_hidden", "iou_depth", "num_multimask_outputs", "embed_dim", "depth", "num_heads", "mlp_ratio", "window_size",
    "global_attn_indexes", "in_chans", "qkv_bias", "use_abs_pos", "use_rel_pos",
}  # fmt: skip
_SAM_ALIASES = {
    "image_size": "img_size", "prompt_embed_dim": "prompt_dim", "out_chans": "prompt_dim",
    "transformer_dim": "prompt_dim", "iou_head_depth": "iou_depth", "iou_head_hidden_dim": "iou_hidden",
    "multimask_outputs": "num_multimask_outputs", "vit_patch_size": "patch_size",
    "attention_downsample_rate": "dec_shrink",
}  # fmt: skip
Arrays = dict[str, NDArray[Any]]


def compute(golden: Golden) -> Mapping[str, NDArray[Any]]:
    """Every output that the file may ask for.

    Raises
    ------
    GoldenError
        The file is of a network or step that this package does not have.
    """
    return answered(golden, _ANSWERS, "medlsam")


def _arguments(golden: Golden, known: set[str], aliases: Mapping[str, str]) -> dict[str, Any]:
    found = {aliases.get(key, key): value for key, value in golden.kwargs.items()}
    unknown = set(found) - known
    if unknown:
        raise GoldenError(f"{golden.path}: has the unknown arguments {', '.join(sorted(unknown))}")
    return found


def medlam_of(golden: Golden) -> MedLam:
    """The seeded network that the file's constructor arguments describe."""
    medlam = MedLam(**_arguments(golden, _MEDLAM, _MEDLAM_ALIASES)).eval()
    seed_module(medlam, golden.kept)
    return medlam


def sam_of(golden: Golden) -> Sam:
    """Likewise, of MedSAM."""
    arguments = {_SAM_ALIASES.get(key, key): value for key, value in golden.kwargs.items()}
    size = arguments.pop("model_type", None)
    arguments.pop("checkpoint", None)
    if size is not None and size not in SIZES:
        raise GoldenError(f"{golden.path}: asks for the size '{size}', medsam has {', '.join(SIZES)}")
    unknown = set(arguments) - _SAM
    if unknown:
        raise GoldenError(f"{golden.path}: has the unknown arguments {', '.join(sorted(unknown))}")
    sam = Sam(**{**(SIZES[size] if size else {}), **arguments}).eval()
    seed_module(sam, golden.kept)
    return sam


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _has(golden: Golden, name: str) -> bool:
    return name in golden.literal or name in golden.meta.get("inputs", {})


def _network(golden: Golden) -> Arrays:
    medlam = medlam_of(golden)
    image = _tensor(golden.input("image"))
    s0, s1, s2, s3, z = medlam.encode(image)
    up5, *features = medlam.decode(s0, s1, s2, s3, z)
    found: dict[str, Any] = {
        **{f"conv{level}": value for level, value in enumerate((s0, s1, s2, s3, z))}, "up5": up5,
        "fc_position": medlam.position(z), "prob": medlam.classification(features[-1]).sigmoid(),
    }  # fmt: skip
    for name, feature in zip(SCALES, features, strict=True):
        found |= {name: feature, f"{name}_norm": torch.nn.functional.normalize(feature, dim=1)}
    for kind in ("small", "faint"):
        if _has(golden, kind):
            found[f"{kind}_conv0"] = medlam.conv0_1(_tensor(golden.input(kind)))
    return {name: value.numpy() for name, value in found.items()}


def engines(medlam: MedLam) -> dict[str, Callable[[Mapping[str, Any]], Arrays]]:
    """The exported graphs with the torch network behind them."""
    position, describe, match = Position(medlam), Describe(medlam), Match(medlam)

    def answer_position(given: Mapping[str, Any]) -> Arrays:
        return {"fc_position": position(_tensor(given["patches"])).numpy()}

    def answer_describe(given: Mapping[str, Any]) -> Arrays:
        found = describe(_tensor(given["patch"]))
        return {name: value.numpy() for name, value in zip(("fc_position", *KERNELS), found, strict=True)}

    def answer_match(given: Mapping[str, Any]) -> Arrays:
        return {"similarity": match(*(_tensor(given[name]) for name in ("patch", *KERNELS))).numpy()}

    return {"position": answer_position, "describe": answer_describe, "match": answer_match}


def _volumes(golden: Golden) -> tuple[list[Volume], list[NDArray[Any]]]:
    scans, labels = [], []
    number = 0
    while _has(golden, f"image{number}"):
        voxels = golden.input(f"image{number}")
        geometry = Geometry(voxels.shape, golden.input(f"affine{number}"))
        scans.append(Volume(name=f"image{number}", voxels=voxels, geometry=geometry))
        if _has(golden, f"label{number}"):
            labels.append(golden.input(f"label{number}"))
        number += 1
    return scans, labels


def _locate(golden: Golden) -> Arrays:
    """The production pipeline, with the torch network as its engines."""
    meta = golden.meta
    run = engines(medlam_of(golden))
    patch = int(golden.kwargs["patch_size"][0])
    if tuple(meta.get("center_patch_size", [CENTRE] * 3)) != (CENTRE,) * 3:
        raise GoldenError(f"{golden.path}: kernels of another size than {CENTRE}")
    scans, labels = _volumes(golden)
    query = scans[int(meta.get("query", len(scans) - 1))]
    supports = []
    for scan, label in zip(scans, labels, strict=False):
        prepared = prepare(scan)
        turned = prepared.turn.apply(label).transpose(2, 1, 0)
        supports.append((prepared, resampled_labels(turned, prepared.zoom)))
    looked = prepare(query)
    found: Arrays = {
        "query_3mm": looked.image, "zoom_factor": np.array(looked.zoom), "support_label_3mm": supports[0][1],
    }  # fmt: skip
    crops = look(
        run["position"], looked.image, patch, crops=int(meta.get("iter_patch_num", 10)), seed=int(meta["seed"])
    )
    found |= {"start_positions": crops.starts, "query_position": crops.position}
    chosen = meta.get("feature_scale_ls", list(SCALES)) or []
    interval = int(meta.get("slice_interval") or 0) if meta.get("bbox_mode") == "SPL" else 0
    for value in meta["fg_class"]:
        masks = [padded(label, patch) == value for _, label in supports]
        parts = parts_of(masks, interval) if interval else 0
        points = [support_points(mask, parts) for mask in masks]
        template = template_of(
            run["describe"], [(p.image, at) for (p, _), at in zip(supports, points, strict=True)], patch
        )
        located = locate(
            run["match"], crops, template, patch, scales=[SCALES.index(s) for s in chosen],
            ratio=meta.get("distance_ratio", (1500, 600, 600)), keep_maps=True,
        )  # fmt: skip
        found |= {
            f"support_points_{value}": extreme_points(masks[0]), f"support_position_{value}": template.positions,
            f"relative_position_{value}": located.relative,
            f"extreme_{value}": in_source(located.points, looked), f"corner_{value}": boxes(located.points, looked),
        }  # fmt: skip
        for name, kernel in zip(SCALES, template.kernels, strict=True):
            found[f"support_kernel_{value}_{name}"] = kernel
        if located.maps is not None:
            found |= {
                f"similarity_{value}": located.maps, f"relative_voxel_{value}": located.offsets,
                f"max_similarity_{value}": located.similarity,
            }  # fmt: skip
    return found


def _arithmetic(golden: Golden) -> Arrays:
    found: Arrays = {}
    if _has(golden, "hu0"):
        found["window"] = mapped(golden.input("hu0"))
    mask = golden.input("mask") > 0
    found |= {
        "extreme": extreme_points(mask), "split3": part_points(mask, 3), "split_bounds": part_bounds(mask, 3),
        "corner": corners(extreme_points(mask)),
    }  # fmt: skip
    # The pair and the spacings are the file's own; they are told in its words only.
    pair = np.roll(mask, (1, 2), (1, 2)) | np.roll(mask, -3, 0)
    found["hd95"] = np.array([metrics.hd95(mask, pair, (3, 1.2, 1))])
    found["volume_dice"] = np.array([metrics.dice(mask, pair)])
    pairs = golden.meta.get("boxes", [])
    found["iou"] = np.array([[metrics.box_iou(a, b)] for a, b in pairs])
    found["wall"] = np.array([metrics.wall_distance(a, b, (3, 1.5, 1)) for a, b in pairs])
    image, label = (golden.input(name).transpose(2, 1, 0) for name in ("image", "label"))
    found["label_resized"] = resampled_labels(label, (1.3, 0.7, 0.9))
    kwargs = golden.kwargs
    size = int(kwargs["image_size"])
    kept = slices.kept_slices(label, int(kwargs["z_min"]), int(kwargs["z_max"]), int(kwargs["gt_slice_threshold"]))
    shown = slices.grey(image, slices.grey_levels(image))
    found["slice_ids"] = np.array(kept)
    found["slices"] = np.stack([np.repeat(slices.framed(shown[z], size)[:, :, None], 3, axis=2) for z in kept])
    found["slice_labels"] = np.stack([slices.framed_labels(label[z], size) for z in kept])
    return found


def _loss(golden: Golden) -> Arrays:
    draws = iter(golden.input("draws").tolist())
    kwargs = golden.kwargs
    loss = pretraining.PretrainingLoss(
        kwargs.get("dis_ratio", (1500, 600, 600)), int(kwargs.get("point_num", 20)), float(kwargs.get("dis_thresh", 3)),
        draw=lambda low, high: int(next(draws)),
    )  # fmt: skip

    def outputs(word: str, crop: int) -> dict[str, torch.Tensor]:
        named = {name: _tensor(golden.input(f"{word}{name}_{crop}")) for name in SCALES}
        return named | {"fc_position": _tensor(golden.input(f"{word}fc{crop}"))}

    images = [_tensor(golden.input(f"image{crop}")) for crop in (0, 1)]
    size = images[0].shape[2:]
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")).float()
    ori_places = [(3 * grid + shift).expand(images[0].shape[0], -1, -1, -1, -1) for shift in (30, 36)]
    places = [ori + _tensor(golden.input(f"wobble{crop}")) for crop, ori in enumerate(ori_places)]
    found = loss(
        [outputs("ori_", crop) for crop in (0, 1)], [outputs("", crop) for crop in (0, 1)], images, ori_places, places,
        torch.tensor(golden.meta["label"]),
    )  # fmt: skip
    return {name: value.numpy() for name, value in found.items()}


def _medsam(golden: Golden) -> Arrays:
    sam = sam_of(golden)
    size = sam.image_encoder.img_size
    if _has(golden, "image"):
        picture = golden.input("image")
    else:
        unit = golden.input("slice")
        picture = np.floor((unit + 1) * np.float32(127.999)).astype(np.uint8)
    shape: Sequence[int] = picture.shape[:2]
    frame = frame_of((shape[0], shape[1]), size, "longest")
    image = encoder_input(picture, frame, "longest")
    box = frame.into(golden.input("box").reshape(2, 2)).reshape(1, 1, 4)
    encoder = sam.image_encoder
    first = x = encoder.blocks[0](encoder.tokens(_tensor(image)))
    for block in encoder.blocks[1:]:
        x = block(x)
    embedding = encoder.neck(x.movedim(-1, 1))
    sparse, dense = sam.prompt_encoder(None, _tensor(box))
    masks, qualities = sam.mask_decoder(embedding, sam.prompt_encoder.dense_positions(), sparse, dense)
    low = masks[:, :1].numpy()
    prob = slices.probabilities(low[0, 0], shape)
    return {
        "encoder_input": image, "box_model_frame": box, "block0": first.numpy(), "image_embedding": embedding.numpy(),
        "sparse": sparse.numpy(), "dense": dense.numpy(), "low_res_logits": low, "iou": qualities[:, :1].numpy(),
        "prob": prob, "mask_voxels": np.array([np.count_nonzero(prob > 0.5)]),
    }  # fmt: skip


_ANSWERS: Mapping[str, Callable[[Golden], Arrays]] = {
    "process_support": _locate,
    "predic_corner_cor": _locate,
    "auto_pre_CT": _arithmetic,
    "data_process_func": _arithmetic,
    "EmbFCLoss": _loss,
    "finetune_model_predict": _medsam,
    "segment_anything": _medsam,
    "MedLAM": _network,
}
