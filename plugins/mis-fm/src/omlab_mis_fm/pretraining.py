"""Pre-training by Volume Fusion on scans without labels, as upstream's LUNA demonstration runs it.

How large the validation set is, and after how many steps it is asked, are not told; they are ours.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from omlab.errors import InputError
from omlab.files import whole
from omlab_mis_fm.checkpoint import KEY
from omlab_mis_fm.fusion import VolumeFusion
from omlab_mis_fm.losses import FusionObjective
from omlab_mis_fm.tuning import optimiser

if TYPE_CHECKING:
    from omlab.progress import Listener
    from omlab_sdk.training import Fitted

#: Of the rate, which halves every so many steps; batches between two validations, batches in all, examples a batch.
RATE, HALF_STEPS = 1e-3, 20_000
BATCHES, STEPS, BATCH = 250, 80_000, 2
#: Examples of the validation set.
FIXED = 8


@attrs.frozen(eq=False, kw_only=True)
class Fusions:
    """Batches of fused examples; what is in one follows from the seed, the epoch and its number alone.

    Attributes
    ----------
    volumes : [1, D, H, W] each, in -1..1 (:func:`omlab_mis_fm.preparing.sub_volumes`); drawn evenly.
    batches, size : batches an epoch, examples a batch.
    """

    volumes: Sequence[NDArray[np.float32]]
    task: VolumeFusion = attrs.field(factory=VolumeFusion)
    batches: int = BATCHES
    size: int = BATCH
    seed: int = 0

    def __len__(self) -> int:
        return self.batches

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Images [n, 1, D, H, W] float32 and labels [n, 1, D, H, W] int64."""
        draw = random.Random(f"{self.seed} {epoch} {index}")
        made = [self.task.make(self.volumes[draw.randrange(len(self.volumes))], draw) for _ in range(self.size)]
        images = np.stack([one.image for one in made]).astype(np.float32)
        return torch.from_numpy(images), torch.from_numpy(np.stack([one.label for one in made]).astype(np.int64))

    def fixed(self, count: int = FIXED) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of ``count`` examples in all that no epoch has."""
        for index in range(-(-count // self.size)):
            yield self.batch(-1, index)


def schedule(epoch: float, rate: float = RATE, batches: int = BATCHES) -> float:
    """Learning rate at a fractional epoch."""
    return float(rate * 0.5 ** (int(epoch * batches) // HALF_STEPS))


def dice(network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], classes: int) -> float:
    """Mean over the classes, background included, of the Dice over all voxels of ``batches`` together; classes that
    occur nowhere are left out."""
    device = next(network.parameters()).device
    both, sizes = torch.zeros(classes), torch.zeros(classes)
    for images, labels in batches:
        given = network(images.to(device))
        found = (given[0] if isinstance(given, list) else given).argmax(1).cpu()
        for value in range(classes):
            p, t = found == value, labels[:, 0] == value
            both[value] += int((p & t).sum())
            sizes[value] += int(p.sum()) + int(t.sum())
    return float((2 * both / sizes)[sizes > 0].mean())


def train(
    network: nn.Module, fusions: Fusions, *, epochs: int = STEPS // BATCHES, rate: float = RATE, seed: int = 0,
    device: str = "auto", folder: Path | None = None, listener: Listener | None = None,
) -> Fitted:  # fmt: skip
    """Pre-train PCT-Net or FMUNet in place; it has the weights of the best validation afterwards.

    Parameters
    ----------
    network : of as many classes as the task; its levels all learn where it gives several.
    epochs : of ``fusions.batches`` steps.
    folder : with it the training goes on where it was interrupted (:func:`omlab_sdk.training.fit`).

    Raises
    ------
    omlab.errors.InputError
        There are no volumes.
    omlab_sdk.training.TrainingError
        The loss is not finite.
    """
    from omlab.progress import silent
    from omlab_sdk.training import Settings, fit

    if not len(fusions.volumes):
        raise InputError("Volume Fusion has no volume to learn from", remedy="Give sub-volumes of unlabelled scans")
    classes = fusions.task.classes
    objective = FusionObjective(network, classes)
    settings = Settings(
        epochs=epochs, lr=rate, seed=seed, device=device, monitor="dice",
        optimiser=lambda given, settings: optimiser(given, settings.lr),
        schedule=lambda epoch: schedule(epoch, rate, fusions.batches),
    )  # fmt: skip
    return fit(
        objective, lambda given, batch: given(*batch), fusions,
        validate=lambda given: {"dice": dice(given.network, fusions.fixed(), classes)}, settings=settings,
        folder=folder, what="Volume Fusion", listener=listener or silent,
    )  # fmt: skip


def save(network: nn.Module, path: str | Path) -> None:
    """Write a file like upstream's, from which ``omlab adapt`` and :func:`omlab_mis_fm.checkpoint.start` begin."""
    content: dict[str, Any] = {KEY: network.state_dict()}
    with whole(Path(path)) as temporary:
        torch.save(content, temporary)
