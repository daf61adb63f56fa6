"""What a plugin implements to contribute a way of adapting models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab.cards import AdapterCard, ModelCard, Option, Variant
from omlab.progress import Listener, silent

if TYPE_CHECKING:
    from omlab.dataset import BoundDataset
    from omlab.loading import LoadedModel
    from omlab.model import Model

#: Options of every adapter, beside those of its card.
SHARED = (
    Option(name="shots", type="int", default=0, help="Training cases a class (patients, where known); 0 takes all."),
    Option(name="seed", type="int", default=0, help="Seed of all that is drawn by chance."),
    Option(
        name="duplicates", default="refuse", choices=("refuse", "drop"),
        help="What to do with cases of the same content in two splits: refuse the dataset, or learn without them.",
    ),
)  # fmt: skip
#: Folder in which an adapter keeps what an interrupted training goes on from.
TRAINING = "training"


def with_shared(card: AdapterCard) -> AdapterCard:
    """The card with the options of every adapter."""
    own = {option.name for option in card.options}
    return attrs.evolve(card, options=(*card.options, *(option for option in SHARED if option.name not in own)))


class Adapter:
    """Base of every contributed adapter: (model, dataset, options) to a model directory, and back to a model.

    A model directory holds ``omlab.toml`` (a ``[[model]]`` card and an ``[adapted]`` table that names adapter, base
    model, base variant and the digest of its weights), the trained tensors as safetensors, ``report.json`` and
    ``report.html``. Where the base is a model directory itself, it lies in ``base``.
    """

    #: The adapted model needs the base's weights; without, only the base's manifest is kept of a base directory.
    needs_base_weights = True

    def __init__(self, card: AdapterCard) -> None:
        self.card = card

    def adapt(
        self,
        base: LoadedModel,
        dataset: BoundDataset,
        folder: Path,
        options: Mapping[str, Any],
        listener: Listener = silent,
    ) -> dict[str, Any]:
        """Train, write the tensors into ``folder`` and return what differs from the base's card as a manifest
        table (title, summary, task, outputs, labels ...), with a ``report`` entry of what was measured.

        A ``history`` in the report (a row an epoch) becomes a picture of learning curves, ``best_epoch`` a mark in it,
        ``remarks`` the notes. What is found in ``folder / "training"`` is of the same adaptation, interrupted.

        Parameters
        ----------
        options : of the card, and :data:`SHARED`.
        """
        raise TypeError(f"{type(self).__name__} must define adapt()")

    def model(self, card: ModelCard, base: Model, base_variant: Variant, folder: Path) -> Model:
        """The model of a directory that :meth:`adapt` filled."""
        raise TypeError(f"{type(self).__name__} must define model()")
