"""The three stages of PathoDuet's pre-training, with their objectives.

1. :class:`MoCo`: contrast of two views of a patch (MoCo v3).
2. :class:`Bridge`: cross-scale positioning. The pretext token of a region, made from the patch that lies in it, tells
   where the patch is; the region's feature there is drawn to the patch's own. Gives the H&E model.
3. :class:`CrossStain`: cross-stain transferring. The feature of an H&E image, shifted towards the stain of a small IHC
   crop, is what the IHC image of the same place must match. Gives the IHC model.

Each holds a base and a momentum encoder. ``forward`` gives the loss, ``steps`` all that leads to it by name. They are
meant for train mode: batch norms use the batch and move their running statistics at every pass, so the order of passes
matters. Views are [batch, 3, size, size] in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_pathoduet.network import PREFIX, VisionTransformer

Encoder = Callable[[], VisionTransformer]


def mlp(sizes: list[int]) -> nn.Sequential:
    """Linear layers without bias through ``sizes``; batch norm and ReLU between, batch norm without weights at the
    end."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after, affine=not last)]
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def contrast(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """MoCo v3's loss: each query [batch, dim] must find its own key among the keys of all processes."""
    queries, keys = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    keys, rank = _gathered(keys)
    labels = torch.arange(len(queries), device=queries.device) + len(queries) * rank
    return F.cross_entropy(queries @ keys.T / temperature, labels) * (2 * temperature)


def likeness(one: Tensor, other: Tensor) -> Tensor:
    """1.001 minus the mean cosine similarity."""
    return 1.001 - F.cosine_similarity(one, other, dim=1, eps=1e-8).mean()


def _gathered(keys: Tensor) -> tuple[Tensor, int]:
    """Keys of all processes, and the rank of this one; no gradient crosses processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return keys, 0
    own = keys.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, own)
    return torch.cat(parts), torch.distributed.get_rank()


def adapt_instance(content: Tensor, style: Tensor) -> Tensor:
    """Tokens [batch, tokens, width] normalised over tokens in each channel, with ``style`` [batch, width] added.

    The published form of adaptive instance normalisation: the spread of the style has no part in it.
    """
    spread, mean = torch.std_mean(content, dim=1, keepdim=True)
    return (content - mean) / spread + style[:, None]


class MoCo(nn.Module):
    """Stage 1.

    Parameters
    ----------
    encoder : makes the encoder, twice; its head is replaced by the projector.
    dim, mlp_dim : width of the projected features, and of the hidden layers of projector and predictor.
    temperature : of the contrast.
    """

    def __init__(
        self, encoder: Encoder | None = None, *, dim: int = 256, mlp_dim: int = 4096, temperature: float = 1.0
    ) -> None:
        super().__init__()
        make = encoder or (lambda: VisionTransformer(global_pool="avg"))
        self.temperature = temperature
        self.base_encoder, self.momentum_encoder = make(), make()
        self.width = self.base_encoder.pos_embed.shape[2]
        for one in (self.base_encoder, self.momentum_encoder):
            one.head = mlp([self.width, mlp_dim, mlp_dim, dim])
        self.predictor = mlp([dim, mlp_dim, dim])
        self.momentum_encoder.load_state_dict(self.base_encoder.state_dict())
        self.momentum_encoder.requires_grad_(False)

    @torch.no_grad()
    def update_momentum(self, m: float) -> None:
        """Move the momentum encoder's parameters towards the base encoder's; batch-norm statistics stay its own."""
        for base, slow in zip(self.base_encoder.parameters(), self.momentum_encoder.parameters(), strict=True):
            slow.mul_(m).add_(base.detach() * (1.0 - m))

    def _queries(self, view1: Tensor, view2: Tensor) -> dict[str, Tensor]:
        feat1, feat2 = self.base_encoder(view1)[1], self.base_encoder(view2)[1]
        return {"feat1": feat1, "feat2": feat2, "q1": self.predictor(feat1), "q2": self.predictor(feat2)}

    @torch.no_grad()
    def _keys(self, view1: Tensor, view2: Tensor, m: float) -> dict[str, Tensor]:
        self.update_momentum(m)
        return {"k1": self.momentum_encoder(view1)[1], "k2": self.momentum_encoder(view2)[1]}

    def _contrasts(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "moco_12": contrast(found["q1"], found["k2"], self.temperature),
            "moco_21": contrast(found["q2"], found["k1"], self.temperature),
        }

    def steps(self, view1: Tensor, view2: Tensor, m: float = 0.99) -> dict[str, Tensor]:
        """Everything by name: ``feat*`` projections, ``q*`` queries, ``k*`` keys, ``moco_*`` terms, ``loss``."""
        found = self._queries(view1, view2)
        found |= self._keys(view1, view2, m)
        found |= self._contrasts(found)
        return found | {"loss": found["moco_12"] + found["moco_21"]}

    def forward(self, view1: Tensor, view2: Tensor, m: float = 0.99) -> Tensor:
        """The loss. The momentum encoder has moved by ``m`` before it looks."""
        return self.steps(view1, view2, m)["loss"]


class Bridge(MoCo):
    """Stage 2; ``balance`` weighs the likeness of region and patch against the contrast (upstream's ``B_T``)."""

    def __init__(
        self, encoder: Encoder | None = None, *, dim: int = 256, mlp_dim: int = 4096, temperature: float = 0.2,
        balance: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(encoder, dim=dim, mlp_dim=mlp_dim, temperature=temperature)
        self.balance = balance
        self.positioner = mlp([self.width, mlp_dim, self.base_encoder.patch_embed.num_patches])

    def steps(  # type: ignore[override]
        self, view1: Tensor, view2: Tensor, ref: Tensor, region: Tensor, m: float = 0.99
    ) -> dict[str, Tensor]:
        """Like :meth:`MoCo.steps`, with ``out_region`` tokens, ``pos_logits`` over the region's patches, ``K1`` and
        ``Q1`` of the attended feature, and the four terms ``byol``."""
        found = self._queries(view1, view2)
        # The head runs on the region too: its answer is not used, but it moves the statistics of the batch norms.
        out_region, feat_region = self.base_encoder(region, ref)
        pos_logits = self.positioner(out_region[:, 0])
        where = pos_logits.softmax(dim=1)
        attended = torch.einsum("bn,bnd->bd", where, out_region[:, PREFIX:])
        key = self.base_encoder.head(attended)
        query = self.predictor(key)
        found |= {
            "out_region": out_region, "feat_region": feat_region, "pos_logits": pos_logits, "attended": attended,
            "K1": key, "Q1": query,
        }  # fmt: skip
        found |= self._keys(view1, view2, m)
        found |= self._contrasts(found)
        byol = torch.stack([
            likeness(query, found["feat1"].detach()), likeness(query, found["feat2"].detach()),
            likeness(found["q1"], key.detach()), likeness(found["q2"], key.detach()),
        ])  # fmt: skip
        loss = found["moco_12"] + found["moco_21"] + self.balance * byol.sum()
        return found | {"byol": byol, "loss": loss}

    def forward(  # type: ignore[override]
        self, view1: Tensor, view2: Tensor, ref: Tensor, region: Tensor, m: float = 0.99
    ) -> Tensor:
        """The loss of two views of a patch, the patch at 16 x 16, and the region around it."""
        return self.steps(view1, view2, ref, region, m)["loss"]


class CrossStain(MoCo):
    """Stage 3. The momentum encoder is that of stage 2 and never moves."""

    def steps(  # type: ignore[override]
        self, he: Tensor, ihc: Tensor, stain: Tensor
    ) -> dict[str, Tensor]:
        """Everything by name: ``feat2`` and ``q2`` of the IHC image, ``c_out`` tokens of the H&E image, ``ada`` these
        with the stain, ``k1`` their projection, ``loss``."""
        feat2 = self.base_encoder(ihc, stain)[1]
        q2 = self.predictor(feat2)
        with torch.no_grad():
            content = self.momentum_encoder.forward_features(he, stain)
            ada = adapt_instance(content, content[:, 0])
            k1 = self.momentum_encoder.forward_head(ada)
        loss = contrast(q2, k1, self.temperature)
        return {"feat2": feat2, "q2": q2, "c_out": content, "ada": ada, "k1": k1, "loss": loss}

    def forward(self, he: Tensor, ihc: Tensor, stain: Tensor) -> Tensor:  # type: ignore[override]
        """The loss of an H&E image, the IHC image of the same place, and a 16 x 16 crop of the latter."""
        return cast(Tensor, self.steps(he, ihc, stain)["loss"])
