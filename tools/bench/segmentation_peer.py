"""One way of scoring a pair of label maps, in an environment of its own; see segmentation.py.

    python segmentation_peer.py WAY PAIR.npz ROUNDS

Prints JSON: seconds of each round, and Dice, HD95 and surface Dice at 1 mm of every label.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

TOLERANCE_MM = 1.0
Scores = dict[int, list[float]]


def surface_distance(prediction: np.ndarray, reference: np.ndarray, spacing: list[float], labels: list[int]) -> Scores:
    """DeepMind's package, a label at a time."""
    # The package knows the name that NumPy 2 has dropped.
    np.Inf = np.inf  # type: ignore[attr-defined]
    import surface_distance as library

    found = {}
    for label in labels:
        a, b = prediction == label, reference == label
        distances = library.compute_surface_distances(b, a, spacing)
        found[label] = [
            library.compute_dice_coefficient(b, a), library.compute_robust_hausdorff(distances, 95),
            library.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM),
        ]  # fmt: skip
    return found


def monai(prediction: np.ndarray, reference: np.ndarray, spacing: list[float], labels: list[int]) -> Scores:
    """MONAI's functions on one-hot maps."""
    import torch
    from monai.metrics import DiceHelper, compute_hausdorff_distance, compute_surface_dice

    table = np.zeros(256, np.int64)
    table[labels] = np.arange(1, len(labels) + 1)
    a, b = (
        torch.from_numpy(np.stack([table[given] == label for label in range(len(labels) + 1)])[None].astype(np.uint8))
        for given in (prediction, reference)
    )
    dice = DiceHelper(include_background=False, softmax=False, reduction="none", get_not_nans=False)(a, b)
    far = compute_hausdorff_distance(a, b, include_background=False, percentile=95, spacing=spacing)
    near = compute_surface_dice(
        a, b, [TOLERANCE_MM] * len(labels), include_background=False, spacing=spacing, use_subvoxels=True
    )
    rows = torch.stack([torch.as_tensor(t).reshape(-1) for t in (dice, far, near)], dim=1).tolist()
    return dict(zip(labels, rows, strict=True))


def omlab(prediction: np.ndarray, reference: np.ndarray, spacing: list[float], labels: list[int]) -> Scores:
    """The evaluator of the plugin."""
    from omlab.evaluator import Pair
    from omlab.geometry import Geometry
    from omlab.results import Label, Segmentation

    evaluator = _evaluator()
    options = {option.name.replace("-", "_"): option.default for option in evaluator.card.options}
    geometry = Geometry(prediction.shape, np.diag([*spacing, 1.0]))
    structures = tuple(Label(value=label, name=str(label)) for label in labels)
    a, b = (Segmentation(labels=given, structures=structures, geometry=geometry) for given in (prediction, reference))
    report = evaluator.score([Pair(name="pair", prediction=a, reference=b)], options | {"tolerance_mm": TOLERANCE_MM})
    return {row["label"]: [row["dice"], row["hd95_mm"], row["nsd"]] for row in report.cases}


@cache
def _evaluator() -> Any:
    """Found once, as libraries are imported once."""
    from omlab.plugins import Registry
    from omlab.vocabulary import Kind

    return Registry.discover().load(Kind.EVALUATOR, "segmentation")


WAYS: dict[str, Callable[..., Scores]] = {"surface-distance": surface_distance, "monai": monai, "omlab": omlab}


def main(way: str, pair: str, rounds: int) -> None:
    """Time ``way``; one round is not counted."""
    warnings.simplefilter("ignore")
    with np.load(pair) as given:
        prediction, reference, spacing = given["prediction"], given["reference"], given["spacing"].tolist()
    labels = sorted((set(np.unique(prediction).tolist()) | set(np.unique(reference).tolist())) - {0})
    seconds: list[float] = []
    found: Any = None
    for number in range(rounds + 1):
        start = time.perf_counter()
        found = WAYS[way](prediction, reference, spacing, labels)
        if number:
            seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "found": found}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
