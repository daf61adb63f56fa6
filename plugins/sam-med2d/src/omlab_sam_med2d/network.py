"""SAM-Med2D whole: Segment Anything at 256 pixels with adapters, or without."""

from __future__ import annotations

from typing import Any

from omlab_sam_med2d.encoder import image_encoder
from omlab_sdk.networks.sam import network as shared
from omlab_sdk.networks.sam.network import SIZES, Decoder, Encoder

__all__ = ["SIZES", "Decoder", "Encoder", "Sam"]


class Sam(shared.Sam):
    """Image encoder with adapters, prompt encoder and mask decoder; of the published sizes only vit_b was fine-tuned.

    Arguments as of :class:`omlab_sdk.networks.sam.network.Sam` and :func:`omlab_sam_med2d.encoder.image_encoder`.
    """

    def __init__(self, *, img_size: int = 256, **more: Any) -> None:
        super().__init__(img_size=img_size, image_encoder=image_encoder, **more)

    @classmethod
    def of_size(cls, size: str = "vit_b", *, img_size: int = 256, adapter: bool = True, **more: Any) -> Sam:
        """One of :data:`SIZES`, with ``more`` arguments of the image encoder in place of its."""
        return cls(img_size=img_size, adapter=adapter, **{**SIZES[size], **more})
