"""Training as SAM-Med3D was: eleven rounds of clicks on one batch, with one loss over all of them.

The caller brings the data and the optimiser (:func:`optimiser` makes upstream's)::

    loss = ClickLoss(sam)
    optimizer = optimiser(sam)
    value = loss(cubes, masks, random)
    value.backward()
    optimizer.step()
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from omlab_sam_med3d import protocol
from omlab_sam_med3d.losses import DiceCELoss
from omlab_sam_med3d.network import Sam3d

#: Rounds of one batch.
ROUNDS = 11
#: A mask counts as found for the next click where its logit is above.
LEVEL = 0.5
#: Masks of fewer voxels were drawn again.
FEWEST = 1000


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
