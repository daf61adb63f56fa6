"""One cube, many clicks: the encoder runs once, the decoder once for each click.

Everything here is NumPy around two callables, which are engines of any kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from omlab_sam_med3d import protocol

#: Names to arrays, both ways: what an engine is.
Run = Callable[[Mapping[str, NDArray[np.float32]]], Mapping[str, NDArray[np.float32]]]

NEGATIVE, POSITIVE, PADDING, ABSENT = 0, 1, -1, -2
#: Points (with the padding) that the exported decoder takes at most.
MOST_POINTS = 128
#: Prompts that the exported decoder takes at once.
BATCH = 16
#: Least share of a cell where a person's mask becomes logits.
SURE = 1e-4
#: Voxels of the cube along each axis in a voxel of the logits.
CELL = 4


@attrs.frozen(eq=False)
class Answer:
    """What the decoder said to one prompt.

    Attributes
    ----------
    low : [S / 4, S / 4, S / 4] logits.
    quality : predicted overlap (IoU) with what was meant.
    """

    low: NDArray[np.float32]
    quality: float


class Predictor:
    """A cube that was shown to the encoder.

    Parameters
    ----------
    decoder : engine of the graph ``decoder``.
    embedding : [1, width, S / 16, S / 16, S / 16] of the cube.
    size : side S of the cube.
    """

    def __init__(self, decoder: Run, embedding: NDArray[np.float32], size: int) -> None:
        self._decoder, self.embedding, self.size = decoder, embedding, size
        self.low = size // CELL

    def decode(self, places: ArrayLike, labels: ArrayLike, mask: NDArray[np.float32] | None = None) -> Answer:
        """The single mask of one prompt.

        Parameters
        ----------
        places : [n, 3] voxels of the cube along its axes; without any, the mask alone counts.
        labels : [n], 1 belongs to it, 0 does not.
        mask : [S / 4, S / 4, S / 4] logits to start from; zeros without any, as upstream begins.
        """
        at = np.asarray(places, np.float32).reshape(-1, 3)
        kinds = np.asarray(labels, np.float32).reshape(-1)
        # A padding point stands for the box that there never is.
        end = PADDING if len(at) else ABSENT
        if len(at) >= MOST_POINTS:
            raise ValueError(f"a prompt has {len(at)} points, the decoder takes at most {MOST_POINTS - 1}")
        fed = np.zeros((self.low,) * 3, np.float32) if mask is None else np.asarray(mask, np.float32)
        found = self._decoder({
            "image_embeddings": self.embedding,
            "point_coords": np.concatenate([at, np.zeros((1, 3), np.float32)])[None],
            "point_labels": np.concatenate([kinds, np.float32([end])])[None],
            "mask_input": fed[None, None],
            "has_mask_input": np.ones(1, np.float32),
        })  # fmt: skip
        return Answer(found["low_res_masks"][0, 0], float(found["iou_predictions"][0, 0]))

    def refine(
        self, places: ArrayLike, labels: ArrayLike, mask: NDArray[np.float32] | None = None, *, one_by_one: bool = True
    ) -> Answer:
        """Clicks one after another, as upstream gives them: each round with all clicks so far and the logits of the
        round before; or all at once."""
        at = np.asarray(places, np.float32).reshape(-1, 3)
        kinds = np.asarray(labels, np.float32).reshape(-1)
        answer = None
        for count in range(1, len(at)) if one_by_one else ():
            answer = self.decode(at[:count], kinds[:count], mask if answer is None else answer.low)
        return self.decode(at, kinds, mask if answer is None else answer.low)

    def simulate(
        self,
        truth: NDArray[np.generic],
        clicks: int,
        random: np.random.RandomState,
        *,
        older: bool = False,
        rule: protocol.Rule = protocol.random_click,
    ) -> Iterator[tuple[list[protocol.Click], Answer]]:
        """Clicks drawn from a reference mask of the cube, and the answer after each.

        Parameters
        ----------
        older : as upstream's validation script of 2023: the first two clicks by the RITM rule, the next one drawn
            where the logit is not above 0.5, and only the newest click given.
        rule : draws the clicks, unless ``older``.

        Yields
        ------
        The clicks that were given, and what the decoder said.
        """
        before = np.zeros(truth.shape, bool)
        given: list[protocol.Click] = []
        low = None
        for number in range(clicks):
            chosen = (protocol.ritm_click if number < 2 else protocol.random_click) if older else rule
            click = chosen(before, truth, random)
            given = [click] if older else [*given, click]
            answer = self.decode([place for place, _ in given], [label for _, label in given], low)
            low = answer.low
            before = upsampled(low) > (0.5 if older else 0.0)
            yield list(given), answer


def upsampled(low: NDArray[np.float32], factor: int = CELL) -> NDArray[np.float32]:
    """Logits of every voxel of the cube: linear between cell centres, edges repeated."""
    from omlab.inference.resampling import along, matrix

    values = low
    for axis in range(3):
        values = along(values, matrix(low.shape[axis], factor * low.shape[axis], 1), axis)
    return values


def as_logits(mask: NDArray[np.bool_], cell: int = CELL) -> NDArray[np.float32]:
    """A person's mask of the cube as the decoder knows masks: logits of the share of each cell that it covers."""
    n = mask.shape[0] // cell
    shares = mask.reshape(n, cell, n, cell, n, cell).mean(axis=(1, 3, 5), dtype=np.float32)
    sure = np.clip(shares, SURE, 1 - SURE)
    return np.log(sure / (1 - sure))
