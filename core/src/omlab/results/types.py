"""Results: what a model answers. Every result knows the grid or the names that it speaks of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cards import LabelCard
from omlab.geometry import Geometry
from omlab.vocabulary import OutputKind

#: Up to so many structures, comparing with each is faster than one histogram, which needs 64-bit indices.
_FEW = 12
_COUNTS: WeakKeyDictionary[Segmentation, dict[int, int]] = WeakKeyDictionary()


@attrs.frozen(eq=False, kw_only=True)
class Label:
    """One structure.

    Attributes
    ----------
    value : its value in the label map.
    name : as shown.
    colour : (red, green, blue) 0..255.
    code : coded concept (value, scheme, meaning), say ``("12738006", "SCT", "Brain")``.
    """

    value: int
    name: str
    colour: tuple[int, int, int] = (230, 60, 60)
    code: tuple[str, str, str] | None = None

    @classmethod
    def of(cls, card: LabelCard) -> Label:
        """From the card's entry; a label without a colour gets one from a fixed palette."""
        from omlab.results.colours import colour_of, parse_colour

        colour = parse_colour(card.colour) if card.colour else colour_of(card.value)
        code = tuple(card.code) if len(card.code) == 3 else None
        return cls(value=card.value, name=card.name, colour=colour, code=code)  # type: ignore[arg-type]


@attrs.frozen(eq=False, kw_only=True)
class Result:
    """Base of all results.

    Attributes
    ----------
    measurements : name -> value with the unit in the name, ``{"volume_ml": 1545.6}``; shown and written.
    illustration : draws the picture where the core has none for such a result: takes a title, gives a Pillow image.
    files : file name -> what writes it to a path; further files that come with the result.
    notes : what the reader of the result should know, a line each.
    """

    measurements: Mapping[str, float] = attrs.field(factory=dict)
    illustration: Callable[[str], Any] | None = None
    files: Mapping[str, Callable[[Path], None]] = attrs.field(factory=dict)
    notes: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    kind = OutputKind.SCORES


@attrs.frozen(eq=False, kw_only=True)
class Segmentation(Result):
    """A label map on the grid of the input.

    Attributes
    ----------
    labels : unsigned integers, [i, j, k] for a volume, [row, column] for an image; 0 is background.
    structures : the labels that can occur.
    geometry : grid of a volume; ``None`` for an image.
    columns : further figures of each structure, name with unit -> one value for each of ``structures``, ``None``
        where there is none; they stand beside voxels and volume in result.json and in the CSV table.
    """

    labels: NDArray[np.unsignedinteger[Any]]
    structures: tuple[Label, ...] = attrs.field(converter=tuple)
    geometry: Geometry | None = None
    columns: Mapping[str, Sequence[float | None]] = attrs.field(factory=dict)
    kind = OutputKind.SEGMENTATION

    def counts(self) -> dict[int, int]:
        """Voxels (pixels) of each structure by its value; counted once."""
        if self not in _COUNTS:
            if len(self.structures) <= _FEW:
                found = {label.value: int(np.count_nonzero(self.labels == label.value)) for label in self.structures}
            else:
                top = max(label.value for label in self.structures)
                bins = np.zeros(top + 1, np.int64)
                # A plane at a time: the histogram of a whole map needs it as 64-bit integers.
                for plane in np.moveaxis(self.labels, int(np.argmax(self.labels.strides)), 0):
                    found_here = np.bincount(plane.ravel(order="K"), minlength=top + 1)
                    bins += found_here[: top + 1]
                found = {label.value: int(bins[label.value]) for label in self.structures}
            _COUNTS[self] = found
        return _COUNTS[self]

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Boolean mask of the structure ``name``."""
        for label in self.structures:
            if label.name == name:
                return self.labels == label.value
        raise KeyError(name)


@attrs.frozen(eq=False, kw_only=True)
class Classification(Result):
    """Probabilities of classes.

    Attributes
    ----------
    classes : names, in the order of ``probabilities``.
    probabilities : [classes] float32; they sum to one unless ``exclusive`` is false.
    """

    classes: tuple[str, ...] = attrs.field(converter=tuple)
    probabilities: NDArray[np.float32]
    exclusive: bool = True
    kind = OutputKind.CLASSIFICATION

    @classmethod
    def of_logits(cls, logits: NDArray[np.floating[Any]], classes: Sequence[str]) -> Classification:
        """Soft-max of logits [classes]."""
        exponents = np.exp(np.asarray(logits, np.float64) - np.max(logits))
        return cls(classes=classes, probabilities=(exponents / exponents.sum()).astype(np.float32))

    @property
    def best(self) -> str:
        """Name of the most probable class."""
        return self.classes[int(np.argmax(self.probabilities))]


@attrs.frozen(eq=False, kw_only=True)
class Embedding(Result):
    """A feature vector.

    Attributes
    ----------
    vector : [features] float32.
    tokens : [tokens, features] float32, where the model gives them.
    """

    vector: NDArray[np.float32]
    tokens: NDArray[np.float32] | None = None
    kind = OutputKind.EMBEDDING


@attrs.frozen(eq=False, kw_only=True)
class Scores(Result):
    """A table: one row an item (a mutant, a token, a box ...).

    Attributes
    ----------
    columns : column name -> values, all of one length.
    """

    columns: Mapping[str, Sequence[Any]]
    kind = OutputKind.SCORES


@attrs.frozen(eq=False, kw_only=True)
class Detections(Result):
    """Boxes around what was found, best first within each frame.

    Attributes
    ----------
    boxes : [boxes, 4] float32, (x0, y0, x1, y1) in pixels of the input; x runs along columns, x1 and y1 are the far
        edges.
    scores : [boxes] float32 in 0..1.
    labels : [boxes] class indices into ``classes``.
    classes : names.
    frames : [boxes] number of the frame from 0, for videos; ``None`` for an image.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.integer[Any]]
    classes: tuple[str, ...] = attrs.field(converter=tuple)
    frames: NDArray[np.integer[Any]] | None = None
    kind = OutputKind.DETECTIONS


@attrs.frozen(eq=False, kw_only=True)
class Generation(Result):
    """Text that a language model wrote.

    Attributes
    ----------
    text : the answer.
    finish_reason : ``"stop"`` (it ended itself) or ``"length"`` (it was cut).
    prompt_tokens, completion_tokens : tokens read and written.
    """

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    kind = OutputKind.GENERATION
