"""Pre-training, fine-tuning and evaluation as upstream does them: views of a pair, learning rates, overlap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from omlab.errors import UsageError
from omlab.inference.pictures import normalised
from omlab_d_mim.blurs import BLURS, Grey
from omlab_d_mim.preprocess import as_trained
from omlab_sdk.training.rates import learning_rate

EPSILON = 1e-7
#: By recipe: (rate for 256 images, warm-up epochs, last rate). Pre-training decays weights by 0.05 but not biases and
#: norms, and has betas of 0.9 and 0.95.
RECIPES: Mapping[str, tuple[float, int, float]] = {"pretraining": (1.5e-4, 40, 0.0), "fine-tuning": (1e-4, 5, 1e-6)}


def rate(recipe: str, epoch: float, *, epochs: int, batch: int) -> float:
    """Learning rate at a fractional epoch for batches of so many images in all: a warm-up, then half a cosine."""
    lr, warmup, least = RECIPES[recipe]
    return learning_rate(epoch, lr=lr * batch / 256, min_lr=least, warmup_epochs=warmup, epochs=epochs)


class Pairs:
    """Draws pre-training views of pictures: the blurred one and the original, both [3, size, size], of one random
    crop (a fifth of the area or more, bicubic) and flip.

    Upstream seeds both draws with the wall clock's second, so that the pictures of one second share a crop; here each
    picture has its own.

    Parameters
    ----------
    blur : one of :data:`omlab_d_mim.blurs.BLURS`, or a function of a grey picture [row, column] uint8.

    Raises
    ------
    omlab.errors.UsageError
        There is no blur of this name.
    """

    def __init__(
        self, *, size: int = 224, blur: str | Callable[[Grey], Grey] = "gaussian",
        seed: int | Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        from omlab_sdk.views import RandomViews

        if isinstance(blur, str) and blur not in BLURS:
            raise UsageError(f"there is no blur '{blur}'", remedy=f"Take one of {', '.join(BLURS)}")
        self.size, self.blur, self.views = size, blur, RandomViews(seed)

    def __call__(self, rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(blurred, original) of a picture [row, column, 3]."""
        generator = self.views.generator
        named = BLURS[self.blur] if isinstance(self.blur, str) else None
        seen = as_trained(rgb, self.blur if named is None else lambda grey: named(grey, generator))
        before = generator.bit_generator.state
        found = []
        for picture in (seen, rgb):
            generator.bit_generator.state = before
            view = self.views.cropped(Pillow.fromarray(picture), self.size, (0.2, 1.0), Pillow.Resampling.BICUBIC)
            view = self.views.sometimes(0.5, _turned, view)
            found.append(normalised(np.asarray(view)))
        return found[0], found[1]


def _turned(picture: Pillow.Image) -> Pillow.Image:
    return picture.transpose(Pillow.Transpose.FLIP_LEFT_RIGHT)


def overlap(probability: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
    """F-score and intersection over union above 0.5, over a whole batch, as upstream's training validates."""
    p, t = np.asarray(probability) > 0.5, np.asarray(truth) > 0.5
    tp = float((p & t).sum())
    both = float(p.sum()) + float(t.sum())
    return {"fscore": (2 * tp + EPSILON) / (both + EPSILON), "iou": (tp + EPSILON) / (both - tp + EPSILON)}


def image_overlap(probability: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
    """Of one image, as upstream's test does it: a prediction without any overlap counts one pixel, and Dice follows
    from IoU. Averages over images are what upstream reports."""
    p, t = np.asarray(probability) >= 0.5, np.asarray(truth) > 0.5
    tp = float((p & t).sum())
    union = float((p | t).sum())
    iou = max(tp, 1.0) / (union - tp + max(tp, 1.0))
    return {"iou": iou, "dice": 2 * iou / (iou + 1)}
