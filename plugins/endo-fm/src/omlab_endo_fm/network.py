"""The video transformer of Endo-FM: a ViT whose blocks attend over time first and over space then.

State-dict names are upstream's. Inside of the blocks the class token of a sample and its patch tokens are kept apart,
the latter as [sample, frame, patch, width]; upstream's single sequence (class token first, then patch by patch, each
with all of its frames) is made only where it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Of every LayerNorm of the transformer.
EPSILON = 1e-6
#: ViT-B/16, the only published size.
BASE: dict[str, Any] = {"embed_dim": 768, "depth": 12, "num_heads": 12}


def mix(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention, [..., token, channel]. The fused kernel on a GPU; the plain formula on a processor, where it equals
    upstream's to the last bit, which matters to maps of one pixel in the detection network: a group norm over two
    numbers makes much of little."""
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value)
    return (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1) @ value


class Attention(nn.Module):
    """Multi-head self-attention over the last but one axis of [..., tokens, width]."""

    def __init__(self, width: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split among {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def _heads(self, x: Tensor) -> Tensor:
        """[sample, tokens, width] to queries, keys and values, [3, sample, head, token, channel]."""
        batch, tokens, width = x.shape
        return self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[sample, tokens, width] to the same."""
        query, key, value = self._heads(x)
        mixed = mix(query, key, value)
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(x.shape)))

    def over_frames(self, x: Tensor) -> Tensor:
        """[sample, frame, patch, width] to the same; the frames at one patch position attend to each other."""
        batch, frames, patches, width = x.shape
        qkv = self.qkv(x).reshape(batch, frames, patches, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(3, 0, 2, 4, 1, 5)
        mixed = mix(query, key, value)
        return cast(Tensor, self.proj(mixed.permute(0, 3, 1, 2, 4).reshape(x.shape)))

    def first(self, x: Tensor) -> Tensor:
        """[sample, tokens, width] to [sample, width]: what :meth:`forward` gives for the first token."""
        width = x.shape[-1]
        bias = self.qkv.bias
        query = F.linear(x[:, :1], self.qkv.weight[:width], None if bias is None else bias[:width])
        key, value = F.linear(x, self.qkv.weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)

        def split(y: Tensor) -> Tensor:
            return y.reshape(x.shape[0], -1, self.heads, width // self.heads).transpose(1, 2)

        mixed = mix(split(query), split(key), split(value))
        return cast(Tensor, self.proj(mixed.reshape(-1, width)))

    def probabilities(self, x: Tensor) -> Tensor:
        """[sample, tokens, width] to [sample, head, query, key], which sum to one over the keys."""
        query, key, _ = self._heads(x)
        return (query @ key.transpose(-2, -1) * (x.shape[-1] // self.heads) ** -0.5).softmax(dim=-1)


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class DropPath(nn.Module):
    """Leaves a sample's branch out with probability ``rate`` while training, scaling the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * (x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep) / keep)


class Block(nn.Module):
    """Pre-norm block with divided attention: over time without the class token, then over each frame with it.

    ``forward`` takes and gives the class tokens [sample, width] and the patch tokens [sample, frame, patch, width].
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4, *, qkv_bias: bool = True, drop_path: float = 0.0,
        eps: float = EPSILON,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qkv_bias)
        self.temporal_norm1 = nn.LayerNorm(width, eps=eps)
        self.temporal_attn = Attention(width, heads, qkv_bias)
        self.temporal_fc: nn.Module = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def over_time(self, patches: Tensor) -> Tensor:
        """The patch tokens after the temporal step."""
        if patches.shape[1] == 1 and isinstance(self.temporal_attn, SingleFrame):
            mixed = self.temporal_attn(self.temporal_norm1(patches))
        else:
            mixed = self.temporal_attn.over_frames(self.temporal_norm1(patches))
        return patches + self.temporal_fc(self.drop_path(mixed))

    def of_frames(self, cls: Tensor, patches: Tensor) -> Tensor:
        """[sample * frame, 1 + patch, width], normalised: what the spatial attention sees."""
        _, frames, count, width = patches.shape
        first = cls[:, None, None].expand(-1, frames, 1, -1)
        return cast(Tensor, self.norm1(torch.cat([first, patches], dim=2)).reshape(-1, 1 + count, width))

    def forward(self, cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        batch, frames, count, width = patches.shape
        patches = self.over_time(patches)
        mixed = self.drop_path(self.attn(self.of_frames(cls, patches)))
        mixed = mixed.reshape(batch, frames, 1 + count, width)
        cls = cls + mixed[:, :, 0].mean(dim=1)
        patches = patches + mixed[:, :, 1:]
        tokens = torch.cat([cls[:, None], patches.flatten(1, 2)], dim=1)
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return tokens[:, 0], tokens[:, 1:].reshape(batch, frames, count, width)

    def last(self, cls: Tensor, patches: Tensor) -> Tensor:
        """The class tokens alone, [sample, width]: what is left of the work where nobody asks for the patches."""
        batch, frames, _, width = patches.shape
        mixed = self.drop_path(self.attn.first(self.of_frames(cls, self.over_time(patches))))
        cls = cls + mixed.reshape(batch, frames, width).mean(dim=1)
        return cast(Tensor, cls + self.drop_path(self.mlp(self.norm2(cls))))


class SingleFrame(nn.Module):
    """Temporal attention where there is only one frame: a token that attends to itself alone gives its value, so the
    value, the projection and the linear layer after it are one matrix."""

    def __init__(self, attention: Attention, after: nn.Linear) -> None:
        super().__init__()
        width = after.in_features
        weight, bias = attention.qkv.weight[2 * width :], attention.qkv.bias
        self.mix = nn.Linear(width, width)
        with torch.no_grad():
            wide = after.weight.double() @ attention.proj.weight.double()
            offset = after.weight.double() @ attention.proj.bias.double() + after.bias.double()
            if bias is not None:
                offset = offset + wide @ bias[2 * width :].double()
            self.mix.weight.copy_((wide @ weight.double()).float())
            self.mix.bias.copy_(offset.float())

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.mix(x))


def fold(blocks: Sequence[Block] | nn.ModuleList, *, single_frame: bool = False) -> None:
    """Join the two linear layers that end each temporal step, in place: a third of them less work, the same outputs.

    For inference alone: the names are upstream's no more.

    Parameters
    ----------
    single_frame : there will be one frame only, so the temporal attention is a linear layer, too.
    """
    for block in blocks:
        assert isinstance(block, Block)
        assert isinstance(block.temporal_fc, nn.Linear)
        if single_frame:
            block.temporal_attn = SingleFrame(block.temporal_attn, block.temporal_fc)  # type: ignore[assignment]
        else:
            inner, outer = block.temporal_attn.proj, block.temporal_fc
            with torch.no_grad():
                weight = outer.weight.double() @ inner.weight.double()
                bias = outer.weight.double() @ inner.bias.double() + outer.bias.double()
                inner.weight.copy_(weight.float())
                inner.bias.copy_(bias.float())
        block.temporal_fc = nn.Identity()


class PatchEmbed(nn.Module):
    """[sample, channel, frame, row, column] to [sample, frame, patch, width], patches row by row."""

    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, video: Tensor) -> Tensor:
        batch, channels, frames, rows, columns = video.shape
        flat = video.transpose(1, 2).reshape(-1, channels, rows, columns)
        tokens = self.proj(flat).flatten(2).transpose(1, 2)
        return cast(Tensor, tokens.reshape(batch, frames, tokens.shape[1], tokens.shape[2]))


class VideoTransformer(nn.Module):
    """The encoder: [sample, channel, frame, row, column] to the class token [sample, width].

    Parameters
    ----------
    img_size : pixels along each side, or (rows, columns), that the position table is made for; other sizes work.
    num_frames : frames that the time table is made for; other numbers work.
    drop_path_rate : of the last block, growing from 0 at the first; only while training.
    """

    def __init__(
        self, *, img_size: int | Sequence[int] = 224, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768,
        depth: int = 12, num_heads: int = 12, mlp_ratio: float = 4, qkv_bias: bool = True, num_frames: int = 8,
        drop_path_rate: float = 0.1, eps: float = EPSILON,
    ) -> None:  # fmt: skip
        super().__init__()
        rows, columns = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        if rows % patch_size or columns % patch_size:
            raise ValueError(f"an image of {rows} x {columns} pixels cannot be cut into patches of {patch_size}")
        self.patch_size = patch_size
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        count = (rows // patch_size) * (columns // patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + count, embed_dim))
        self.time_embed = nn.Parameter(torch.zeros(1, num_frames, embed_dim))
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias=qkv_bias, drop_path=rate, eps=eps) for rate in rates
        )
        self.norm = nn.LayerNorm(embed_dim, eps=eps)
        initialise(self)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def embed(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Class tokens [sample, width] and patch tokens [sample, frame, patch, width] with their places in space and
        time."""
        _, _, frames, rows, columns = video.shape
        if rows % self.patch_size or columns % self.patch_size:
            raise ValueError(f"frames of {rows} x {columns} pixels cannot be cut into patches of {self.patch_size}")
        places = positions(self.pos_embed, rows // self.patch_size, columns // self.patch_size)
        times = moments(self.time_embed, frames)
        patches = self.patch_embed(video) + places[:, None, 1:] + times[:, :, None]
        cls = (self.cls_token + places[:, :1])[:, 0].expand(video.shape[0], -1)
        return cls, patches

    def features(self, video: Tensor) -> Tensor:
        """The normalised patch tokens [sample, frame, patch, width]."""
        cls, patches = self.embed(video)
        for block in self.blocks:
            cls, patches = block(cls, patches)
        return cast(Tensor, self.norm(patches))

    def tokens(self, video: Tensor) -> Tensor:
        """All normalised tokens in upstream's order, [sample, 1 + patch * frame, width]."""
        cls, patches = self.embed(video)
        for block in self.blocks:
            cls, patches = block(cls, patches)
        return cast(Tensor, self.norm(sequence(cls, patches)))

    def attention(self, video: Tensor) -> Tensor:
        """Spatial attention of the last block, [sample * frame, head, 1 + patch, 1 + patch]."""
        cls, patches = self.embed(video)
        *blocks, last = self.blocks
        for block in blocks:
            cls, patches = block(cls, patches)
        assert isinstance(last, Block)
        return last.attn.probabilities(last.of_frames(cls, last.over_time(patches)))

    def forward(self, video: Tensor) -> Tensor:
        cls, patches = self.embed(video)
        *blocks, last = self.blocks
        for block in blocks:
            cls, patches = block(cls, patches)
        assert isinstance(last, Block)
        return cast(Tensor, self.norm(last.last(cls, patches)))


class Classifier(nn.Module):
    """Encoder with a linear layer: clips [sample, 3, frame, row, column] to logits [sample, class]."""

    def __init__(self, network: VideoTransformer, classes: int = 2) -> None:
        super().__init__()
        self.network = network
        self.linear = nn.Linear(network.norm.normalized_shape[0], classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, video: Tensor) -> Tensor:
        return cast(Tensor, self.linear(self.network(video)))


def sequence(cls: Tensor, patches: Tensor) -> Tensor:
    """[sample, width] and [sample, frame, patch, width] to [sample, 1 + patch * frame, width], frames fastest."""
    return torch.cat([cls[:, None], patches.transpose(1, 2).flatten(1, 2)], dim=1)


def positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """The position table [1, 1 + places, width] for a grid of ``rows`` x ``columns``: as it is where the number of
    places fits, else its square grid taken to the new one by the nearest neighbour."""
    count = table.shape[1] - 1
    if count == rows * columns:
        return table
    side = int(count**0.5)
    grid = table[:, 1 : 1 + side * side].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(rows, columns), mode="nearest").flatten(2).transpose(1, 2)
    return torch.cat([table[:, :1], resized], dim=1)


def moments(table: Tensor, frames: int) -> Tensor:
    """The time table [1, frames of the table, width] for another number of frames, by the nearest neighbour."""
    if table.shape[1] == frames:
        return table
    return F.interpolate(table.transpose(1, 2), size=frames, mode="nearest").transpose(1, 2)


def fit(network: VideoTransformer, rows: int, columns: int, frames: int) -> VideoTransformer:
    """Bring both tables to frames of ``rows`` x ``columns`` pixels and clips of ``frames``, in place, so that an
    exported graph holds them as they are used."""
    p = network.patch_size
    with torch.no_grad():
        places = positions(network.pos_embed, rows // p, columns // p)
        network.pos_embed = nn.Parameter(places.clone())
        network.time_embed = nn.Parameter(moments(network.time_embed, frames).clone())
    return network


def initialise(network: nn.Module) -> None:
    """For training from scratch: linear weights truncated normal of std 0.02, biases 0, norms 1 and 0; the temporal
    steps of all blocks but the first begin as if they were not there."""
    blocks = [m for m in network.modules() if isinstance(m, Block)]
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for block in blocks[1:]:
        assert isinstance(block.temporal_fc, nn.Linear)
        nn.init.zeros_(block.temporal_fc.weight)
