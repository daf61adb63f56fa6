"""Label maps of images as PNG with a palette, so that a viewer shows colours and a program reads labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from omlab.files import whole
from omlab.results.types import Segmentation


def write_segmentation(result: Segmentation, path: Path) -> None:
    """Write [row, column] labels: an 8-bit palette up to 255, else 16-bit grey."""
    if result.labels.max(initial=0) > 255:
        picture = Pillow.fromarray(result.labels.astype(np.uint16))
    else:
        picture = Pillow.fromarray(result.labels.astype(np.uint8))
        palette = np.zeros((256, 3), np.uint8)
        for label in result.structures:
            palette[label.value] = label.colour
        picture.putpalette(palette.tobytes())
    with whole(path) as temporary:
        picture.save(temporary, format="PNG")
