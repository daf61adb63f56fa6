"""How golden files of SAM-Med3D map onto the network and steps of this package."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omlab.geometry import Geometry
from omlab_sam_med3d import protocol
from omlab_sam_med3d.grid import Begin, Grid, around, centred, normalised
from omlab_sam_med3d.network import SIZES, Decoder, Encoder, Sam3d
from omlab_sam_med3d.predictor import Predictor, upsampled
from omlab_sam_med3d.windows import windows_of
from omlab_sdk.golden import Golden, GoldenError, answered, seed_module
from omlab_sdk.networks.sam3d.encoder import to_windows

GOLDENS = ("sam-med3d",)
_KNOWN = {
    "img_size", "patch_size", "in_chans", "prompt_dim", "mask_in_chans", "iou_hidden", "iou_depth",
    "num_multimask_outputs", "dec_heads", "dec_mlp", "dec_depth", "dec_shrink", "embed_dim", "depth", "num_heads",
    "mlp_ratio", "window_size", "global_attn_indexes", "qkv_bias", "use_abs_pos", "use_rel_pos",
}  # fmt: skip
#: Other words for the same arguments: those of upstream's classes and builders.
_ALIASES = {
    "image_size": "img_size", "prompt_embed_dim": "prompt_dim", "out_chans": "prompt_dim",
    "transformer_dim": "prompt_dim", "iou_head_depth": "iou_depth", "iou_head_hidden_dim": "iou_hidden",
    "multimask_outputs": "num_multimask_outputs", "vit_patch_size": "patch_size",
    "attention_downsample_rate": "dec_shrink", "dec_downsample": "dec_shrink",
}  # fmt: skip
_BUILDERS = {"default": "vit_h", "SAM-Med3D": "vit_b_ori"} | {name: name for name in SIZES}
Arrays = dict[str, NDArray[Any]]


def compute(golden: Golden) -> Mapping[str, NDArray[Any]]:
    """Every output that the file may ask for.

    Raises
    ------
    GoldenError
        The file is of a network or step that this package does not have.
    """
    return answered(golden, _ANSWERS, "sam-med3d")


def sam_of(golden: Golden) -> Sam3d:
    """The seeded network that the file's constructor arguments describe."""
    arguments = {}
    for key, value in golden.kwargs.items():
        word = key.removeprefix("encoder_")
        arguments[_ALIASES.get(key, _ALIASES.get(word, word))] = value
    builder = arguments.pop("model_type", None)
    for ignored in ("checkpoint", "pretrained"):
        arguments.pop(ignored, None)
    if builder is not None and builder not in _BUILDERS:
        raise GoldenError(f"{golden.path}: asks for the size '{builder}', sam-med3d has {', '.join(_BUILDERS)}")
    unknown = set(arguments) - _KNOWN
    if unknown:
        raise GoldenError(f"{golden.path}: has the unknown arguments {', '.join(sorted(unknown))}")
    sam = Sam3d(**{**(SIZES[_BUILDERS[builder]] if builder else {}), **arguments}).eval()
    seed_module(sam, golden.kept)
    return sam


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _has(golden: Golden, name: str) -> bool:
    return name in golden.literal or name in golden.meta.get("inputs", {})


def _network(golden: Golden) -> Arrays:
    sam = sam_of(golden)
    encoder, prompts, decoder = sam.image_encoder, sam.prompt_encoder, sam.mask_decoder
    image = _tensor(golden.input("image"))
    found: dict[str, Any] = {"patch_embed": encoder.patch_embed(image)}
    x = encoder.tokens(image)
    for number, block in enumerate(encoder.blocks):
        if f"attn{number}" in golden.outputs:
            h = block.norm1(x)  # type: ignore[operator]
            windows = to_windows(h, (block.window,) * 3) if block.window else h  # type: ignore[arg-type]
            found[f"attn{number}"] = block.attn(windows)  # type: ignore[operator]
        x = found[f"block{number}"] = block(x)
    embedding = found["image_embedding"] = encoder.neck(x.movedim(-1, 1))
    found["dense_pe"] = prompts.dense_positions()
    points = None
    if _has(golden, "point_coords"):
        points = _tensor(golden.input("point_coords")), _tensor(golden.input("point_labels"))
    sparse, dense = prompts(points)
    found |= {"sparse_points": sparse, "dense_none": dense}
    q, k = decoder.transform(embedding, found["dense_pe"], sparse, dense)
    masks, qualities = decoder.heads(q, k, *embedding.shape[2:])
    found |= {
        "queries": q, "keys": k, "masks_all": masks, "iou_all": qualities, "no_mask_single": masks[:, :1],
        "no_mask_single_iou": qualities[:, :1], "multi": masks[:, 1:], "multi_iou": qualities[:, 1:],
    }  # fmt: skip
    if _has(golden, "mask_input"):
        mask = _tensor(golden.input("mask_input"))
        found |= {"dense_mask": prompts.dense(mask), "dense_zero_mask": prompts.dense(torch.zeros_like(mask))}
        for word, fed in (("", mask), ("zero_mask_", torch.zeros_like(mask))):
            masks, qualities = sam.decode(embedding, points, fed)
            found |= {
                f"{word}single": masks[:, :1], f"{word}single_iou": qualities[:, :1], f"{word}multi": masks[:, 1:],
                f"{word}multi_iou": qualities[:, 1:], f"{word}upsampled": sam.upsampled(masks[:, :1]),
            }  # fmt: skip
    return {name: value.numpy() for name, value in (found | _small(golden, sam)).items()}


def _small(golden: Golden, sam: Sam3d) -> dict[str, Any]:
    """Single layers on inputs so small that the epsilons of the normalisations decide."""
    found: dict[str, Any] = {}
    for kind in ("small", "faint"):
        if _has(golden, f"{kind}_tokens"):
            tokens, block = _tensor(golden.input(f"{kind}_tokens")), sam.image_encoder.blocks[0]
            found |= {f"norm1_{kind}": block.norm1(tokens), f"norm2_{kind}": block.norm2(tokens)}  # type: ignore[operator]
        if _has(golden, f"{kind}_map"):
            values = _tensor(golden.input(f"{kind}_map"))
            found |= {f"neck{n}_{kind}": sam.image_encoder.neck[n](values) for n in (1, 3)}
        if _has(golden, f"{kind}_queries"):
            queries, layer = _tensor(golden.input(f"{kind}_queries")), sam.mask_decoder.transformer.layers[0]
            found |= {f"decoder_norm{n}_{kind}": getattr(layer, f"norm{n}")(queries) for n in range(1, 5)}
            found[f"decoder_norm_final_{kind}"] = sam.mask_decoder.transformer.norm_final_attn(queries)
    return found


def _predictor(sam: Sam3d, image: NDArray[np.float32]) -> Predictor:
    """The production pipeline with the torch networks as its engines."""
    encoder, decoder = Encoder(sam), Decoder(sam)
    names = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input")

    def decode(inputs: Mapping[str, Any]) -> Arrays:
        masks, qualities = decoder(*(_tensor(inputs[name]) for name in names))
        return {"low_res_masks": masks.numpy(), "iou_predictions": qualities.numpy()}

    return Predictor(decode, encoder(_tensor(image)).numpy(), sam.image_encoder.img_size)


def _loop(golden: Golden) -> Arrays:
    """The click loop on one cube."""
    sam = sam_of(golden)
    predictor = _predictor(sam, golden.input("image"))
    found: Arrays = {}
    if _has(golden, "gt"):
        random = np.random.RandomState(int(golden.meta["seed"]))
        found |= _clicked(predictor, golden.input("gt"), int(golden.meta["num_clicks"]), random, _rule(golden))
    middle = predictor.size // 2
    found["no_gt_low_res"] = predictor.decode([[middle] * 3], [1]).low[None, None]
    return found


def _rule(golden: Golden) -> protocol.Rule:
    return protocol.ritm_click if "ritm" in str(golden.meta.get("method", "random")).lower() else protocol.random_click


def _clicked(
    predictor: Predictor, truth: NDArray[Any], clicks: int, random: np.random.RandomState, rule: protocol.Rule
) -> Arrays:
    found: Arrays = {}
    for number, (given, answer) in enumerate(predictor.simulate(truth, clicks, random, rule=rule)):
        found[f"low_res_{number}"] = answer.low[None, None]
        found[f"coords_{number}"] = found["click_coords"] = np.array([[place for place, _ in given]])
        found[f"labels_{number}"] = found["click_labels"] = np.array([[label for _, label in given]])
        found["mask"] = (upsampled(answer.low) > 0).astype(np.uint8)
    return found


def demo_folder(path: Path | None) -> Path:
    """The demonstration files: a folder ``data/brats_flair``, also within ``shared``, above the golden file, the
    working folder or this checkout. Raises :class:`omlab_sdk.golden.GoldenError` if there is none."""
    starts = [(path or Path("golden")).resolve(), Path.cwd() / "golden", Path(__file__).resolve()]
    for above in (parent for start in starts for parent in start.parents):
        for folder in (above / "data", above / "shared" / "data"):
            if (folder / "brats_flair").is_dir():
                return folder / "brats_flair"
    raise GoldenError(
        f"{path}: needs the demonstration files of SAM-Med3D, which are not there",
        remedy="Put them into data/brats_flair above the file",
    )


def _scan(golden: Golden) -> tuple[NDArray[Any], NDArray[Any], Geometry]:
    if _has(golden, "image"):
        image = golden.input("image")
        # The file that upstream read holds single precision, and half-way voxels tell the difference.
        return image, golden.input("label"), Geometry(image.shape, golden.input("affine").astype(np.float32))
    from omlab.cases import read
    from omlab.results import read_segmentation

    folder = demo_folder(golden.path)
    (image_path,), (label_path,) = folder.glob("*_image.nii.gz"), folder.glob("*_label.nii.gz")
    case: Any = read(image_path)
    return case.voxels, read_segmentation(label_path).labels, case.geometry


def _cubes(
    image: NDArray[Any], mask: NDArray[np.bool_], grid: Grid, size: int
) -> tuple[Begin, NDArray[np.float32], NDArray[Any]]:
    """Where the cube begins, and the cube of image and label."""
    whole = grid.labels(mask, (0, 0, 0), grid.shape)
    begin = around(whole.astype(bool), (size,) * 3)
    cube = normalised(grid.image(image, begin, (size,) * 3))
    if cube is None:
        raise GoldenError("the cube of the file holds no image")
    return begin, cube, grid.labels(mask, begin, (size,) * 3).astype(np.uint8)


def _restored(grid: Grid, begin: Begin, cube: NDArray[Any]) -> NDArray[np.uint8]:
    """A cube on the scan's grid as upstream's arrays are, [z, y, x]."""
    box, index, order = grid.restore(begin, cube.shape)
    found = np.zeros(grid.source.shape, np.uint8)
    found[box] = cube.transpose(order)[np.ix_(*index)]
    return found.transpose(2, 1, 0)


def _steps(golden: Golden) -> Arrays:
    """Before and after the network."""
    image, label, geometry = _scan(golden)
    found: Arrays = {}
    for word, arguments in golden.kwargs.items():
        size = int(arguments["crop_size"])
        grid = Grid.of(geometry, arguments["target_spacing"])
        begin, cube, truth = _cubes(image, label == arguments["category_index"], grid, size)
        region, _ = protocol.ritm_region(np.zeros(truth.shape, bool), truth)
        back = _restored(grid, begin, truth)
        steps = {
            "roi_image": cube[None, None], "roi_label": truth[None, None], "roi_affine": grid.affine(begin),
            "canonical_shape": np.array(grid.shape), "canonical_affine": grid.turn.target.affine,
            "label_voxels": np.array([truth.sum()]), "back": back, "back_voxels": np.array([back.sum()]),
            "ritm_region": region.astype(np.uint8), "ritm_voxels": np.array([region.sum()]),
        }  # fmt: skip
        found |= {f"{word}_{name}": value for name, value in steps.items()}
    return found


def _whole(golden: Golden) -> Arrays:
    """From files to a label map, one pass a label value."""
    image, label, geometry = _scan(golden)
    sam = sam_of(golden)
    size = int(golden.meta["crop_size"])
    grid = Grid.of(geometry, golden.meta["target_spacing"])
    random = np.random.RandomState(int(golden.meta["seed"]))
    prediction = np.zeros(geometry.shape[::-1], np.uint8)
    found: Arrays = {}
    calls = 0
    for value in (v for v in np.unique(label).tolist() if v):
        begin, cube, truth = _cubes(image, label == value, grid, size)
        if not truth.any():
            continue
        one = _clicked(_predictor(sam, cube[None, None]), truth, int(golden.meta["num_clicks"]), random, _rule(golden))
        prediction[_restored(grid, begin, one["mask"]) == 1] = value
        for number in range(int(golden.meta["num_clicks"])):
            found |= {f"{n}_{calls + number}": one[f"{n}_{number}"] for n in ("coords", "labels", "low_res")}
        calls += int(golden.meta["num_clicks"])
    return found | {"prediction": prediction, "prediction_voxels": np.bincount(prediction.ravel())}


_BIG = re.compile(
    r"volume \((?P<shape>[\d, ]+)\), label box \((?P<box>[\d, ]+)\), crop (?P<size>\d+), mode (?P<mode>\w+)"
)


_WINDOW_PARTS = {"ori_roi": "volume", "pred_roi": "cube", "padding": "padding", "cropping": "cropping"}


def _windows(golden: Golden) -> Arrays:
    found: Arrays = {}
    described = golden.meta.get("outputs", {})
    matches = [(name, _BIG.search(str(text))) for name, text in described.items()]
    for name, matched in matches:
        if matched is None:
            continue
        shape, box = ([int(n) for n in matched[word].split(",")] for word in ("shape", "box"))
        size = (int(matched["size"]),) * 3
        begin = centred(box[::2], [n - 1 for n in box[1::2]], size)
        windows = list(windows_of(shape, begin, size, around=matched["mode"] != "center"))
        prefix = name.partition("_")[0]
        for word, part in (
            ("ori_roi", "volume"),
            ("pred_roi", "cube"),
            ("padding", "padding"),
            ("cropping", "cropping"),
        ):
            found[f"{prefix}_{word}"] = np.array([getattr(w, part) for w in windows]).reshape(len(windows), 6)
    return found


_ANSWERS: Mapping[str, Callable[[Golden], Arrays]] = {
    "validate_paired_img_gt": _whole,
    "sam_model_infer": _loop,
    "data_preprocess": _steps,
    "pad_and_crop_with_sliding_window": _windows,
    "sam_model_registry3D": _network,
    "ImageEncoderViT3D": _network,
    "Sam3D": _network,
}
