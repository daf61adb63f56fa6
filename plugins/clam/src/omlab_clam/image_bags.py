"""Bags of pictures, as CLAM's older scripts kept them: every patch of the tissue that is neither black nor white."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omlab.cases import Slide
from omlab.inference.patches import GridRules, grid
from omlab.inference.tissue import Tissue, opencv


def image_bag(
    slide: Slide, tissue: Tissue, *, patch: int = 256, step: int = 256, level: int = 0, custom_downsample: int = 1,
    inside: str = "four_pt", padding: bool = True, white: float = 15, black: float = 50,
    region: tuple[int, int, int, int] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:  # fmt: skip
    """Coordinates [patch, 2] in pixels of the level, (x, y), and pictures [patch, row, column, RGB].

    Rows are outside and columns inside, contour by contour; a patch is dropped if its mean of every colour is below
    ``black``, or its mean saturation below ``white``.

    Parameters
    ----------
    custom_downsample : patches of so many times the side are read, and made smaller.
    """
    cv2 = opencv()
    scale = tuple(float(int(d)) for d in slide.downsamples[level])
    found, pictures = [], []
    read = patch * custom_downsample
    width, height = slide.size
    # Without padding the last place is one pixel short of the newer rule's.
    size = (width, height) if padding else (width - 1, height - 1)
    for contour, holes in zip(tissue.contours, tissue.holes, strict=True):
        one = Tissue(contours=[contour], holes=[holes])
        rules = GridRules(patch=read, step=step * custom_downsample, inside=inside, padding=padding, region=region)
        places = grid(one, size, rules, (scale[0], scale[1]))
        for x, y in places[np.lexsort((places[:, 0], places[:, 1]))].tolist():
            picture = slide.region(x, y, read, read, level)
            if custom_downsample > 1:
                from PIL import Image as Pillow

                picture = np.asarray(Pillow.fromarray(picture).resize((patch, patch)))
            means = picture.reshape(-1, 3).mean(axis=0)
            saturation = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)[:, :, 1].mean()
            if (means < black).all() or saturation < white:
                continue
            found.append((x // int(scale[0]), y // int(scale[1])))
            pictures.append(picture)
    coords = np.array(found, np.int64).reshape(-1, 2)
    return coords, np.array(pictures, np.uint8).reshape(-1, patch, patch, 3)
