"""The segmentation network: a TransUNet whose transformer is that of Endo-FM.

The frames of a clip are the batch axis of the convolutions and the time axis of the transformer. State-dict names are
upstream's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_endo_fm.network import EPSILON, Block, initialise


class StandardisedConv2d(nn.Conv2d):
    """Convolution without bias whose filters are brought to mean 0 and variance 1 first."""

    def standardised(self) -> Tensor:
        """The filters in use."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        return (self.weight - mean) / torch.sqrt(variance + 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.standardised(), self.bias, self.stride, self.padding)


def freeze(network: nn.Module) -> nn.Module:
    """Put standardised filters in the place of those that are standardised at every call, in place: for inference."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, StandardisedConv2d):
                plain = nn.Conv2d(
                    child.in_channels, child.out_channels, child.kernel_size, child.stride, child.padding, bias=False
                )  # type: ignore[arg-type]
                with torch.no_grad():
                    plain.weight.copy_(child.standardised())
                setattr(module, name, plain)
    return network


def _conv(inside: int, outside: int, size: int, stride: int = 1) -> StandardisedConv2d:
    return StandardisedConv2d(inside, outside, size, stride, padding=size // 2, bias=False)


class Unit(nn.Module):
    """Bottleneck of the residual stem."""

    def __init__(self, inside: int, outside: int, middle: int, stride: int = 1) -> None:
        super().__init__()
        self.gn1 = nn.GroupNorm(32, middle, eps=1e-6)
        self.conv1 = _conv(inside, middle, 1)
        self.gn2 = nn.GroupNorm(32, middle, eps=1e-6)
        self.conv2 = _conv(middle, middle, 3, stride)
        self.gn3 = nn.GroupNorm(32, outside, eps=1e-6)
        self.conv3 = _conv(middle, outside, 1)
        self.changes = stride != 1 or inside != outside
        if self.changes:
            self.downsample = _conv(inside, outside, 1, stride)
            self.gn_proj = nn.GroupNorm(outside, outside)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.gn_proj(self.downsample(x)) if self.changes else x
        y = F.relu(self.gn1(self.conv1(x)))
        y = F.relu(self.gn2(self.conv2(y)))
        return F.relu(residual + self.gn3(self.conv3(y)))


class Root(nn.Module):
    """First convolution of the stem."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv(3, width, 7, 2)
        self.gn = nn.GroupNorm(32, width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.gn(self.conv(x)))


class Stem(nn.Module):
    """Residual network to stride 16: [frame, 3, n, n] to the last map and the skips, the coarsest first."""

    def __init__(self, units: Sequence[int], width_factor: float = 1) -> None:
        super().__init__()
        width = int(64 * width_factor)
        self.root = Root(width)
        self.body = nn.Module()
        inside = width
        for number, count in enumerate(units):
            outside, middle, stride = 4 * width * 2**number, width * 2**number, 1 if number == 0 else 2
            block = nn.Module()
            for unit in range(count):
                made = Unit(inside if unit == 0 else outside, outside, middle, stride if unit == 0 else 1)
                block.add_module(f"unit{unit + 1}", made)
            self.body.add_module(f"block{number + 1}", block)
            inside = outside
        self.width = inside

    def forward(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        size = frames.shape[2]
        x = self.root(frames)
        skips = [x]
        x = F.max_pool2d(x, 3, 2)
        blocks = list(self.body.children())
        for number, block in enumerate(blocks):
            for unit in block.children():
                x = unit(x)
            if number < len(blocks) - 1:
                right = size // 4 // (number + 1)
                down, across = right - x.shape[2], right - x.shape[3]
                skips.append(F.pad(x, (0, across, 0, down)) if down or across else x)
        return x, skips[::-1]


class Embeddings(nn.Module):
    """Stem, a token for each place of its last map, and the table of places."""

    def __init__(self, width: int, grid: int, units: Sequence[int], width_factor: float) -> None:
        super().__init__()
        self.hybrid_model = Stem(units, width_factor)
        self.patch_embeddings = nn.Conv2d(self.hybrid_model.width, width, 1)
        self.position_embeddings = nn.Parameter(torch.zeros(1, grid * grid, width))
        self.dropout = nn.Dropout(0.1)

    def forward(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, skips = self.hybrid_model(frames)
        tokens = self.patch_embeddings(x).flatten(2).transpose(1, 2)
        return self.dropout(tokens + self.position_embeddings), skips


class Encoder(nn.Module):
    """The blocks of Endo-FM over the tokens of all frames, [frame, patch, width] to the same."""

    def __init__(self, width: int, depth: int, heads: int, drop_path_rate: float = 0.1) -> None:
        super().__init__()
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.layer = nn.ModuleList(Block(width, heads, drop_path=rate) for rate in rates)
        self.encoder_norm = nn.LayerNorm(width, eps=EPSILON)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, tokens: Tensor) -> Tensor:
        cls, patches = self.cls_token[:, 0], tokens[None]
        for block in self.layer:
            cls, patches = block(cls, patches)
        return cast(Tensor, self.encoder_norm(patches[0]))


class Transformer(nn.Module):
    """Stem and encoder."""

    def __init__(self, embeddings: Embeddings, encoder: Encoder) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = encoder


def _normed(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )


class DecoderBlock(nn.Module):
    """Twice the size, with a skip."""

    def __init__(self, inside: int, skip: int, outside: int) -> None:
        super().__init__()
        self.conv1 = _normed(inside + skip, outside)
        self.conv2 = _normed(outside, outside)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return cast(Tensor, self.conv2(self.conv1(x)))


class Decoder(nn.Module):
    """[frame, patch, width] and skips to [frame, channel, n, n]."""

    def __init__(self, width: int, grid: int, channels: Sequence[int], skips: Sequence[int], first: int = 512) -> None:
        super().__init__()
        self.grid = grid
        self.conv_more = _normed(width, first)
        inside = [first, *channels[:-1]]
        self.blocks = nn.ModuleList(DecoderBlock(a, s, b) for a, s, b in zip(inside, skips, channels, strict=True))

    def forward(self, tokens: Tensor, skips: Sequence[Tensor]) -> Tensor:
        x = tokens.transpose(1, 2).reshape(-1, tokens.shape[2], self.grid, self.grid)
        x = self.conv_more(x)
        for number, block in enumerate(self.blocks):
            x = block(x, skips[number] if number < len(skips) else None)
        return x


class TransUNet(nn.Module):
    """Frames of one clip [frame, 3, 224, 224] to logits [frame, class, 224, 224].

    Parameters
    ----------
    grid : tokens along each side of a frame; the image has 16 times as many pixels.
    n_skip : how many of the decoder's blocks get a skip.
    width_factor : of the stem.
    """

    def __init__(
        self, *, n_classes: int = 2, hidden_size: int = 768, depth: int = 12, heads: int = 12, grid: int = 14,
        resnet_units: Sequence[int] = (3, 4, 9), width_factor: float = 1,
        decoder_channels: Sequence[int] = (256, 128, 64, 16), skip_channels: Sequence[int] = (512, 256, 64, 16),
        n_skip: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        skips = [channels if number < n_skip else 0 for number, channels in enumerate(skip_channels)]
        self.n_skip = n_skip
        self.transformer = Transformer(
            Embeddings(hidden_size, grid, resnet_units, width_factor), Encoder(hidden_size, depth, heads)
        )
        self.decoder = Decoder(hidden_size, grid, decoder_channels, skips)
        self.segmentation_head = nn.Sequential(nn.Conv2d(decoder_channels[-1], n_classes, 3, padding=1))
        initialise(self)

    def steps(self, frames: Tensor) -> dict[str, Any]:
        """Every stage on the way: ``embedded``, ``skips``, ``encoded``, ``decoded``, ``logits``."""
        embedded, skips = self.transformer.embeddings(frames)
        encoded = self.transformer.encoder(embedded)
        decoded = self.decoder(encoded, skips[: self.n_skip])
        logits = self.segmentation_head(decoded)
        return {"embedded": embedded, "skips": skips, "encoded": encoded, "decoded": decoded, "logits": logits}

    def forward(self, frames: Tensor) -> Tensor:
        return cast(Tensor, self.steps(frames)["logits"])


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Half cross-entropy, half soft Dice over both classes, of logits [frame, class, row, column] and labels
    [frame, row, column]; Dice is that of all frames together."""
    probabilities = logits.softmax(dim=1)
    truth = F.one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2).to(logits.dtype)
    axes = (0, 2, 3)
    overlap = (probabilities * truth).sum(axes)
    sizes = (probabilities**2).sum(axes) + (truth**2).sum(axes)
    dice = 1 - (2 * overlap + 1e-5) / (sizes + 1e-5)
    return 0.5 * F.cross_entropy(logits, labels) + 0.5 * dice.mean()
