"""Brain regions by CEA-Net: slices of two views out of a brain and back, the semi-supervised training, its score.

An atlas whose regions are known teaches slices by their masks; a brain without masks teaches by agreement with a mean
teacher. Upstream's weights, rates and sizes are here by name. What is known of upstream leaves open, and is ours:

- which way slices are flipped (left to right), and that the teacher sees them as they are and its answer is flipped;
- that the agreement of student and teacher weighs 1 from the first step on, and is taken on probabilities;
- how slices are resized (linear, corners not aligned), and which axis a coronal slice's rows are (from top to bottom);
- statistics of the teacher's batch norms: they are the student's, and its answers depend on no batch;
- whether one network serves both views: both ways work, as a network takes slices of any size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from omlab.errors import InputError

if TYPE_CHECKING:
    from omlab.progress import Listener
    from omlab_sdk.training import Fitted

#: Weight of a region's pixels in the cross entropy; share of the teacher that stays at each step.
POSITIVE, DECAY = 50.0, 0.5
#: Of RMSprop; the rate is a tenth every so many epochs.
RATE, MOMENTUM, WEIGHT_DECAY, DROP_EPOCHS, DROP = 1e-4, 0.9, 1e-6, 30, 0.1
EPOCHS, LABELLED, UNLABELLED = 100, 8, 8
#: A region is where its probability is above.
THRESHOLD = 0.7
#: Voxels (z, y, x) of the atlas: from top to bottom, from front to back, from left to right.
ATLAS = (320, 528, 456)


@attrs.frozen
class View:
    """Slices of a brain [z, y, x].

    Attributes
    ----------
    axis : across the slices.
    size : (rows, columns) that the network sees.
    """

    axis: int
    size: tuple[int, int]

    def slices(self, brain: NDArray[Any]) -> NDArray[np.float32]:
        """Of a brain [z, y, x]: [slice, 1, rows, columns], each scaled to 0..1 by its range; an even one is 0.

        Raises
        ------
        omlab.errors.InputError
            It is no volume, or has values that are not finite.
        """
        if brain.ndim != 3 or not brain.size or not np.isfinite(brain).all():
            raise InputError(f"a brain is [z, y, x] of finite values, found an array of {brain.shape}")
        planes = np.moveaxis(brain, self.axis, 0).astype(np.float32)
        low, high = planes.min(axis=(1, 2), keepdims=True), planes.max(axis=(1, 2), keepdims=True)
        planes = (planes - low) / np.where(high > low, high - low, 1)
        return np.asarray(_resized(torch.from_numpy(planes)[:, None], self.size).numpy())

    def masks(self, labels: NDArray[np.integer[Any]], regions: int) -> NDArray[np.float32]:
        """Of a label map [z, y, x]: [slice, region, rows, columns], 1 where the label is that of the region, from 1 on;
        the nearest voxel."""
        planes = np.ascontiguousarray(np.moveaxis(labels, self.axis, 0))
        masks = np.stack([planes == number + 1 for number in range(regions)], axis=1).astype(np.float32)
        return np.asarray(F.interpolate(torch.from_numpy(masks), self.size, mode="nearest-exact").numpy())

    def restacked(self, slices: Tensor, shape: Sequence[int]) -> Tensor:
        """Of [slice, region, rows, columns]: [region, z, y, x] on a grid of ``shape``, linear; gradients go through."""
        target = [int(n) for n in shape]
        depth = target.pop(self.axis)
        volume = _resized(slices, target).movedim(0, 1)  # [region, slice, ...]
        if volume.shape[1] != depth:
            volume = F.interpolate(volume[None], (depth, *target), mode="trilinear", align_corners=False)[0]
        return volume.movedim(1, 1 + self.axis)


#: What upstream trains on.
CORONAL, HORIZONTAL = View(1, (320, 448)), View(0, (512, 448))


def _resized(slices: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(slices.shape[2:]) == tuple(size):
        return slices
    return F.interpolate(slices, tuple(size), mode="bilinear", align_corners=False)


def labels_of(probabilities: NDArray[np.floating[Any]], threshold: float = THRESHOLD) -> NDArray[np.uint8]:
    """Label map of [region, ...]: k + 1 where region k is more probable than ``threshold``; a later region wins."""
    found = np.zeros(probabilities.shape[1:], np.uint8)
    for number, region in enumerate(probabilities):
        found[region > threshold] = number + 1
    return found


def dice(prediction: NDArray[np.integer[Any]], truth: NDArray[np.integer[Any]], regions: int) -> list[float]:
    """3-D Dice of each region of two label maps [z, y, x]; NaN where neither has it.

    Raises
    ------
    ValueError
        They differ in shape.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"label maps of {prediction.shape} and {truth.shape} cannot be compared")
    found = []
    for value in range(1, regions + 1):
        p, t = prediction == value, truth == value
        total = int(p.sum()) + int(t.sum())
        found.append(2 * int((p & t).sum()) / total if total else float("nan"))
    return found


@torch.inference_mode()
def predict(
    network: nn.Module, brain: NDArray[Any], view: View, *, shape: Sequence[int] | None = None, batch: int = 8
) -> NDArray[np.float32]:
    """Probabilities [region, z, y, x] of a brain [z, y, x] by the slices of a view, on its grid or one of ``shape``.

    Parameters
    ----------
    network : to logits, in evaluation mode.
    shape : say :data:`ATLAS`.
    """
    slices = torch.from_numpy(view.slices(brain))
    device = next(network.parameters()).device
    found = [torch.sigmoid(network(part.to(device))).cpu() for part in slices.split(batch)]
    return np.asarray(view.restacked(torch.cat(found), shape or brain.shape).numpy())


def agreement(coronal: Tensor, horizontal: Tensor, shape: Sequence[int], *, detached: bool = True) -> Tensor:
    """How far the probabilities of two views lie apart: both restacked to [region, z, y, x], the mean squared
    difference.

    Parameters
    ----------
    coronal, horizontal : [slice, region, rows, columns] of all slices of a brain, in order.
    detached : without a gradient, as upstream has it, so that it is a figure and teaches nothing.
    """
    first, second = CORONAL.restacked(coronal, shape), HORIZONTAL.restacked(horizontal, shape)
    found = F.mse_loss(first, second)
    return found.detach() if detached else found


class MeanTeacher(nn.Module):
    """The training objective of one view. The student learns, the teacher is its running mean.

    Parameters
    ----------
    student : :class:`omlab_axon_seg.ceanet.CEANet`.
    weight : of the agreement with the teacher.
    """

    def __init__(self, student: nn.Module, *, decay: float = DECAY, weight: float = 1.0) -> None:
        super().__init__()
        self.student, self.teacher = student, copy.deepcopy(student)
        # Buffers belong to the state of a training, which parameters that do not learn are left out of.
        for module in self.teacher.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
        self.decay, self.weight = decay, weight
        self.register_buffer("positive", torch.tensor(POSITIVE))

    def train(self, mode: bool = True) -> MeanTeacher:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def follow(self) -> None:
        """Move the teacher towards the student; to be called after each step."""
        own = dict(self.teacher.named_buffers())
        for name, other in self.student.named_parameters():
            own[name].lerp_(other, 1 - self.decay)
        for name, other in self.student.named_buffers():
            own[name].copy_(other)

    def forward(self, labelled: Tensor, masks: Tensor, unlabelled: Tensor) -> Tensor:
        """Loss of slices [n, 1, rows, columns] with their masks [n, region, rows, columns], and of slices without."""
        return self.supervised(labelled, masks) + self.weight * self.consistency(unlabelled)

    def supervised(self, slices: Tensor, masks: Tensor) -> Tensor:
        """Binary cross entropy over all pixels and regions."""
        positive = cast(Tensor, self.positive)
        return F.binary_cross_entropy_with_logits(self.student(slices), masks, pos_weight=positive)

    def consistency(self, slices: Tensor) -> Tensor:
        """Mean squared difference of the student's answer to flipped slices and the teacher's flipped answer."""
        with torch.no_grad():
            wanted = torch.sigmoid(self.teacher(slices)).flip(-1)
        return F.mse_loss(torch.sigmoid(self.student(slices.flip(-1))), wanted)


def optimiser(network: nn.Module, rate: float = RATE) -> torch.optim.RMSprop:
    """The optimiser of the recipe, of what learns."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.RMSprop(learning, rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def schedule(epoch: float, rate: float = RATE) -> float:
    """Learning rate at a fractional epoch."""
    return rate * DROP ** (int(epoch) // DROP_EPOCHS)


@attrs.frozen(eq=False, kw_only=True)
class Slices:
    """Batches of slices, drawn without replacement in every epoch by the seed: an epoch shows every labelled slice once
    (what is left over of a last batch is not shown), and as many of the unlabelled ones, again from the first where
    there are fewer.

    Attributes
    ----------
    labelled, masks : [n, 1, rows, columns] and [n, region, rows, columns] (:meth:`View.slices`, :meth:`View.masks`).
    unlabelled : [m, 1, rows, columns].
    sizes : labelled and unlabelled slices a batch.
    """

    labelled: NDArray[np.float32]
    masks: NDArray[np.float32]
    unlabelled: NDArray[np.float32]
    sizes: tuple[int, int] = (LABELLED, UNLABELLED)
    seed: int = 0

    def __len__(self) -> int:
        return max(1, len(self.labelled) // self.sizes[0])

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Labelled slices, their masks, unlabelled slices."""
        first, second = (
            self._drawn(epoch, index, part, len(slices), size)
            for part, (slices, size) in enumerate(zip((self.labelled, self.unlabelled), self.sizes, strict=True))
        )
        arrays = self.labelled[first], self.masks[first], self.unlabelled[second]
        return cast("tuple[Tensor, Tensor, Tensor]", tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))

    def _drawn(self, epoch: int, index: int, part: int, count: int, size: int) -> NDArray[np.intp]:
        order = np.random.default_rng([self.seed, epoch, part]).permutation(count)
        return order[np.arange(index * size, (index + 1) * size) % count]


def train(
    student: nn.Module, slices: Slices, *, epochs: int = EPOCHS, rate: float = RATE, seed: int = 0,
    device: str = "auto", folder: Path | None = None, listener: Listener | None = None,
) -> tuple[MeanTeacher, Fitted]:  # fmt: skip
    """Train a student in place by the recipe; (the objective with the teacher, how it went).

    With ``folder`` it goes on where it was interrupted (:func:`omlab_sdk.training.fit`).

    Raises
    ------
    omlab.errors.InputError
        There are no slices, or masks of other shapes.
    omlab_sdk.training.TrainingError
        The loss is not finite.
    """
    from omlab.progress import silent
    from omlab_sdk.training import Settings, fit

    if not len(slices.labelled) or not len(slices.unlabelled) or len(slices.masks) != len(slices.labelled):
        raise InputError(
            f"training takes slices with a mask each, and slices without: found {len(slices.labelled)}, "
            f"{len(slices.masks)} masks, and {len(slices.unlabelled)}"
        )
    objective = MeanTeacher(student)

    def loss(network: Any, given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        # The same as after each step: before the first one both are alike.
        objective.follow()
        return cast(Tensor, network(*given))

    settings = Settings(
        epochs=epochs, lr=rate, seed=seed, device=device, optimiser=lambda network, given: optimiser(network, given.lr),
        schedule=lambda epoch: schedule(epoch, rate),
    )  # fmt: skip
    fitted = fit(
        objective, loss, slices, settings=settings, folder=folder, what="brain regions", listener=listener or silent
    )
    objective.follow()
    return objective, fitted
