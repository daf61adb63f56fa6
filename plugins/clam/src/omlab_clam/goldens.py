"""How golden files of the CLAM pipeline map onto the networks and steps of this package and of the core."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omlab.cases import Slide
from omlab.inference.patches import GridRules, grid
from omlab.inference.tissue import Tissue, TissueRules, mask, outline
from omlab_clam import heatmap
from omlab_clam.image_bags import image_bag
from omlab_clam.losses import SmoothTop1SVM
from omlab_clam.network import Clam, ClamMB, ClamSB, MaxMIL, MaxMILMany
from omlab_sdk.golden import Golden, GoldenError, seed_module

GOLDENS = ("clam",)
#: Of the slide of the heat maps, where its own file does not lie beside the golden.
_SLIDE: dict[str, Any] = {
    "seg": {"seg_level": 2, "sthresh": 8, "mthresh": 7, "close": 4, "use_otsu": False},
    "filter": {"a_t": 0.04, "a_h": 0.04, "max_n_holes": 8},
    "cases": {
        "coords_a": {"patch_size": 256, "step_size": 256, "patch_level": 0, "contour_fn": "four_pt"},
        "coords_b": {"patch_size": 256, "step_size": 128, "patch_level": 0, "contour_fn": "four_pt_hard"},
        "coords_c": {
            "patch_size": 64, "step_size": 64, "patch_level": 1, "contour_fn": "center", "use_padding": False,
        },
        "coords_d": {
            "patch_size": 128, "step_size": 128, "patch_level": 0, "contour_fn": "basic",
            "top_left": [500, 300], "bot_right": [1500, 1300],
        },
    },
}  # fmt: skip
#: The slide is the picture enlarged so many times, with levels at these downsamples.
_ENLARGED, _DOWNSAMPLES = 16, (1, 4, 16)


def compute(golden: Golden) -> Mapping[str, np.ndarray]:
    """Every output that the file may ask for.

    Raises
    ------
    GoldenError
        The file is of something that this package does not have.
    """
    entry = str(golden.meta.get("entry", ""))
    words = set(re.findall(r"\w+", entry))
    answers: dict[str, Callable[[Golden], Mapping[str, np.ndarray]]] = {
        "CLAM_SB": _clam, "CLAM_MB": _clam, "MIL_fc": _pooling, "MIL_fc_mc": _pooling, "SmoothTop1SVM": _svm,
        "visHeatmap": _heatmaps, "segmentTissue": _patches, "process_contours": _patches,
    }  # fmt: skip
    for name, answer in answers.items():
        if name in words:
            with torch.no_grad():
                return answer(golden)
    raise GoldenError(f"{golden.path}: is of '{entry}', clam has {', '.join(answers)}")


def _bag(golden: Golden) -> Tensor:
    names = [*golden.literal, *golden.meta.get("inputs", {})]
    if not names:
        raise GoldenError(f"{golden.path}: has no bag among its inputs")
    return torch.from_numpy(np.array(golden.input(names[0]), dtype=np.float32))


def _clam(golden: Golden) -> dict[str, np.ndarray]:
    kwargs = golden.kwargs
    kind = ClamMB if "CLAM_MB" in str(golden.meta["entry"]) else ClamSB
    bag = _bag(golden)
    given = kwargs.get("instance_loss_fn", "cross-entropy")
    network: Clam = kind(
        size=kwargs.get("size_arg", "small"), features=kwargs.get("embed_dim", bag.shape[1]),
        gate=kwargs.get("gate", True), dropout=bool(kwargs.get("dropout", False)), k_sample=kwargs.get("k_sample", 8),
        n_classes=kwargs.get("n_classes", 2), subtyping=kwargs.get("subtyping", False),
        instance_loss="svm" if "svm" in str(given).lower() else "cross-entropy",
    )  # fmt: skip
    seed_module(network.eval(), golden.kept)
    found = {name: tensor.numpy() for name, tensor in network.steps(bag).items()}
    for label in range(network.n_classes):
        steps = network.steps(bag, label)
        found |= {f"{name}_{label}": steps[name].numpy() for name in ("inst_loss", "inst_labels", "inst_preds")}
        weight = float(kwargs.get("bag_weight", 0.7))
        found[f"total_loss_{label}"] = network.loss(bag, label, bag_weight=weight).numpy()
    return found


def _pooling(golden: Golden) -> dict[str, np.ndarray]:
    kwargs, bag = golden.kwargs, _bag(golden)
    many = "MIL_fc_mc" in str(golden.meta["entry"])
    kind = MaxMILMany if many else MaxMIL
    network = kind(
        features=bag.shape[1], n_classes=kwargs.get("n_classes", 2), dropout=bool(kwargs.get("dropout", False))
    )
    seed_module(network.eval(), golden.kept)
    logits, probabilities = network(bag)
    spoken = torch.softmax(logits, dim=1)
    # The two say their answer in another shape upstream.
    best = spoken.argmax(dim=1) if many else logits.argmax(dim=1, keepdim=True)
    return {
        "top_instance": logits.numpy(), "logits": logits.numpy(), "Y_prob": spoken.numpy(), "Y_hat": best.numpy(),
        "y_probs": probabilities.transpose(0, 1).numpy(),
    }  # fmt: skip


def _svm(golden: Golden) -> dict[str, np.ndarray]:
    kwargs = golden.kwargs
    settings = {key: float(kwargs[key]) for key in ("alpha", "tau", "thresh") if key in kwargs}
    found = {}
    for name in golden.meta.get("inputs", {}):
        scores = torch.from_numpy(np.array(golden.input(name), np.float32))
        classes = scores.shape[1]
        labels = next((golden.literal[n] for n in golden.literal if n == f"y{name.removeprefix('svm')}"), None)
        if labels is None:
            labels = golden.input(f"y{classes}")
        target = torch.from_numpy(np.array(labels, np.int64))
        loss = SmoothTop1SVM(classes, **settings)
        found[name] = loss(scores, target).numpy()
        found[f"{name}_each"] = torch.stack(
            [loss(s[None], t[None]) for s, t in zip(scores, target, strict=True)]
        ).numpy()
    return found


class _Enlarged:
    """The slide of the golden files: a picture, enlarged."""

    mpp = magnification = None

    def __init__(self, picture: NDArray[np.uint8]) -> None:
        self.picture = picture
        rows, columns = picture.shape[:2]
        full = (columns * _ENLARGED, rows * _ENLARGED)
        self.levels = tuple((full[0] // d, full[1] // d) for d in _DOWNSAMPLES)
        self.details: dict[str, Any] = {}
        self.warnings: list[str] = []

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        step = _ENLARGED // _DOWNSAMPLES[level]
        rows, columns = np.arange(y, y + height) // step, np.arange(x, x + width) // step
        return np.ascontiguousarray(self.picture[rows[:, None], columns[None, :]])


def _slide(golden: Golden) -> Slide:
    return Slide(name="slide_1.svs", pixels_from=_Enlarged(np.asarray(golden.input("thumb"), np.uint8)))


def _tissue(slide: Slide, settings: Mapping[str, Any]) -> tuple[Tissue, int]:
    seg, kept = settings["seg"], settings["filter"]
    level = int(seg.get("seg_level", 2))
    rules = TissueRules(
        level=level, saturation=seg.get("sthresh", 20), median=seg.get("mthresh", 7), closing=seg.get("close", 0),
        otsu=bool(seg.get("use_otsu", False)), least_tissue=kept.get("a_t", 100), least_hole=kept.get("a_h", 16),
        most_holes=kept.get("max_n_holes", 10), keep=seg.get("keep_ids", ()), leave_out=seg.get("exclude_ids", ()),
    )  # fmt: skip
    return outline(*slide.overview(level=level), rules), level


def _places(slide: Slide, tissue: Tissue, case: Mapping[str, Any], *, newer: bool) -> NDArray[np.int64]:
    region = None
    if case.get("top_left") is not None or case.get("bot_right") is not None:
        left, top = case.get("top_left") or (0, 0)
        right, bottom = case.get("bot_right") or slide.size
        region = (left, top, right, bottom)
    rules = GridRules(
        patch=case["patch_size"], step=case["step_size"], inside=case.get("contour_fn", "four_pt"),
        padding=case.get("use_padding", True), region=region, single=newer,
    )  # fmt: skip
    return grid(tissue, slide.size, rules, _scale(slide, case))


def _scale(slide: Slide, case: Mapping[str, Any]) -> tuple[float, float]:
    across, down = slide.downsamples[int(case.get("patch_level", 0))]
    return float(int(across)), float(int(down))


def _patches(golden: Golden) -> dict[str, np.ndarray]:
    kwargs = golden.kwargs
    slide = _slide(golden)
    tissue, level = _tissue(slide, kwargs)
    newer = "mahmoodlab" in str(golden.meta.get("upstream", "")) or "newer" in str(golden.meta.get("notes", ""))
    holes = [hole for inside in tissue.holes for hole in inside]
    none = np.zeros((0, 2), np.int32)
    found: dict[str, np.ndarray] = {
        "contour_sizes": np.array([len(contour) for contour in tissue.contours]),
        "contour_points": np.concatenate([none, *tissue.contours]),
        "holes_per_contour": np.array([len(inside) for inside in tissue.holes]),
        "hole_sizes": np.array([len(hole) for hole in holes]),
        "hole_points": np.concatenate([none, *holes]),
        "tissue_mask": mask(tissue, slide.levels[level], slide.downsamples[level]),
    }
    for name, case in kwargs.get("cases", {}).items():
        found[name] = _places(slide, tissue, case, newer=newer)
    told = str(golden.meta.get("outputs", {}).get("bag_coords", ""))
    if told:
        numbers = {key: int(value) for key, value in re.findall(r"(\w+) (\d+)", told)}
        bag = image_bag(
            slide, tissue, patch=numbers.get("size", 64), step=numbers.get("step", numbers.get("size", 64)),
            level=numbers.get("patch_level", 1), white=numbers.get("white_thresh", 15),
            black=numbers.get("black_thresh", 50),
        )  # fmt: skip
        found |= {"bag_coords": bag[0], "bag_imgs": bag[1]}
    return found


def _heatmaps(golden: Golden) -> dict[str, np.ndarray]:
    slide = _slide(golden)
    settings = _beside(golden) or _SLIDE
    tissue, _ = _tissue(slide, settings)
    found: dict[str, np.ndarray] = {}
    for name, told in golden.kwargs.items():
        words = re.findall(r"[\w.]+", str(told))
        places = next((word for word in words if word in settings["cases"]), None)
        scores = next((word for word in words if word in golden.meta.get("inputs", {}) or word in golden.literal), None)
        if places is None or scores is None:
            continue
        case = settings["cases"][places]
        scale = _scale(slide, case)
        side = (int(case["patch_size"] * scale[0]), int(case["patch_size"] * scale[1]))
        found[name] = heatmap.draw(
            slide, golden.input(scores), _places(slide, tissue, case, newer=False), side, level=_level(str(told)),
            tissue=None if "no tissue" in str(told) else tissue,
            **_drawing(str(told), words),
        )  # fmt: skip
    for name, told in golden.meta.get("outputs", {}).items():
        asked = re.match(r"percentileofscore\((\w+), v\) for v in ([\d., -]+)", str(told))
        if asked:
            values = np.array([float(v) for v in asked.group(2).rstrip(", ").split(",")])
            found[name] = heatmap.percentiles_among(values, golden.input(asked.group(1)))
    return found


def _level(told: str) -> int:
    found = re.search(r"level (\d)", told)
    return int(found.group(1)) if found else 2


def _drawing(told: str, words: list[str]) -> dict[str, Any]:
    """Arguments of a heat map from its description: "alpha .4, jet, blur, overlap .5, binarize at .6, region ..."."""

    def number(what: str, default: float) -> float:
        found = re.search(rf"{what}(?: at| of)? (-?[\d.]*\d)", told)
        return float(found.group(1)) if found else default

    import matplotlib

    found: dict[str, Any] = {
        "alpha": number("alpha", 0.4), "overlap": number("overlap", 0.0),
        "cmap": next((word for word in words if word in matplotlib.colormaps), "jet"),
        "blank": "blank" in words and "no blank" not in told, "as_percentiles": "percentiles" in words,
        "blur": "blur" in words and "no blur" not in told, "binarize": "binarize" in words,
        "threshold": number("binarize", 0.5),
    }  # fmt: skip
    region = re.search(r"region \((\d+), ?(\d+)\)-\((\d+), ?(\d+)\)", told)
    if region:
        found["region"] = tuple(int(v) for v in region.groups())
    return found


def _beside(golden: Golden) -> Mapping[str, Any] | None:
    """Settings of the slide that the file names, from that slide's own golden file in the same folder."""
    name = golden.kwargs.get("slide")
    path = golden.path.with_name(f"{name}.npz") if golden.path and name else Path()
    return Golden.read(path).kwargs if path.is_file() else None
