"""The network of SAM-Med3D, and the two forms that are exported."""

from omlab_sdk.networks.sam.network import Decoder, Encoder
from omlab_sdk.networks.sam3d.network import SIZES, Sam3d

__all__ = ["SIZES", "Decoder", "Encoder", "Sam3d"]
