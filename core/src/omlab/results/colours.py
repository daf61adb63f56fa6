"""Colours of labels: a fixed palette that stays apart for most colour-blind people, too."""

from __future__ import annotations

import colorsys

from omlab.errors import OmlabError

#: After Okabe and Ito's palette for colour-blind readers, the strongest first.
PALETTE = (
    (213, 94, 0), (0, 158, 115), (86, 180, 233), (240, 228, 66), (204, 121, 167), (0, 114, 178), (230, 159, 0),
)  # fmt: skip


def parse_colour(text: str) -> tuple[int, int, int]:
    """``"#rrggbb"`` to (red, green, blue) 0..255. Raises :class:`omlab.errors.OmlabError`."""
    digits = text.removeprefix("#")
    try:
        if len(digits) != 6:
            raise ValueError
        return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)
    except ValueError:
        raise OmlabError(f"'{text}' is no colour, expected #rrggbb") from None


def colour_of(value: int) -> tuple[int, int, int]:
    """Colour of a label value: the palette first, then hues that the golden angle keeps apart."""
    if 1 <= value <= len(PALETTE):
        return PALETTE[value - 1]
    turn = value * 0.6180339887498949
    red, green, blue = colorsys.hls_to_rgb(turn % 1.0, 0.45 + 0.2 * (value % 3) / 2, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)
