"""Outlines of tissue as GeoJSON, which QuPath and other viewers of slides open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.files import write_text
from omlab.inference.tissue import Tissue


def write_geojson(path: Path, tissue: Tissue) -> None:
    """A feature collection of polygons with holes, in level-0 pixels (x, y)."""
    pieces = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [_ring(contour), *map(_ring, holes)]},
            "properties": {"objectType": "annotation", "classification": {"name": "Tissue"}},
        }
        for contour, holes in zip(tissue.contours, tissue.holes, strict=True)
    ]
    write_text(path, json.dumps({"type": "FeatureCollection", "features": pieces}))


def _ring(contour: NDArray[np.int32]) -> list[list[Any]]:
    """Closed, without points in the middle of straight runs."""
    before, after = np.roll(contour, 1, axis=0), np.roll(contour, -1, axis=0)
    corners: NDArray[np.int32] = contour[((contour - before) != (after - contour)).any(axis=1)]
    if len(corners) < 3:  # a line or a point; a ring has four entries at least
        corners = np.resize(contour, (3, 2))
    return [*corners.tolist(), corners[0].tolist()]
