"""Segment Anything whole, its published sizes, and the two forms that are exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from omlab_sdk.networks.sam.decoder import MaskDecoder
from omlab_sdk.networks.sam.encoder import ImageEncoder
from omlab_sdk.networks.sam.prompts import ABSENT, PromptEncoder

#: Arguments of the image encoder by the name of upstream's builder.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_attn_indexes": (2, 5, 8, 11)},
    "vit_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "global_attn_indexes": (5, 11, 17, 23)},
    "vit_h": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attn_indexes": (7, 15, 23, 31)},
}


class Sam(nn.Module):
    """Image encoder, prompt encoder and mask decoder.

    Parameters
    ----------
    img_size : side S of the square frame that the network sees.
    prompt_dim : width of the embedding and of every token of the decoder.
    image_encoder : makes the image encoder, for models that add something to it.
    encoder : further arguments of :class:`omlab_sdk.networks.sam.encoder.ImageEncoder`.
    """

    def __init__(
        self, *, img_size: int = 1024, patch_size: int = 16, prompt_dim: int = 256, mask_in_chans: int = 16,
        dec_heads: int = 8, dec_mlp: int = 2048, dec_depth: int = 2, dec_shrink: int = 2,
        iou_hidden: int = 256, iou_depth: int = 3, num_multimask_outputs: int = 3,
        image_encoder: Callable[..., ImageEncoder] = ImageEncoder, **encoder: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.image_encoder = image_encoder(img_size=img_size, patch_size=patch_size, out_chans=prompt_dim, **encoder)
        self.prompt_encoder = PromptEncoder(prompt_dim, img_size // patch_size, img_size, mask_in_chans)
        self.mask_decoder = MaskDecoder(
            prompt_dim, heads=dec_heads, hidden=dec_mlp, depth=dec_depth, shrink=dec_shrink,
            iou_hidden=iou_hidden, iou_depth=iou_depth, alternatives=num_multimask_outputs,
        )  # fmt: skip

    def decode(
        self,
        embedding: Tensor,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All four masks [batch, 4, S / 4, S / 4] and qualities [batch, 4]; prompts as of the prompt encoder."""
        sparse, dense = self.prompt_encoder(points, boxes, mask)
        return cast(
            tuple[Tensor, Tensor],
            self.mask_decoder(embedding, self.prompt_encoder.dense_positions(), sparse, dense),
        )

    def forward(self, image: Tensor, points: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Image and one set of points an image to all masks and qualities."""
        return self.decode(self.image_encoder(image), points)


class Encoder(nn.Module):
    """What is exported as ``encoder``: normalised image [batch, 3, S, S] to [batch, width, S / 16, S / 16]."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.image_encoder = sam.image_encoder

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.image_encoder(image))


class Decoder(nn.Module):
    """What is exported as ``decoder``: one embedding and many prompts to masks.

    It takes what upstream's exported graph takes, for several prompts at once. No padding point is added: who wants
    the answer of the torch path appends one labelled -1 where there is no box. A point labelled -2 takes no part, so
    prompts of different lengths, and a prompt of a mask alone, fit into one call.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder = sam.prompt_encoder
        self.mask_decoder = sam.mask_decoder

    def forward(
        self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor, mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Logits [prompts, 4, S / 4, S / 4] and predicted qualities [prompts, 4].

        Parameters
        ----------
        image_embeddings : [1, width, S / 16, S / 16].
        point_coords : [prompts, points, 2], (x, y) in pixels of the frame.
        point_labels : [prompts, points]; 0 background, 1 foreground, 2 and 3 corners of a box, -1 padding, -2 absent.
        mask_input : [prompts, 1, S / 4, S / 4], probabilities or logits, as the model was trained.
        has_mask_input : [prompts], 1 where the mask counts, 0 where not.
        """
        encoder = self.prompt_encoder
        sparse = encoder.points(point_coords, point_labels)
        absent = (point_labels == ABSENT).to(sparse.dtype)
        has = has_mask_input.reshape(-1, *(1,) * (mask_input.ndim - 1))
        dense = has * encoder.dense(mask_input) + (1 - has) * encoder.no_mask()
        return cast(
            tuple[Tensor, Tensor],
            self.mask_decoder(image_embeddings, encoder.dense_positions(), sparse, dense, absent),
        )
