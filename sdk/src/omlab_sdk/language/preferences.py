"""Learning from experts' rankings: the reward model's loss, and proximal policy optimisation. Needs torch.

The standard forms (Ouyang et al. 2022; Schulman et al. 2017); the authors of PULSE publish no parameters of theirs.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def ranking_loss(rewards: Tensor, ranks: Tensor) -> Tensor:
    """Mean of -log sigmoid(better - worse) over all pairs of answers to one question that experts told apart.

    Parameters
    ----------
    rewards : [answers].
    ranks : [answers]; smaller is better, equal ones form no pair. At least two must differ.
    """
    better = ranks[:, None] < ranks[None, :]
    if not better.any():
        raise ValueError("all answers have the same rank, there is nothing to learn")
    gaps = rewards[:, None] - rewards[None, :]
    return -F.logsigmoid(gaps[better]).mean()


class RewardHead(nn.Module):
    """A number for a whole answer: a linear layer on the hidden state of its last token."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.value = nn.Linear(hidden, 1)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[batch] of ``hidden`` [batch, length, hidden] and ``mask`` [batch, length], padded on either side."""
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * (places + 1)).argmax(dim=1)
        out: Tensor = self.value(hidden[torch.arange(len(hidden)), last]).squeeze(-1)
        return out


def token_log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """[batch, length - 1] log-probability of every token but the first, given those before it."""
    return torch.log_softmax(logits[:, :-1].float(), dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)


def token_rewards(score: Tensor, policy: Tensor, reference: Tensor, mask: Tensor, *, penalty: float = 0.1) -> Tensor:
    """[batch, tokens] reward of every token: minus the penalty times how much likelier the policy finds it than the
    supervised model does, and at the last token of the answer the reward model's ``score`` [batch].

    ``policy`` and ``reference`` are log-probabilities, ``mask`` is 1 on the answer; all [batch, tokens].
    """
    rewards = -penalty * (policy - reference) * mask
    places = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * (places + 1)).argmax(dim=1)
    return rewards.index_put((torch.arange(len(score)), last), score, accumulate=True)


def advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float = 1.0, decay: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantages and returns [batch, tokens] (Schulman et al. 2016); 0 outside of the answers.

    ``rewards``, ``values`` and ``mask`` are [batch, tokens]; the value after the last token of an answer is 0.
    """
    found = torch.zeros_like(rewards)
    carried = torch.zeros(len(rewards), dtype=rewards.dtype)
    following = torch.zeros(len(rewards), dtype=rewards.dtype)
    for place in reversed(range(rewards.shape[1])):
        there = mask[:, place]
        surprise = rewards[:, place] + discount * following - values[:, place]
        carried = (surprise + discount * decay * carried) * there
        following = values[:, place] * there
        found[:, place] = carried
    return found, (found + values) * mask


@attrs.frozen
class PPOLosses:
    """Losses and what to watch: ``total`` is what to step on."""

    total: Tensor
    policy: Tensor
    value: Tensor
    clipped: Tensor


class PPO(nn.Module):
    """Clipped losses of the policy and of the value.

    Parameters
    ----------
    clip : a token's probability may not gain by leaving 1 - clip to 1 + clip times the old one.
    value_clip : the value may not gain by moving farther than this from the old one.
    value_weight : of the value's loss in the total.
    normalise : advantages of a batch are brought to mean 0 and deviation 1.
    """

    def __init__(
        self, clip: float = 0.2, value_clip: float = 0.2, value_weight: float = 0.1, *, normalise: bool = True
    ) -> None:
        super().__init__()
        self.clip, self.value_clip, self.value_weight, self.normalise = clip, value_clip, value_weight, normalise

    def forward(
        self, new: Tensor, old: Tensor, values: Tensor, old_values: Tensor, gains: Tensor, returns: Tensor, mask: Tensor
    ) -> PPOLosses:
        """All [batch, tokens]: log-probabilities now and when the answers were drawn, values now and then, advantages,
        returns, and 1 on the answers."""
        if self.normalise:
            count = mask.sum()
            mean = (gains * mask).sum() / count
            deviation = (((gains - mean) ** 2 * mask).sum() / count).sqrt()
            gains = (gains - mean) / (deviation + 1e-8)
        ratio = torch.exp((new - old) * mask)
        bounded = ratio.clamp(1 - self.clip, 1 + self.clip)
        policy = _mean(-torch.minimum(ratio * gains, bounded * gains), mask)
        near = old_values + (values - old_values).clamp(-self.value_clip, self.value_clip)
        value = 0.5 * _mean(torch.maximum((values - returns) ** 2, (near - returns) ** 2), mask)
        clipped = _mean((ratio != bounded).to(new.dtype), mask)
        return PPOLosses(policy + self.value_weight * value, policy, value, clipped)


def _mean(numbers: Tensor, mask: Tensor) -> Tensor:
    return (numbers * mask).sum() / mask.sum()
