"""Whole volumes through networks that see a patch at a time: resampling, sliding windows, label maps.

All of it is NumPy, so a plugin needs no further library, and none of it ever holds classes x volume numbers:
:func:`omlab.inference.sliding.stream` hands out scores a slab at a time, and
:func:`omlab.inference.restoring.label_map` takes the labels of each slab before the next one is made.
"""

from __future__ import annotations
