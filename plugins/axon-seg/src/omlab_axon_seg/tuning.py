"""Fine-tuning on cubes, as D-LMBmap trains: Adam with a falling rate, nnU-Net's loss, no mirroring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from omlab.cards import Variant
from omlab.cases import Volume
from omlab.errors import UsageError
from omlab.results import Segmentation
from omlab_axon_seg import checkpoint, losses, volumes
from omlab_axon_seg.model import arguments, side_of
from omlab_sdk.segmenters import Prepared, Recipe, beginning, check_grid
from omlab_sdk.training.deep_supervision import DeepSupervision
from omlab_sdk.training.rates import polynomial_rate

if TYPE_CHECKING:
    from torch import Tensor


def recipe(
    variant: Variant, files: Mapping[str, Path], outputs: int, *, state: Mapping[str, Tensor] | None = None,
    spacing_mm: Sequence[float] | None = None,
) -> Recipe:  # fmt: skip
    """The recipe of a variant: all weights of its file, or ``state``; at random without either.

    The rate falls as in nnU-Net; upstream lowers it where the training loss no longer falls
    (:func:`omlab_axon_seg.losses.plateau`), which one run cannot foresee.

    Raises
    ------
    omlab.errors.UsageError
        There are other structures than axons, or another size of voxels is asked for.
    """
    config = dict(variant.config)
    side = (side_of(variant),) * 3
    if config["network"] != "axial":
        raise UsageError("the older network has no recipe", remedy="Take a variant with axial attention")
    if outputs != 2:
        raise UsageError(f"axon-seg tells axons from background, the dataset has {outputs - 1} structures")
    if spacing_mm:
        raise UsageError("axon-seg sees voxels as they are, whatever their spacing")
    with beginning():
        network: torch.nn.Module = checkpoint.build("axial", deep_supervision=True, **arguments(variant))
    if state is None and variant.weights:
        (asset,) = variant.weights
        state = checkpoint.read(files[asset.id])
    if state is not None:
        from omlab_sdk.checkpoints import load_into

        load_into(network, state, name="the weights to begin with")
    loss = DeepSupervision()
    return Recipe(
        network=network, state=network, config=config, patch=side, prepare=_prepared,
        loss=lambda given, target: loss([head.float() for head in given], target),
        labels=lambda given: given[0].argmax(1), optimiser=losses.optimiser,
        schedule=polynomial_rate,
        rate=losses.RATE, clip=12.0, epochs=losses.EPOCHS, batches=losses.BATCHES_AN_EPOCH, batch=losses.BATCH,
    )  # fmt: skip


def _prepared(case: Volume, reference: Segmentation) -> Prepared:
    """A cube as :func:`omlab_axon_seg.volumes.run` shows it. Raises :class:`InputError` for a reference on another
    grid."""
    check_grid(case, reference)
    turn, image = volumes.seen(case)
    labels = turn.apply(reference.labels).T > 0
    return Prepared(image=np.ascontiguousarray(image[None]), labels=np.ascontiguousarray(labels.astype(np.int16)))
