"""Training as SAM-Med3D was: eleven rounds of clicks on one batch, with one loss over all of them.

The caller brings scans and masks on the network's grid, and a loop; optimiser and rates are
upstream's (:func:`optimiser`, :func:`schedule`)::

    loss = ClickLoss(sam)
    made = [one for pair in pairs if (one := example(*pair, random)) is not None]
    cubes, masks = (torch.from_numpy(np.stack(part)) for part in zip(*made))
    optimizer = optimiser(sam)
    value = loss(cubes, masks, random)
    value.backward()
    optimizer.step()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from omlab_sam_med3d import protocol
from omlab_sam_med3d.grid import around, normalised
from omlab_sam_med3d.losses import DiceCELoss
from omlab_sam_med3d.network import Sam3d

#: Rounds of one batch.
ROUNDS = 11
#: A mask counts as found for the next click where its logit is above.
LEVEL = 0.5
#: Length of upstream's fine-tuning, the epochs at which the rate drops, cubes a batch, and batches whose gradients make
#: one step.
EPOCHS, DROPS, BATCH, ACCUMULATED = 200, (120, 180), 12, 20
#: Masks of so many voxels, or fewer, were drawn again.
FEWEST = 1000


def example(
    scan: NDArray[Any], mask: NDArray[np.generic], random: np.random.RandomState, size: Sequence[int] = (128, 128, 128)
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """A cube [1, *size] and its mask, as upstream's loader makes them: each axis flipped by even chance, cut out
    around the mask, zeros beyond the scan, normalised. ``None`` where the cube has too little of the mask (upstream
    then draws another scan), or no image.

    Parameters
    ----------
    scan, mask : [x, y, z] on the network's grid of 1.5 mm; what is above 0 in the mask belongs to it. CT is clipped
        before (:data:`omlab_sam_med3d.session.CT_RANGE`), as upstream's loader does.

    Raises
    ------
    ValueError
        They differ in shape.
    """
    if scan.shape != mask.shape:
        raise ValueError(f"a scan of {scan.shape} has a mask of {mask.shape}")
    axes = tuple(axis for axis in range(3) if random.random_sample() < 0.5)
    image, truth = np.flip(scan, axes), np.flip(mask, axes) > 0
    begin = around(truth, size)
    cube, inside = np.zeros(tuple(size), np.float32), np.zeros(tuple(size), np.float32)
    there = tuple(slice(max(0, b), max(0, min(n, b + s))) for b, n, s in zip(begin, scan.shape, size, strict=True))
    here = tuple(slice(t.start - b, t.stop - b) for t, b in zip(there, begin, strict=True))
    cube[here], inside[here] = image[there], truth[there]
    shown = normalised(cube) if inside.sum() > FEWEST else None
    return None if shown is None else (shown[None], inside[None])


class ClickLoss(nn.Module):
    """The objective: a batch of cubes and masks to the loss summed over the rounds.

    The encoder runs once. The mask input is zeros at first and then the logits of the round before; a click is drawn
    where they and the reference differ. At one round drawn from the second to the eighth and at the last one there is
    no click, only that mask.

    Parameters
    ----------
    all_clicks : each round has all clicks so far, in place of the newest alone.
    """

    def __init__(
        self, sam: Sam3d, loss: nn.Module | None = None, *, rounds: int = ROUNDS, all_clicks: bool = False
    ) -> None:
        super().__init__()
        self.sam, self.loss = sam, loss or DiceCELoss()
        self.rounds, self.all_clicks = rounds, all_clicks

    def forward(self, cubes: Tensor, masks: Tensor, random: np.random.RandomState) -> Tensor:
        """
        Parameters
        ----------
        cubes : [batch, 1, S, S, S], as of :func:`omlab_sam_med3d.grid.normalised`.
        masks : [batch, 1, S, S, S] of 0 and 1; none may be empty.
        """
        truth = masks.float()
        arrays = truth[:, 0].cpu().numpy()
        embedding = self.sam.image_encoder(cubes)
        # Gradients do not flow from one round into the one before.
        low = truth.new_zeros(len(truth), 1, *(n // 4 for n in truth.shape[2:]))
        found = np.zeros(arrays.shape, bool)
        bare = {int(random.randint(2, 9)), self.rounds - 1}
        places = truth.new_zeros(len(truth), 0, 3)
        labels = truth.new_zeros(len(truth), 0)
        total = truth.new_zeros(())
        for number in range(self.rounds):
            points = None
            if number not in bare:
                clicks = [protocol.random_click(f, t, random) for f, t in zip(found, arrays, strict=True)]
                place = truth.new_tensor([[click[0]] for click in clicks])
                label = truth.new_tensor([[click[1]] for click in clicks])
                keep = self.all_clicks
                places = torch.cat([places, place], dim=1) if keep else place
                labels = torch.cat([labels, label], dim=1) if keep else label
                points = (places, labels)
            logits, _ = self.sam.decode(embedding, points, low)
            low = logits[:, :1]
            whole = self.sam.upsampled(low)
            total = total + self.loss(whole, truth)
            low = low.detach()
            found = (whole.detach()[:, 0] > LEVEL).cpu().numpy()
        return total


def optimiser(sam: Sam3d, rate: float = 8e-4) -> torch.optim.AdamW:
    """Upstream's: prompt encoder and decoder at a tenth of the encoder's rate."""
    groups = [
        {"params": list(sam.image_encoder.parameters()), "lr": rate},
        {"params": list(sam.prompt_encoder.parameters()), "lr": rate / 10},
        {"params": list(sam.mask_decoder.parameters()), "lr": rate / 10},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), weight_decay=0.1)


def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.MultiStepLR:
    """Upstream's rates: a tenth from each of ``DROPS`` on; step it after every epoch."""
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, DROPS, gamma=0.1)
