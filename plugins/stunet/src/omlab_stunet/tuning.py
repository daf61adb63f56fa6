"""STU-Net learns other structures: nnU-Net's recipe, as the authors fine-tune it (fact of nnU-Net 1.7.1's trainer)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from omlab.cards import Variant
from omlab.cases import Volume
from omlab.inference.resampling import resample_labels
from omlab.results import Segmentation
from omlab_sdk.segmenters import Prepared, Recipe, beginning, check_grid
from omlab_sdk.training.deep_supervision import DeepSupervision
from omlab_stunet import checkpoint, objective
from omlab_stunet.network import STUNet, initialise
from omlab_stunet.pipeline import View, check, prepare
from omlab_stunet.plan import Plan

#: Windows a batch of the released plan.
BATCH = 2


def recipe(
    variant: Variant,
    files: Mapping[str, Path],
    outputs: int,
    *,
    state: Mapping[str, Tensor] | None = None,
    spacing_mm: Sequence[float] | None = None,
) -> Recipe:
    """The recipe of a variant: the weights of its file, or ``state``, but for the heads; at random without either."""
    config = dict(variant.config) | ({"spacing_mm": list(spacing_mm)} if spacing_mm else {})
    plan = Plan.of(config)
    network = STUNet(
        1, outputs, depth=plan.depth, dims=plan.dims, pool_op_kernel_sizes=plan.strides, enable_deep_supervision=True
    )
    with beginning():
        initialise(network)
    if state is None and variant.weights:
        (asset,) = variant.weights
        state = checkpoint.read(files[asset.id], asset.key)
    if state is not None:
        checkpoint.transfer(network, state)
    loss = DeepSupervision()
    return Recipe(
        network=network, state=network, config=config, patch=cast(Any, plan.patch),
        prepare=lambda case, reference: _prepared(case, reference, plan),
        loss=lambda given, target: loss([output.float() for output in given], target),
        labels=lambda given: given[0].argmax(1), optimiser=objective.optimiser,
        schedule=objective.learning_rate,
        rate=objective.RATE if state is None else objective.FINE_TUNING_RATE, clip=objective.CLIP,
        epochs=objective.EPOCHS, batches=objective.BATCHES_AN_EPOCH, batch=BATCH, mirror=plan.mirror,
        multiple=cast(Any, tuple(prod(s[axis] for s in plan.strides) for axis in range(3))),
    )  # fmt: skip


def _prepared(case: Volume, reference: Segmentation, plan: Plan) -> Prepared:
    """Raises :class:`InputError` for a reference on another grid, and what preparing a scan does."""
    check(case)
    check_grid(case, reference)
    view = View.of(case.geometry, plan)
    found = prepare(view.apply(case.voxels), view.spacing_mm, plan, case.name)
    labels = view.apply(reference.labels)[found.box].astype(np.int16)
    shape = found.image.shape[1:]
    if labels.shape != shape:
        labels = resample_labels(labels, shape, order=1, apart=found.apart).astype(np.int16)
    return Prepared(image=found.image, labels=np.ascontiguousarray(labels))
