"""How golden files of SAM-Med2D map onto the networks and steps of this package."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omlab_sam_med2d import losses, metrics, protocol
from omlab_sam_med2d.checkpoint import resized
from omlab_sam_med2d.network import SIZES, Decoder, Encoder, Sam
from omlab_sdk.golden import Golden, GoldenError, answered, seed_module, weight
from omlab_sdk.segment_anything.frame import Frame, encoder_input, frame_of, normalise
from omlab_sdk.segment_anything.predictor import Predictor, keep, sigmoid, stability

GOLDENS = ("sam-med2d",)
_ENCODER = {
    "embed_dim", "depth", "num_heads", "mlp_ratio", "window_size", "global_attn_indexes", "adapter", "in_chans",
    "qkv_bias", "use_abs_pos", "use_rel_pos",
}  # fmt: skip
_SAM = {
    "img_size", "patch_size", "prompt_dim", "mask_in_chans", "dec_heads", "dec_mlp", "dec_depth", "dec_shrink",
    "iou_hidden", "iou_depth", "num_multimask_outputs",
}  # fmt: skip
#: Other words for the same arguments: those of upstream's classes and of its builder.
_ALIASES = {
    "encoder_adapter": "adapter", "adapter_train": "adapter", "image_size": "img_size", "out_chans": "prompt_dim",
    "transformer_dim": "prompt_dim", "iou_head_depth": "iou_depth", "iou_head_hidden_dim": "iou_hidden",
    "attention_downsample_rate": "dec_shrink", "dec_downsample": "dec_shrink",
    "multimask_outputs": "num_multimask_outputs",
}  # fmt: skip
_BUILDERS = {"default": "vit_h"} | {name: name for name in SIZES}
Arrays = dict[str, NDArray[Any]]


def compute(golden: Golden) -> Mapping[str, NDArray[Any]]:
    """Every output that the file may ask for.

    Raises
    ------
    GoldenError
        The file is of a network or step that this package does not have.
    """
    return answered(golden, _ANSWERS, "sam-med2d")


def sam_of(golden: Golden) -> Sam:
    """The seeded network that the file's constructor arguments describe."""
    arguments = {_ALIASES.get(key, key): value for key, value in golden.kwargs.items()}
    builder = arguments.pop("model_type", None)
    arguments.pop("checkpoint", None)
    arguments.pop("sam_checkpoint", None)
    if builder is not None and builder not in _BUILDERS:
        raise GoldenError(f"{golden.path}: asks for the size '{builder}', sam-med2d has {', '.join(_BUILDERS)}")
    unknown = set(arguments) - _ENCODER - _SAM
    if unknown:
        raise GoldenError(f"{golden.path}: has the unknown arguments {', '.join(sorted(unknown))}")
    size = dict(SIZES[_BUILDERS[builder]]) if builder else {}
    sam = Sam(**(size | arguments)).eval()
    seed_module(sam, golden.kept)
    return sam


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _has(golden: Golden, name: str) -> bool:
    return name in golden.literal or name in golden.meta.get("inputs", {})


def _numpy(found: Mapping[str, Any]) -> Arrays:
    return {
        name: value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value) for name, value in found.items()
    }


def _network(golden: Golden) -> Arrays:
    sam = sam_of(golden)
    encoder, prompts, decoder = sam.image_encoder, sam.prompt_encoder, sam.mask_decoder
    image = _tensor(golden.input("image"))
    found: dict[str, Any] = {"patch_embed": encoder.patch_embed(image)}
    x = encoder.tokens(image)
    for number, block in enumerate(encoder.blocks):
        _block_steps(found, number, block, x)
        x = found[f"block{number}"] = block(x)
    embedding = found["image_embedding"] = encoder.neck(x.permute(0, 3, 1, 2))
    positions = found["dense_pe"] = prompts.dense_positions()
    batch = image.shape[0]
    given: dict[str, dict[str, Any]] = {}
    if _has(golden, "point_coords"):
        given["points"] = {"points": (_tensor(golden.input("point_coords")), _tensor(golden.input("point_labels")))}
    if _has(golden, "boxes"):
        given["boxes"] = {"boxes": _tensor(golden.input("boxes"))}
    if _has(golden, "mask_input"):
        given["mask"] = {"mask": _tensor(golden.input("mask_input"))}
    for names in (("points",), ("boxes",), ("mask",), ("points", "boxes"), ("points", "mask"), ("boxes", "mask"),
                  ("points", "boxes", "mask")):  # fmt: skip
        if set(names) <= set(given):
            arguments = {key: value for name in names for key, value in given[name].items()}
            sparse, dense = prompts(**arguments)
            word = "_".join(names)
            found |= {f"sparse_{word}": sparse, f"dense_{word}": dense}
            q, k = decoder.transform(embedding, positions, sparse, dense)
            masks, qualities = decoder.heads(q, k, encoder.grid, encoder.grid)
            found |= _masks(word, q, k, masks, qualities)
    found["dense_none"] = prompts.no_mask(batch)
    if "points_masks_all" in found and "forward_masks" in golden.outputs:
        low = np.asarray(found["points_masks"])
        shape = golden.outputs["forward_masks"].shape[-2:]
        frame = Frame(encoder.img_size, (shape[0], shape[1]), (encoder.img_size, encoder.img_size))
        found |= {"forward_low_res": low, "forward_masks": frame.restore(low), "forward_iou": found["points_iou"]}
    return _numpy(found | _small(golden, sam))


def _block_steps(found: dict[str, Any], number: int, block: Any, x: torch.Tensor) -> None:
    """Inner outputs of a block, by upstream's plain order of operations."""
    from omlab_sdk.networks.sam.encoder import to_windows

    h = block.norm1(x)
    found[f"attn{number}"] = block.attn(to_windows(h, block.window, block.window) if block.window else h)
    if hasattr(block, "Adapter"):
        found[f"adapter{number}"] = block.Adapter(block.norm2(x + block.attend(h)))


def _masks(word: str, q: Any, k: Any, masks: Any, qualities: Any) -> dict[str, Any]:
    best = keep(masks.numpy(), qualities.numpy())
    return {
        f"{word}_queries": q, f"{word}_keys": k, f"{word}_masks_all": masks, f"{word}_iou_all": qualities,
        f"{word}_masks": masks[:, 1:], f"{word}_iou": qualities[:, 1:], f"{word}_single": masks[:, :1],
        f"{word}_single_iou": qualities[:, :1], f"{word}_best": best.low[:, None],
        f"{word}_best_iou": best.qualities[:, None],
    }  # fmt: skip


def _small(golden: Golden, sam: Sam) -> dict[str, Any]:
    """Single layers on inputs so small that the epsilons of the normalisations decide."""
    found: dict[str, Any] = {}
    for kind in ("small", "faint"):
        if _has(golden, f"{kind}_tokens"):
            tokens, block = _tensor(golden.input(f"{kind}_tokens")), sam.image_encoder.blocks[0]
            found |= {f"norm1_{kind}": block.norm1(tokens), f"norm2_{kind}": block.norm2(tokens)}  # type: ignore[operator]
            if hasattr(block, "Adapter"):
                found[f"adapter_{kind}"] = block.Adapter(tokens)  # type: ignore[operator]
        if _has(golden, f"{kind}_map"):
            neck = sam.image_encoder.neck
            values = _tensor(golden.input(f"{kind}_map"))
            found |= {f"neck1_{kind}": neck[1](values), f"neck3_{kind}": neck[3](values)}
        if _has(golden, f"{kind}_queries"):
            queries, layer = _tensor(golden.input(f"{kind}_queries")), sam.mask_decoder.transformer.layers[0]
            found |= {
                f"decoder_norm{n}_{kind}": getattr(layer, f"norm{n}")(queries) for n in range(1, 5)
            }  # fmt: skip
    return found


def _engines(sam: Sam) -> tuple[Callable[..., Any], Callable[..., Any]]:
    encoder, decoder = Encoder(sam), Decoder(sam)

    def encode(inputs: Mapping[str, Any]) -> Arrays:
        return {"image_embeddings": encoder(_tensor(inputs["image"])).numpy()}

    def decode(inputs: Mapping[str, Any]) -> Arrays:
        masks, qualities = decoder(*(_tensor(inputs[name]) for name in (
            "image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input",
        )))  # fmt: skip
        return {"low_res_masks": masks.numpy(), "iou_predictions": qualities.numpy()}

    return encode, decode


def _predictor(golden: Golden) -> Arrays:
    """The production pipeline, with the torch networks as its engines."""
    sam = sam_of(golden)
    picture = golden.input("image")
    rgb = picture[:, :, ::-1] if golden.meta.get("image_format") == "BGR" else picture
    frame = frame_of((rgb.shape[0], rgb.shape[1]), sam.image_encoder.img_size)
    encode, decode = _engines(sam)
    image = encoder_input(np.ascontiguousarray(rgb), frame)
    predictor = Predictor(decode, frame, encode({"image": image})["image_embeddings"])
    found: Arrays = {"encoder_input": image, "image_embedding": predictor.embedding}
    before: NDArray[np.float32] | None = None
    step = 1
    while _has(golden, f"points{step}"):
        query = predictor.query(golden.input(f"points{step}"), golden.input(f"labels{step}"))
        if before is not None:
            import attrs

            query = attrs.evolve(query, mask=sigmoid(before))
        answer = predictor.predict([query])
        found |= _answer(f"step{step}", predictor, answer)
        before = answer.low[0]
        step += 1
    if _has(golden, "box"):
        query = predictor.query(box=golden.input("box"))
        found |= _answer("box", predictor, predictor.predict([query], multimask=False))
        best = predictor.predict([query])
        found["box_mask"] = (predictor.frame.restore(best.low) > 0).astype(np.float32)
    if _has(golden, "boxes"):
        boxes = golden.input("boxes")
        answer = predictor.predict([predictor.query(box=box) for box in boxes])
        found["boxes_model_frame"] = predictor.frame.into(boxes.reshape(-1, 2, 2)).reshape(-1, 4)
        found["boxes_logits"] = predictor.frame.restore(answer.low)[:, None]
    return found


def _answer(word: str, predictor: Predictor, answer: Any) -> Arrays:
    logits = predictor.frame.restore(answer.low)
    return {
        f"{word}_logits": logits, f"{word}_iou": answer.qualities, f"{word}_low_res": answer.low,
        f"{word}_mask": (logits > 0).astype(np.float32),
    }  # fmt: skip


_FLAGS = re.compile(
    r"flags (?P<flags>\{.*?\}), points (?P<points>\[\[.*?\]\]), labels (?P<labels>\[.*?\]), "
    r"has_mask_input (?P<has>[\d.]+), orig_im_size (?P<size>\[.*?\])"
)


def _onnx(golden: Golden) -> Arrays:
    """Upstream's exported graph: our decoder graph, and its post-processing in NumPy."""
    sam = sam_of(golden)
    _, decode = _engines(sam)
    described = golden.meta.get("outputs", {})
    found: Arrays = {}
    if _has(golden, "input_image"):
        image = golden.input("input_image")
        if image.ndim == 3:  # upstream's graph with its pre-processing inside
            image = _resized_by_torch(normalise(image), sam.image_encoder.img_size)
        found["image_embeddings"] = sam.image_encoder(_tensor(image)).numpy()
    if _has(golden, "stability_logits"):
        found["stability"] = stability(golden.input("stability_logits"))
    for name, text in described.items():
        matched = _FLAGS.search(str(text))
        if matched is None or name in found:
            continue
        asked = {key: json.loads(value) for key, value in matched.groupdict().items()}
        found |= _onnx_case(golden, sam, decode, str(text).partition(";")[0], name, asked)
    return found


def _resized_by_torch(image: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """[row, column, 3] to [1, 3, size, size], nearest as torch rounds it."""
    return torch.nn.functional.interpolate(_tensor(image.transpose(2, 0, 1)[None]), size, mode="nearest").numpy()


def _onnx_case(golden: Golden, sam: Sam, decode: Any, word: str, name: str, asked: Mapping[str, Any]) -> Arrays:
    flags = asked["flags"]
    for module in sam.modules():
        if isinstance(module, torch.nn.GELU):
            module.approximate = "tanh" if flags.get("gelu_approximate") else "none"
    answer = decode({
        "image_embeddings": golden.input("image_embeddings"), "point_coords": np.float32([asked["points"]]),
        "point_labels": np.float32([asked["labels"]]), "mask_input": golden.input("mask_input"),
        "has_mask_input": np.float32([asked["has"]]),
    })  # fmt: skip
    low, qualities = answer["low_res_masks"], answer["iou_predictions"]
    if flags.get("use_stability_score"):
        qualities = stability(low)
    if flags.get("return_single_mask"):
        # A clear prompt is answered by the single mask, a vague one by the best alternative.
        count = len(asked["points"])
        choice = qualities + (count - 2.5) * np.float32([1000] + [0] * (qualities.shape[1] - 1))
        best = choice.argmax(axis=1)
        low, qualities = low[[0], best][:, None], qualities[[0], best][:, None]
    rows, columns = (int(n) for n in asked["size"])
    size = sam.image_encoder.img_size
    longest = flags.get("resize_logest_img_size") or flags.get("resize_longest_img_size")
    frame = frame_of((rows, columns), size, "longest" if longest else "stretch")
    masks = frame.restore(low)
    prefix = name.removesuffix(f"_{word}")
    return {
        f"{prefix}_masks": masks, f"{prefix}_iou_predictions": qualities, f"{prefix}_low_res_masks": low,
        f"{prefix}_scores": qualities, f"{prefix}_stability": stability(masks),
        f"{prefix}_areas": (masks > 0).sum(axis=(-2, -1)).astype(np.float32),
    }  # fmt: skip


def demo_folder(path: Path | None) -> Path:
    """The demonstration files: a folder ``data/sam_med2d_demo``, also within ``shared``, above the golden file, the
    working folder or this checkout. Raises :class:`omlab_sdk.golden.GoldenError` if there is none."""
    starts = [(path or Path("golden")).resolve(), Path.cwd() / "golden", Path(__file__).resolve()]
    for above in (parent for start in starts for parent in start.parents):
        for folder in (above / "data", above / "shared" / "data"):
            if (folder / "sam_med2d_demo" / "images").is_dir():
                return folder / "sam_med2d_demo"
    raise GoldenError(
        f"{path}: needs the demonstration files of SAM-Med2D, which are not there",
        remedy="Put them into data/sam_med2d_demo above the file",
    )


def _data(golden: Golden) -> Arrays:
    from PIL import Image

    folder, size = demo_folder(golden.path), int(golden.kwargs["image_size"])
    found: Arrays = {}
    frames: dict[str, Frame] = {}
    for path in sorted((folder / "images").glob("*.png")):
        rgb = np.asarray(Image.open(path).convert("RGB"))
        frames[path.stem] = frame_of((rgb.shape[0], rgb.shape[1]), size, "evaluation")
        found[f"image_{path.stem}"] = encoder_input(rgb, frames[path.stem], "evaluation")[0]
    masks = []
    for name in golden.meta["masks"]:
        picture = max((stem for stem in frames if name.startswith(f"{stem}_")), key=len)
        mask = np.asarray(Image.open(folder / "masks" / name).convert("L"))
        masks.append(protocol.mask_in_frame(mask, frames[picture], name))
    found["boxes"] = np.array([protocol.box_of(mask) for mask in masks])
    found["areas"] = np.array([mask.sum() for mask in masks])
    last = masks[-1].astype(np.float32)[None, None]
    logits = golden.input("logits") + 3 * (2 * last - 1)
    probabilities = sigmoid(logits)
    found |= {
        "logits": logits, "dice": metrics.dice(logits, last), "iou": metrics.iou(logits, last),
        "dice_prob": metrics.dice(probabilities, last), "iou_prob": metrics.iou(probabilities, last),
    }  # fmt: skip
    predicted = torch.full((1, 1), 0.7)
    arguments = (_tensor(logits), _tensor(last))
    parts = [
        losses.FocalLoss()(*arguments), losses.DiceLoss()(*arguments), losses.QualityLoss()(*arguments, predicted),
        losses.FineTuningLoss()(*arguments, predicted),
    ]  # fmt: skip
    found["losses"] = np.array([float(part) for part in parts])
    return found


def _load(golden: Golden) -> Arrays:
    """A checkpoint of another size, brought to this one."""
    size, origin = int(golden.kwargs["image_size"]), int(golden.kwargs["from"])
    words = re.split(r"[\s,]+", str(golden.kwargs.get("model", "vit_b")))
    adapter = "no" not in words
    with torch.device("meta"):
        shapes = Sam.of_size(words[0], img_size=origin, adapter=adapter).state_dict()
        target = Sam.of_size(words[0], img_size=size, adapter=adapter).state_dict()
    # Only tables depend on the size; the others would cost hundreds of megabytes and change nothing here.
    tables = [name for name in shapes if "rel_pos" in name or name.endswith("pos_embed")]
    state = {name: _tensor(weight(name, tuple(shapes[name].shape))) for name in tables}
    moved = resized(state, {name: target[name] for name in tables})
    found: dict[str, Any] = {"pos_embed": moved["image_encoder.pos_embed"]}
    for name, value in moved.items():
        matched = re.fullmatch(r"image_encoder\.blocks\.(\d+)\.attn\.(rel_pos_[hw])", name)
        if matched:
            found[f"{matched[2]}_{matched[1]}"] = value
    return _numpy(found)


_ANSWERS: Mapping[str, Callable[[Golden], Arrays]] = {
    "SamOnnxModel": _onnx,
    "SammedPredictor": _predictor,
    "DataLoader": _data,
    "load_from": _load,
    "sam_model_registry": _network,
    "ImageEncoderViT": _network,
}
