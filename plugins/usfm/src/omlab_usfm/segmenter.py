"""The two segmentation networks: SegViT's attention-to-mask head, and UPerNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_sdk.networks.upernet import FCNHead, UPerHead, resize
from omlab_usfm.losses import ATMLoss
from omlab_usfm.network import BASE, TRAINED, Backbone


class SelfAttention(nn.Module):
    """Multi-head self-attention with torch's names (``in_proj_weight``, ``out_proj``)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split among {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = qkv.reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return cast(Tensor, self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, width)))


class MaskAttention(nn.Module):
    """Cross-attention that also gives its scores before the soft-max, averaged over heads: they are the masks."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = self._split(self.q(x)), self._split(self.k(memory)), self._split(self.v(memory))
        scores = (query @ key.transpose(2, 3)) * query.shape[3] ** -0.5
        mixed = F.dropout(scores.softmax(dim=3), self.dropout, self.training) @ value
        return self.proj(mixed.transpose(1, 2).reshape(x.shape)), scores.mean(dim=1)


class DecoderLayer(nn.Module):
    """Post-norm: classes attend to each other, then to the picture's tokens, then an MLP."""

    def __init__(self, width: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, heads, dropout)
        self.multihead_attn = MaskAttention(width, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm1(x + self.dropout(self.self_attn(x)))
        found, scores = self.multihead_attn(x, memory)
        x = self.norm2(x + self.dropout(found))
        hidden = self.dropout(F.relu(self.linear1(x)))
        return self.norm3(x + self.dropout(self.linear2(hidden))), scores


class Decoder(nn.Module):
    """Layers in a row; only the last one's scores are kept."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads) for _ in range(layers))

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        scores = x
        for layer in self.layers:
            x, scores = layer(x, memory)
        return x, scores


class ATMHead(nn.Module):
    """Attention to mask: a query for each class looks at features from coarse to fine, and where it looks is its mask.

    Parameters
    ----------
    in_channels : of every feature.
    stages : how many features are used; they come finest first and are looked at coarsest first.
    img_size : side of the masks that are given, in pixels.
    """

    def __init__(
        self, in_channels: int = 768, *, embed_dims: int = 384, classes: int = 2, layers: int = 3, heads: int = 12,
        stages: int = 3, img_size: int = 512, loss_weight: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.classes, self.stages, self.img_size = classes, stages, img_size
        for stage in range(1, stages + 1):
            self.add_module(f"input_proj_{stage}", nn.Linear(in_channels, embed_dims))
            self.add_module(f"proj_norm_{stage}", nn.LayerNorm(embed_dims))
            self.add_module(f"decoder_{stage}", Decoder(embed_dims, heads, layers))
        self.q = nn.Embedding(classes, embed_dims)
        self.class_embed = nn.Linear(embed_dims, classes + 1)
        self.loss_decode = ATMLoss(classes, weight=loss_weight)

    def forward(self, features: list[Tensor]) -> dict[str, Any]:
        """``pred_logits`` [batch, classes, classes + 1], ``pred_masks`` before the sigmoid and ``pred`` scores
        [batch, classes, img_size, img_size], and ``aux_outputs`` of the earlier stages."""
        if len(features) != self.stages:
            raise ValueError(f"{len(features)} features were given, the head has {self.stages} stages")
        x = self.q.weight[None].expand(features[0].shape[0], -1, -1)
        logits, maps = [], []
        for stage, feature in enumerate(reversed(features), start=1):
            memory = getattr(self, f"input_proj_{stage}")(feature.flatten(2).transpose(1, 2))
            x, scores = getattr(self, f"decoder_{stage}")(x, getattr(self, f"proj_norm_{stage}")(memory))
            logits.append(self.class_embed(x))
            maps.append(scores.unflatten(2, feature.shape[2:]))
        finest = maps[-1].shape[2:]
        masks: list[Tensor] = []
        for one in maps:
            masks.append(resize(one, finest) + masks[-1] if masks else resize(one, finest))
        pred_masks = resize(masks[-1], (self.img_size, self.img_size))
        shares = logits[-1].softmax(dim=2)[..., : self.classes]
        return {
            "pred_logits": logits[-1],
            "pred_masks": pred_masks,
            "pred": torch.einsum("bqc,bqhw->bchw", shares, pred_masks.sigmoid()),
            "aux_outputs": [{"pred_logits": a, "pred_masks": b} for a, b in zip(logits[:-1], masks[:-1], strict=True)],
        }


class SegViT(nn.Module):
    """Backbone with the attention-to-mask head; ``forward`` gives scores [batch, classes, rows, columns]."""

    def __init__(self, backbone: Mapping[str, Any], head: Mapping[str, Any]) -> None:
        super().__init__()
        self.backbone = Backbone(**backbone)
        self.decode_head = ATMHead(**head)

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.decode_head(self.backbone(image))["pred"])

    def heads(self, image: Tensor) -> dict[str, Any]:
        """All that the head gives (:meth:`ATMHead.forward`)."""
        return cast(dict[str, Any], self.decode_head(self.backbone(image)))

    def losses(self, image: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Every weighted term by name; the loss is their sum."""
        return cast(dict[str, Tensor], self.decode_head.loss_decode(self.heads(image), labels))

    def heads_loss(self, given: Mapping[str, Any], labels: Tensor) -> Tensor:
        """The loss of what :meth:`heads` gave, with labels [batch, rows, columns]."""
        return torch.stack(list(self.decode_head.loss_decode(given, labels).values())).sum()


class UPerNet(nn.Module):
    """Backbone with UPerNet's head, and an auxiliary one for training; ``forward`` gives logits at the image's size."""

    def __init__(
        self, backbone: Mapping[str, Any], head: Mapping[str, Any], auxiliary: Mapping[str, Any] | None = None,
        *, auxiliary_index: int = 2, auxiliary_weight: float = 0.4,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone = Backbone(**backbone)
        self.decode_head = UPerHead(**head)
        self.auxiliary_index, self.auxiliary_weight = auxiliary_index, auxiliary_weight
        self.auxiliary_head = FCNHead(**auxiliary) if auxiliary else None

    def forward(self, image: Tensor) -> Tensor:
        return resize(self.decode_head(self.backbone(image)), image.shape[2:])

    def heads(self, image: Tensor) -> list[Tensor]:
        """Logits of the head, and of the auxiliary one."""
        features = self.backbone(image)
        found = [self.decode_head(features)]
        if self.auxiliary_head is not None:
            found.append(self.auxiliary_head(features[self.auxiliary_index]))
        return found

    def heads_loss(self, given: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Cross-entropy of what :meth:`heads` gave, at the size of the labels [batch, rows, columns]."""
        terms = [F.cross_entropy(resize(logits, labels.shape[1:]), labels) for logits in given]
        return terms[0] + self.auxiliary_weight * sum(terms[1:])

    def loss(self, image: Tensor, labels: Tensor) -> Tensor:
        """:meth:`heads_loss` of images."""
        return self.heads_loss(self.heads(image), labels)


def segvit(classes: int, *, img_size: int = 512, trained: bool = False, **changes: Any) -> SegViT:
    """The published configuration; ``trained`` adds the biases and layer scales that the published file holds and
    upstream's configuration drops. ``changes`` are arguments of the backbone in place of the published ones."""
    shape = BASE | {"img_size": img_size, "use_rel_pos_bias": True, "drop_path_rate": 0.1, "out_indices": (5, 7, 11)}
    shape |= (TRAINED if trained else {}) | changes
    return SegViT(shape, {"in_channels": shape["embed_dim"], "classes": classes, "img_size": img_size})


def upernet(classes: int, *, img_size: int = 512, **changes: Any) -> UPerNet:
    """The published configuration, with ``changes`` as of :func:`segvit`."""
    shape = BASE | TRAINED | {"img_size": img_size, "use_rel_pos_bias": True, "drop_path_rate": 0.1}
    shape |= {"out_indices": (3, 5, 7, 11)} | changes
    width = shape["embed_dim"]
    return UPerNet(
        shape,
        {"in_channels": [width] * 4, "channels": width, "classes": classes},
        {"before": width, "channels": 256, "classes": classes},
    )
