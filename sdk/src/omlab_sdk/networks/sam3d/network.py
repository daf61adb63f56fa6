"""SAM-Med3D's network whole, and the sizes of its builders. What is exported is as of
:mod:`omlab_sdk.networks.sam.network`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from omlab_sdk.networks.sam.decoder import MaskDecoder
from omlab_sdk.networks.sam.encoder import ImageEncoder
from omlab_sdk.networks.sam.prompts import PromptEncoder
from omlab_sdk.networks.sam3d.encoder import Block3d
from omlab_sdk.networks.sam3d.prompts import FourierPositions3d

#: Arguments by the name of upstream's builder. Only ``vit_b_ori`` was ever published.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "vit_b_ori": {"img_size": 128, "embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_b": {"img_size": 256, "embed_dim": 384, "depth": 12, "num_heads": 12},
    "vit_l": {
        "img_size": 256, "embed_dim": 1024, "depth": 24, "num_heads": 16, "global_attn_indexes": (5, 11, 17, 23)
    },
    "vit_h": {
        "img_size": 256, "embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attn_indexes": (7, 15, 23, 31)
    },
}  # fmt: skip


class Sam3d(nn.Module):
    """Image encoder, prompt encoder and mask decoder of volumes.

    Parameters
    ----------
    img_size : side S of the cube that the network sees.
    prompt_dim : width of the embedding and of every token of the decoder, a multiple of 3.
    encoder : further arguments of :class:`omlab_sdk.networks.sam.encoder.ImageEncoder`.
    """

    def __init__(
        self, *, img_size: int = 128, patch_size: int = 16, in_chans: int = 1, prompt_dim: int = 384,
        mask_in_chans: int = 16, iou_hidden: int = 256, iou_depth: int = 3, num_multimask_outputs: int = 3,
        dec_heads: int = 8, dec_mlp: int = 2048, dec_depth: int = 2, dec_shrink: int = 2, **encoder: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.image_encoder = ImageEncoder(
            img_size=img_size, patch_size=patch_size, in_chans=in_chans, out_chans=prompt_dim, dimensions=3,
            block=Block3d, **encoder,
        )  # fmt: skip
        self.prompt_encoder = PromptEncoder(
            prompt_dim, img_size // patch_size, img_size, mask_in_chans, dimensions=3, kinds=2,
            positions=FourierPositions3d,
        )  # fmt: skip
        self.mask_decoder = MaskDecoder(
            prompt_dim, heads=dec_heads, hidden=dec_mlp, depth=dec_depth, shrink=dec_shrink, iou_hidden=iou_hidden,
            iou_depth=iou_depth, alternatives=num_multimask_outputs, dimensions=3,
        )  # fmt: skip

    @classmethod
    def of_size(cls, size: str = "vit_b_ori", **more: Any) -> Sam3d:
        """One of :data:`SIZES`."""
        return cls(**{**SIZES[size], **more})

    def decode(
        self, embedding: Tensor, points: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """All four masks [batch, 4, S / 4, S / 4, S / 4] and qualities [batch, 4].

        Parameters
        ----------
        points : voxels of the cube [batch, n, 3] by the axes of the array, and labels [batch, n]; a padding point is
            appended.
        mask : [batch, 1, S / 4, S / 4, S / 4] logits.
        """
        sparse, dense = self.prompt_encoder(points, None, mask)
        return cast(
            tuple[Tensor, Tensor],
            self.mask_decoder(embedding, self.prompt_encoder.dense_positions(), sparse, dense),
        )

    def upsampled(self, low: Tensor) -> Tensor:
        """Logits [..., S / 4, S / 4, S / 4] at the size of the cube, trilinear."""
        side = self.image_encoder.img_size
        return F.interpolate(low, (side, side, side), mode="trilinear", align_corners=False)

    def forward(self, image: Tensor, points: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Volumes [batch, 1, S, S, S] and one set of points a volume to all masks and qualities."""
        return self.decode(self.image_encoder(image), points)
