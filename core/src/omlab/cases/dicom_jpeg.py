"""JPEG lossless (PS3.5 A.4.2) for pydicom, by imagecodecs: many archives of CT and MR hold it."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pydicom.uid import JPEGLossless, JPEGLosslessSV1

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

#: Read by pydicom: what a syntax needs.
DECODER_DEPENDENCIES = dict.fromkeys((JPEGLossless, JPEGLosslessSV1), ("numpy", "imagecodecs>=2024.9"))


def is_available(uid: str) -> bool:
    """Read by pydicom: can this syntax be decoded here?"""
    return uid in DECODER_DEPENDENCIES and find_spec("imagecodecs") is not None


@cache
def register() -> None:
    """Make the decoder known to pydicom, once a process."""
    from pydicom.pixels import get_decoder

    for uid in DECODER_DEPENDENCIES:
        get_decoder(uid).add_plugin("imagecodecs", (__name__, "decode_frame"))


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """One frame of compressed bytes to pixels, as pydicom asks for them."""
    import imagecodecs

    pixels = imagecodecs.jpeg8_decode(source)
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    if pixels.ndim == 3:
        runner.set_option("planar_configuration", 0)
    return bytes(pixels.tobytes())
