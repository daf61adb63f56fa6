"""Training on from the published weights, as upstream's demonstration does it: Adam, a polynomial rate, Dice and
cross-entropy over all levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from omlab.cards import Variant
from omlab.cases import Volume
from omlab.errors import UsageError, WeightsError
from omlab.geometry import Turn
from omlab.results import Segmentation
from omlab_mis_fm import checkpoint, intensity
from omlab_mis_fm.losses import DeepSupervision, one_hot
from omlab_mis_fm.model import arguments_of, window_of
from omlab_sdk.segmenters import Prepared, Recipe, beginning, check_grid
from omlab_sdk.training.rates import polynomial_rate

if TYPE_CHECKING:
    from torch import Tensor

#: Of Adam, and of the rate, which falls after every validation: 6000 steps in all, a validation every 250.
RATE, WEIGHT_DECAY, EXPONENT = 1e-3, 1e-5, 0.8
EPOCHS, BATCHES_AN_EPOCH, BATCH = 24, 250, 2
#: Parts of the names of what begins anew where there are other classes.
_HEAD = ("out_conv", "out_layers.")


def optimiser(network: torch.nn.Module, rate: float = RATE) -> torch.optim.Adam:
    """The optimiser of the recipe."""
    return torch.optim.Adam(network.parameters(), rate, weight_decay=WEIGHT_DECAY)


def schedule(epoch: float, epochs: float, rate: float) -> float:
    """The rate of the epoch that ``epoch`` lies in."""
    return polynomial_rate(int(epoch), epochs, rate, EXPONENT)


def recipe(
    variant: Variant, files: Mapping[str, Path], outputs: int, *, state: Mapping[str, Tensor] | None = None,
    spacing_mm: Sequence[float] | None = None,
) -> Recipe:  # fmt: skip
    """The recipe of a variant: the weights of its file, or ``state``, but for the heads; at random without either.

    Scans are normalised by their mean and standard deviation and shown in the order of DICOM, as the model does
    unless told otherwise. Upstream takes the figures of a training window; here they are those of the whole scan, as in
    its tests.

    Raises
    ------
    omlab.errors.UsageError
        Another spacing is asked for.
    omlab.errors.WeightsError
        The weights are of another network, or of another size of windows.
    """
    if spacing_mm:
        raise UsageError("mis-fm sees voxels as they are, whatever their spacing")
    kind, window = str(variant.config["network"]), window_of(variant)
    name = "the weights to begin with"
    if state is None and variant.weights:
        (asset,) = variant.weights
        name = str(files[asset.id])
        state = checkpoint.read(files[asset.id], asset.key)
    sizes = checkpoint.arguments_of(state, kind, name) if state is not None else arguments_of(variant)
    with beginning():
        network: Any = checkpoint.build(
            kind, input_size=window, mode=int(variant.config["mode"]), **sizes | {"class_num": outputs, "in_chns": 1}
        )
    # All levels learn; what is kept is run for the finest alone.
    network.multiscale_pred = True
    if kind == "fmunet":
        network.set_stage("train")
    if state is not None:
        fresh = [key for key in checkpoint.start(network, state) if not any(part in key for part in _HEAD)]
        if fresh:
            raise WeightsError(
                f"{name}: {len(fresh)} entries do not fit the network, first '{fresh[0]}'",
                remedy="They are of another input size, or of scans with several channels",
            )
    loss = DeepSupervision()
    return Recipe(
        network=network, state=network, config=dict(variant.config), patch=cast(Any, window), prepare=_prepared,
        loss=lambda given, target: loss([level.float() for level in given], one_hot(target[:, 0], outputs)),
        labels=lambda given: given[0].argmax(1), optimiser=optimiser, schedule=schedule, rate=RATE, clip=None,
        epochs=EPOCHS, batches=BATCHES_AN_EPOCH, batch=BATCH, mirror=(0, 1, 2),
        multiple=network.divisor if kind == "fmunet" else None,
    )  # fmt: skip


def _prepared(case: Volume, reference: Segmentation) -> Prepared:
    """Raises :class:`omlab.errors.InputError` for a reference on another grid."""
    check_grid(case, reference)
    turn = Turn.to(case.geometry, "LPS")
    return Prepared(
        image=np.ascontiguousarray(intensity.mean_std(turn.apply(case.voxels).T[None])),
        labels=np.ascontiguousarray(turn.apply(reference.labels).T.astype(np.int16)),
    )
