"""Few-shot lists as MedFM draws them: N images, patients or studies a class, from the training part."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from omlab.errors import UsageError

#: What a shot counts: the image itself, or the study that its name tells.
_STUDIES: dict[str, Callable[[str], str]] = {
    "chest": lambda name: name,
    "retino": lambda name: name,
    "endo": lambda name: name[:18],
    "colon": lambda name: name[:-9],
    "neojaundice": lambda name: name[:4],
}
SHOTS = (1, 5, 10)


def study_of(dataset: str, image: str) -> str:
    """Which patient or study an image is of: what a split must not tear apart."""
    return _STUDIES[dataset](image)


def draw(dataset: str, labels: Mapping[str, NDArray[np.int64]], shots: int, *, seed: int) -> list[str]:
    """Images of a training list, in its order; repeats between the classes of a multi-label set are kept.

    Class by class: of ``chest`` and ``retino`` N positive images; of ``endo`` all positive images of N studies that
    have one; of ``colon`` and ``neojaundice`` all images with the label of N negative studies, then of N positive ones.
    Where there are fewer, all are taken. Python's generator, seeded; upstream's is not, so its lists cannot be drawn
    again.

    Raises
    ------
    omlab.errors.UsageError
        No such set, or less than one shot.
    """
    if dataset not in _STUDIES or shots < 1:
        raise UsageError(f"there are no {shots} shots of '{dataset}'", remedy=f"Sets: {', '.join(_STUDIES)}")
    generator = random.Random(seed)
    study = _STUDIES[dataset]
    if dataset in ("colon", "neojaundice"):
        # Positives are shuffled first, negatives are written first.
        positive = _of_studies([i for i, v in labels.items() if v[0] == 1], study, shots, generator)
        negative = _of_studies([i for i, v in labels.items() if v[0] == 0], study, shots, generator)
        return negative + positive
    found = []
    for images in _by_class(dataset, labels):
        found += _of_studies(images, study, shots, generator)
    return found


def _by_class(dataset: str, labels: Mapping[str, NDArray[np.int64]]) -> list[list[str]]:
    if dataset == "retino":
        classes = 1 + max(int(values[0]) for values in labels.values())
        return [[image for image, values in labels.items() if values[0] == c] for c in range(classes)]
    classes = len(next(iter(labels.values())))
    return [[image for image, values in labels.items() if values[c] == 1] for c in range(classes)]


def _of_studies(images: Sequence[str], study: Callable[[str], str], shots: int, generator: random.Random) -> list[str]:
    studies = list(dict.fromkeys(study(image) for image in images))
    if len(studies) > shots:
        generator.shuffle(studies)
    chosen = set(studies[:shots])
    kept = [image for image in images if study(image) in chosen]
    if all(study(image) == image for image in images):  # an image is its own study: in the order drawn
        return studies[:shots]
    return kept


def overlap(train: Sequence[str], validation: Sequence[str]) -> list[str]:
    """Images that are on both sides; of upstream's released chest and endo lists nearly all training images are."""
    return sorted(set(train) & set(validation))
