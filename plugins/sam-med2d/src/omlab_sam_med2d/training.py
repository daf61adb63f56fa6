"""Fine-tuning as SAM-Med2D was: one round that trains the adapters, then rounds of the decoder alone.

The caller brings the data and the optimiser::

    loss = FineTuningLoss()
    optimizer = torch.optim.Adam(trainable(sam), lr=1e-4)
    for step in rounds(sam, image, masks, random):
        value = loss(step.logits, step.masks, step.qualities)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

Each step must be taken before the next one is asked for, since the decoder that it trains answers the next round.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_sam_med2d import protocol
from omlab_sam_med2d.network import Sam

#: Points of a correction round.
POINTS = (1, 3, 5, 9)
#: Greatest shift of a simulated box, in pixels.
SHIFT = 5


@attrs.frozen(eq=False)
class Step:
    """What the loss is taken of in one round.

    Attributes
    ----------
    logits : [masks, 1, S, S] of the kept alternatives, with gradients.
    masks : [masks, 1, S, S] reference, 0 and 1.
    qualities : [masks, 1] predicted qualities of the kept alternatives, with gradients.
    prompt : ``"box"``, ``"points"`` or ``"mask"``.
    """

    logits: Tensor
    masks: Tensor
    qualities: Tensor
    prompt: str


def trainable(sam: Sam) -> list[nn.Parameter]:
    """Freeze the encoder but for its adapters; returns what is trained: adapters, prompt encoder and decoder.

    Upstream's own training never moved the embeddings of points, of point labels 0 and 1 and of padding, by an
    oversight; here they are trained.
    """
    for name, parameter in sam.named_parameters():
        parameter.requires_grad_(not name.startswith("image_encoder.") or ".Adapter." in name)
    return [parameter for parameter in sam.parameters() if parameter.requires_grad]


def rounds(sam: Sam, images: Tensor, masks: Tensor, random: np.random.RandomState, *, count: int = 8) -> Iterator[Step]:
    """Rounds of one batch.

    Parameters
    ----------
    images : [batch, 3, S, S], as of :func:`omlab_sdk.segment_anything.frame.encoder_input`.
    masks : [batch, masks an image, S, S] of 0 and 1.
    count : rounds of the decoder after the first one.

    Yields
    ------
    The first round asks with a box or a point and trains the adapters, too. In the others the embedding is fixed, and
    the prompt is correction points alone with the mask of the round before; in one of the rounds 1 to ``count`` - 2 at
    random and in the last it is that mask alone.
    """
    each = masks.shape[1]
    truth = masks.reshape(-1, 1, *masks.shape[2:]).float()
    arrays = truth[:, 0].cpu().numpy()
    embedding = sam.image_encoder(images).repeat_interleave(each, dim=0)
    if random.random_sample() > 0.5:
        boxes = np.stack([protocol.box_of(mask, random, SHIFT) for mask in arrays])
        step = _step(sam, embedding, truth, "box", boxes=_like(truth, boxes))
    else:
        step = _step(sam, embedding, truth, "points", points=_first(truth, arrays, random))
    yield step[0]
    embedding = embedding.detach()
    bare = {int(random.randint(1, max(2, count - 1))), count - 1}
    for number in range(count):
        fed = step[1].detach().sigmoid()
        if number in bare:
            step = _step(sam, embedding, truth, "mask", mask=fed)
        else:
            points = _corrections(step[0].logits, truth, arrays, random, int(random.choice(POINTS)))
            step = _step(sam, embedding, truth, "points", points=points, mask=fed)
        yield step[0]


def _step(
    sam: Sam, embedding: Tensor, truth: Tensor, prompt: str, points: tuple[Tensor, Tensor] | None = None,
    boxes: Tensor | None = None, mask: Tensor | None = None,
) -> tuple[Step, Tensor]:  # fmt: skip
    """A round, and its low-resolution logits."""
    every, qualities = sam.decode(embedding, points, boxes, mask)
    best = 1 + qualities[:, 1:].argmax(dim=1)
    rows = torch.arange(len(best), device=best.device)
    low = every[rows, best][:, None]
    logits = F.interpolate(low, truth.shape[-2:], mode="bilinear", align_corners=False)
    return Step(logits, truth, qualities[rows, best][:, None], prompt), low


def _like(tensor: Tensor, array: np.ndarray) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(array), dtype=tensor.dtype, device=tensor.device)


def _first(truth: Tensor, arrays: np.ndarray, random: np.random.RandomState) -> tuple[Tensor, Tensor]:
    places, labels = zip(*(protocol.first_points(mask, random) for mask in arrays), strict=True)
    return _like(truth, np.stack(places)), _like(truth, np.stack(labels))


def _corrections(
    logits: Tensor, truth: Tensor, arrays: np.ndarray, random: np.random.RandomState, count: int
) -> tuple[Tensor, Tensor]:
    found = (logits.detach()[:, 0] > 0).cpu().numpy()
    pairs = [protocol.correction_points(a, b, random, count) for a, b in zip(found, arrays, strict=True)]
    places, labels = zip(*pairs, strict=True)
    return _like(truth, np.stack(places)), _like(truth, np.stack(labels))
