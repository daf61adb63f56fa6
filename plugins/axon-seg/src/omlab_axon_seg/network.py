"""The main network: a U-Net with axial attention in its decoder (``Generic_UNet`` of D-LMBmap's nnU-Net)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from omlab_axon_seg.attention import AxialAttention, AxialPositionalEmbedding

Triple = Sequence[int]


class ConvUnit(nn.Module):
    """Convolution, instance normalisation, leaky ReLU."""

    def __init__(self, channels: int, outputs: int, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, outputs, tuple(kernel), tuple(stride), [(k - 1) // 2 for k in kernel])
        self.instnorm = nn.InstanceNorm3d(outputs, eps=1e-5, affine=True)
        self.lrelu = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.lrelu(self.instnorm(self.conv(x)))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Units one after another; the first has the stride."""

    def __init__(self, channels: int, outputs: int, count: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                ConvUnit(channels if n == 0 else outputs, outputs, kernel, stride if n == 0 else (1, 1, 1))
                for n in range(count)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)  # type: ignore[no-any-return]


class GenericUNet(nn.Module):
    """U-Net whose decoder attends along each axis at every level but those of ``skip``.

    Parameters
    ----------
    side : voxels of the input along each axis, (z, y, x); no other size is taken, as positions are learned.
    base, max_num_features : channels of the finest level, doubled from level to level up to the greatest.
    num_pool, pool : how often the volume is made smaller, and by how much; ``pool`` is one triple, or one a level.
    heads, dim_heads : attention heads at full resolution and width of one, doubled from level to level.
    skip : stages of the decoder, counted from the coarsest, without attention.
    deep_supervision : also return the logits of the coarser levels.
    """

    def __init__(
        self,
        side: Triple = (128, 128, 128),
        *,
        base: int = 32,
        max_num_features: int = 320,
        num_pool: int = 5,
        pool: Triple | Sequence[Triple] = (2, 2, 2),
        conv_kernel: Triple = (3, 3, 3),
        num_conv_per_stage: int = 2,
        heads: int = 2,
        dim_heads: int = 8,
        skip: Sequence[int] = (4,),
        channels: int = 1,
        num_classes: int = 2,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        pools = [tuple(pool)] * num_pool if isinstance(pool[0], int) else [tuple(p) for p in pool]  # type: ignore[arg-type]
        if num_pool < 1 or len(pools) != num_pool:
            raise ValueError(f"the network makes volumes smaller {num_pool} times, {len(pools)} factors are given")
        if num_conv_per_stage < 2:
            raise ValueError(f"a stage has two convolutions or more, found {num_conv_per_stage}")
        self.side = tuple(int(n) for n in side)
        factors = [prod(p[axis] for p in pools) for axis in range(3)]
        if any(n % f for n, f in zip(self.side, factors, strict=True)):
            raise ValueError(f"sides must be divisible by {tuple(factors)}, found {self.side}")
        self.deep_supervision = deep_supervision
        widths = [min(base * 2**level, max_num_features) for level in range(num_pool + 1)]
        stages: list[nn.Module] = []
        for level in range(num_pool):
            before, stride = (channels, (1, 1, 1)) if level == 0 else (widths[level - 1], pools[level - 1])
            stages.append(Stage(before, widths[level], num_conv_per_stage, conv_kernel, stride))
        stages.append(
            nn.Sequential(
                Stage(widths[-2], widths[-1], num_conv_per_stage - 1, conv_kernel, pools[-1]),
                Stage(widths[-1], widths[-1], 1, conv_kernel),
            )
        )
        self.conv_blocks_context = nn.ModuleList(stages)
        self.conv_blocks_localization, self.tu, self.seg_outputs = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        # Stages without attention have no entry in the state dict, the others keep their number.
        self.axial_embedding, self.axial_attention = nn.ModuleDict(), nn.ModuleDict()
        for stage in range(num_pool):
            level = num_pool - 1 - stage
            width = widths[level]
            self.tu.append(nn.ConvTranspose3d(widths[level + 1], width, pools[level], pools[level], bias=False))
            self.conv_blocks_localization.append(
                nn.Sequential(
                    Stage(2 * width, width, num_conv_per_stage - 1, conv_kernel),
                    Stage(width, width, 1, conv_kernel),
                )
            )
            self.seg_outputs.append(nn.Conv3d(width, num_classes, 1, bias=False))
            if stage not in skip:
                shape = [n // prod(p[axis] for p in pools[:level]) for axis, n in enumerate(self.side)]
                self.axial_embedding[str(stage)] = AxialPositionalEmbedding(width, shape)
                self.axial_attention[str(stage)] = AxialAttention(width, 3, heads * 2**level, dim_heads * 2**level)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """[batch, channels, *side] to logits [batch, num_classes, *side]; a tuple, finest first, with deep supervision.

        Raises
        ------
        ValueError
            The volume has another size.
        """
        if tuple(x.shape[2:]) != self.side:
            raise ValueError(f"the network takes volumes of {self.side}, found {tuple(x.shape[2:])}")
        skips = []
        for stage in self.conv_blocks_context[:-1]:
            x = stage(x)
            skips.append(x)
        x = self.conv_blocks_context[-1](x)
        outputs = []
        last = len(self.tu) - 1
        for number, up in enumerate(self.tu):
            x = up(x)
            if str(number) in self.axial_attention:
                x = x + self.axial_attention[str(number)](self.axial_embedding[str(number)](x))
            x = self.conv_blocks_localization[number](torch.cat([x, skips.pop()], dim=1))
            if self.deep_supervision or number == last:
                outputs.append(self.seg_outputs[number](x))
        return tuple(reversed(outputs)) if self.deep_supervision else outputs[-1]
