"""One picture, many prompts: the encoder runs once, the decoder once for each batch of prompts.

Everything here is NumPy around two callables, which are engines of any kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from omlab_sdk.segment_anything.frame import Frame

#: Names to arrays, both ways: what an engine is.
Run = Callable[[Mapping[str, NDArray[np.float32]]], Mapping[str, NDArray[np.float32]]]

NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT, PADDING, ABSENT = 0, 1, 2, 3, -1, -2
#: Prompts decoded together, as upstream's grid of points does it.
BATCH = 64
#: Points (with a box's corners and the padding) that the exported decoder takes at most.
MOST_POINTS = 128
#: Least share of a pixel where a person's mask becomes logits.
SURE = 1e-4


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logistic function that does not overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), dtype=np.float32)


def logit(probability: float) -> float:
    """Whose logistic function is ``probability``."""
    return math.log(probability / (1 - probability))


def _places(value: ArrayLike) -> NDArray[np.float32]:
    return np.asarray(value, dtype=np.float32).reshape(-1, 2)


def _labels(value: ArrayLike) -> NDArray[np.float32]:
    return np.asarray(value, dtype=np.float32).reshape(-1)


def _optional(value: ArrayLike | None) -> NDArray[np.float32] | None:
    return None if value is None else np.asarray(value, dtype=np.float32)


@attrs.frozen(eq=False)
class Query:
    """What is asked of the decoder once, in pixels of the frame.

    Attributes
    ----------
    points : [n, 2] (x, y).
    labels : [n], 1 foreground, 0 background.
    box : [4] (x0, y0, x1, y1), or ``None``.
    mask : [low, low] probabilities (or logits, as the decoder was trained), or ``None``.
    """

    points: NDArray[np.float32] = attrs.field(converter=_places, factory=lambda: np.zeros((0, 2)))
    labels: NDArray[np.float32] = attrs.field(converter=_labels, factory=lambda: np.zeros(0))
    box: NDArray[np.float32] | None = attrs.field(converter=_optional, default=None)
    mask: NDArray[np.float32] | None = attrs.field(converter=_optional, default=None)

    def __attrs_post_init__(self) -> None:
        if len(self.points) != len(self.labels):
            raise ValueError(f"{len(self.points)} points have {len(self.labels)} labels")

    def tokens(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Places [m, 2] and labels [m] of the decoder: the points, then a box's corners or the padding point that
        stands for "no box". A mask alone has none."""
        if self.box is not None:
            corners, kinds = self.box.reshape(2, 2), [TOP_LEFT, BOTTOM_RIGHT]
        elif len(self.points):
            corners, kinds = np.zeros((1, 2), np.float32), [PADDING]
        else:
            return self.points, self.labels
        return np.concatenate([self.points, corners]), np.concatenate([self.labels, np.float32(kinds)])


@attrs.frozen(eq=False)
class Answer:
    """Kept masks of some queries.

    Attributes
    ----------
    low : [queries, low, low] logits.
    qualities : [queries] predicted overlap (IoU) with what was meant.
    """

    low: NDArray[np.float32]
    qualities: NDArray[np.float32]


class Predictor:
    """A picture that was shown to the encoder.

    Parameters
    ----------
    decoder : engine of the graph ``decoder``.
    frame : how the picture lies in the network's frame.
    embedding : [1, width, S / 16, S / 16] of the picture in its frame.
    feeds_logits : a mask is fed to the decoder as logits, as Segment Anything was trained; without it as
        probabilities, as SAM-Med2D was.
    sigmoid_first : masks are resized to the picture as probabilities and not as logits.
    """

    def __init__(
        self, decoder: Run, frame: Frame, embedding: NDArray[np.float32], *, feeds_logits: bool = False,
        sigmoid_first: bool = False,
    ) -> None:  # fmt: skip
        self._decoder, self._feeds_logits, self._sigmoid_first = decoder, feeds_logits, sigmoid_first
        self.frame = frame
        self.low = frame.size // 4
        self.embedding = embedding

    def as_mask(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of an answer as the mask of the next query."""
        return logits if self._feeds_logits else sigmoid(logits)

    def restore(self, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """An answer's logits [..., low, low] on the picture's pixels; probabilities where ``sigmoid_first``."""
        return self.frame.restore(sigmoid(low) if self._sigmoid_first else low)

    def level(self, threshold: float) -> float:
        """What :meth:`restore` gives where the probability is ``threshold``."""
        return threshold if self._sigmoid_first else logit(threshold)

    def query(
        self, points: ArrayLike = (), labels: ArrayLike = (), box: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Query:  # fmt: skip
        """A query from pixels of the picture; ``mask`` [row, column] is a mask of the picture."""
        return Query(
            self.frame.into(_places(points)),
            labels,
            None if box is None else self.frame.into(np.asarray(box, dtype=np.float64).reshape(2, 2)).ravel(),
            None if mask is None else self._fed(self.frame.to_low(np.asarray(mask), self.low)),
        )

    def _fed(self, shares: NDArray[np.float32]) -> NDArray[np.float32]:
        """A person's mask as the decoder knows masks."""
        if not self._feeds_logits:
            return shares
        sure = np.clip(shares, SURE, 1 - SURE)
        return np.log(sure / (1 - sure))

    def decode(self, queries: Sequence[Query]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """All masks [queries, 4, low, low] (logits) and qualities [queries, 4].

        Raises
        ------
        ValueError
            A query has nothing, or more points than the exported decoder takes.
        """
        masks, qualities = [], []
        for start in range(0, len(queries), BATCH):
            found = self._decoder(self._inputs(queries[start : start + BATCH]))
            masks.append(found["low_res_masks"])
            qualities.append(found["iou_predictions"])
        if not masks:
            return np.zeros((0, 4, self.low, self.low), np.float32), np.zeros((0, 4), np.float32)
        return np.concatenate(masks), np.concatenate(qualities)

    def _inputs(self, queries: Sequence[Query]) -> dict[str, NDArray[np.float32]]:
        tokens = [query.tokens() for query in queries]
        for query, (places, _) in zip(queries, tokens, strict=True):
            if not len(places) and query.mask is None:
                raise ValueError("a prompt has no point, no box and no mask")
            if len(places) > MOST_POINTS:
                raise ValueError(f"a prompt has {len(places)} points, the decoder takes at most {MOST_POINTS}")
        longest = max(1, *(len(places) for places, _ in tokens))
        coords = np.zeros((len(queries), longest, 2), np.float32)
        labels = np.full((len(queries), longest), ABSENT, np.float32)
        masks = np.zeros((len(queries), 1, self.low, self.low), np.float32)
        has = np.zeros(len(queries), np.float32)
        for number, (query, (places, kinds)) in enumerate(zip(queries, tokens, strict=True)):
            coords[number, : len(places)] = places
            labels[number, : len(kinds)] = kinds
            if query.mask is not None:
                masks[number, 0], has[number] = query.mask, 1
        return {
            "image_embeddings": self.embedding, "point_coords": coords, "point_labels": labels, "mask_input": masks,
            "has_mask_input": has,
        }  # fmt: skip

    def predict(self, queries: Sequence[Query], *, multimask: bool = True, rounds: int = 1) -> Answer:
        """The kept mask of each query.

        Parameters
        ----------
        multimask : keep the one of masks 1 to 3 with the highest predicted quality; else mask 0.
        rounds : how often the decoder runs; each round after the first is given the mask of the one before.
        """
        asked = list(queries)
        for number in range(rounds):
            masks, qualities = self.decode(asked)
            answer = keep(masks, qualities, multimask=multimask)
            if number + 1 < rounds:
                asked = [attrs.evolve(q, mask=self.as_mask(m)) for q, m in zip(asked, answer.low, strict=True)]
        return answer


def keep(masks: NDArray[np.float32], qualities: NDArray[np.float32], *, multimask: bool = True) -> Answer:
    """One of the four masks of each query."""
    chosen = 1 + qualities[:, 1:].argmax(axis=1) if multimask else np.zeros(len(qualities), np.intp)
    every = np.arange(len(qualities))
    return Answer(masks[every, chosen], qualities[every, chosen])


def stability(logits: NDArray[np.float32], threshold: float = 0.0, offset: float = 1.0) -> NDArray[np.float32]:
    """How little a mask changes with its threshold: pixels above threshold + offset over those above threshold -
    offset, [..., row, column] to [...]; 0 where there are none."""
    inner = (logits > threshold + offset).sum(axis=(-2, -1))
    outer = (logits > threshold - offset).sum(axis=(-2, -1))
    return (inner / np.maximum(outer, 1)).astype(np.float32)
