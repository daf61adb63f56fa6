"""Supervised fine-tuning of language models: loss on the answer. Needs torch.

Low-rank adapters are in :mod:`omlab_sdk.networks.low_rank`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

#: Label of a token that is read and not learnt.
IGNORED = -100


def causal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of every token given those before it.

    Parameters
    ----------
    logits : [batch, length, vocabulary].
    labels : [batch, length] ids, :data:`IGNORED` where nothing is learnt; the same columns as the input's.
    """
    ahead = logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(ahead, labels[:, 1:].flatten(), ignore_index=IGNORED)


def batched(rows: Iterable[tuple[list[int], list[int]]], padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels [batch, length] of rows (ids, labels), padded on the right."""
    found = list(rows)
    longest = max(len(ids) for ids, _ in found)
    ids = torch.full((len(found), longest), padding)
    labels = torch.full((len(found), longest), IGNORED)
    mask = torch.zeros((len(found), longest), dtype=torch.int64)
    for number, (row, learnt) in enumerate(found):
        ids[number, : len(row)] = torch.tensor(row)
        labels[number, : len(learnt)] = torch.tensor(learnt)
        mask[number, : len(row)] = 1
    return ids, mask, labels
