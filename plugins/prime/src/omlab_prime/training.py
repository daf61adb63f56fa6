"""What PRIME was trained with: masked residues and growth temperatures together, and fine-tuning for fitness.

Published code gives the terms and their weights (fact: 15 % of residues masked, 0.01 for the temperature term); the
target of the auxiliary structure head is documented nowhere and left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_prime.network import Prime
from omlab_prime.vocabulary import AMINO_ACIDS, CLS, EOS, ID, MASK, PAD

#: Weight of the temperature term.
TEMPERATURE_WEIGHT = 0.01
#: Label of a token that is not to be guessed.
IGNORED = -100


def mask_residues(
    ids: Tensor, *, share: float = 0.15, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Hide residues: of ``share`` of them, 80 % become the mask token, 10 % another amino acid, 10 % stay.

    Parameters
    ----------
    ids : int64 [batch, tokens].

    Returns
    -------
    Ids to show, and labels: the residue where it was chosen, :data:`IGNORED` elsewhere.
    """
    fixed = (ids == CLS) | (ids == EOS) | (ids == PAD)
    chosen = (torch.rand(ids.shape, generator=generator) < share) & ~fixed
    fate = torch.rand(ids.shape, generator=generator)
    letters = torch.tensor([ID[letter] for letter in AMINO_ACIDS])
    random = letters[torch.randint(len(letters), ids.shape, generator=generator)]
    shown = torch.where(chosen & (fate < 0.8), torch.full_like(ids, MASK), ids)
    shown = torch.where(chosen & (fate >= 0.9), random, shown)
    return shown, torch.where(chosen, ids, torch.full_like(ids, IGNORED))


class PretrainingLoss(nn.Module):
    """Cross-entropy of hidden residues plus 0.01 times the squared error of the temperature; a term without a target is
    left out."""

    def __init__(self, network: Prime) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, ids: Tensor, mask: Tensor, labels: Tensor | None = None, temperatures: Tensor | None = None
    ) -> Tensor:
        """A number from ids, mask and labels int64 [batch, tokens] and temperatures float32 [batch] in degrees Celsius.

        Raises
        ------
        ValueError
            Neither labels nor temperatures are given.
        """
        logits, _, _, predicted = self.network(ids, mask)
        terms = []
        if labels is not None:
            terms.append(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED))
        if temperatures is not None:
            terms.append(TEMPERATURE_WEIGHT * F.mse_loss(predicted, temperatures))
        if not terms:
            raise ValueError("a loss needs labels or temperatures")
        return torch.stack(terms).sum()


class FitnessHead(nn.Module):
    """Measured fitness from pooled sequences, for supervised fine-tuning of the whole network by squared error."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, sequences: Tensor) -> Tensor:
        """[batch, width] to [batch]: z-scores by the mean and deviation of the training set."""
        return self.out(torch.tanh(self.hidden(sequences)))[:, 0]  # type: ignore[no-any-return]
