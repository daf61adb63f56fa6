"""A result in a few words, and as JSON-able facts for result.json."""

from __future__ import annotations

from typing import Any

import numpy as np

from omlab.results.frames import VideoSegmentation
from omlab.results.slide_features import SlideFeatures
from omlab.results.stacks import StackSegmentation
from omlab.results.types import Classification, Detections, Embedding, Generation, Result, Scores, Segmentation


def headline(result: Result) -> str:
    """One short line for a terminal."""
    if isinstance(result, VideoSegmentation):
        seen = {label.name: result.found_in()[label.value] for label in result.structures}
        total = len(result.labels)
        return ", ".join(f"{name} in {n} of {total} frames" for name, n in seen.items() if n) or "nothing found"
    if isinstance(result, StackSegmentation):
        voxels = max(1, int(np.prod(result.labels.shape, dtype=np.int64)))
        told = [f"{s.name} {result.counts()[s.value] / voxels:.2%} of the voxels" for s in result.structures]
        lengths = [
            f"{result.measurements[n]:.4g} {n[7:]}" for n in ("length_mm", "length_voxels") if n in result.measurements
        ]
        return ", ".join(told + lengths)
    if isinstance(result, Segmentation):
        rows = [row for row in _structures(result) if row["voxels"]]
        if not rows:
            return "nothing found"
        shown = [
            f"{r['name']} {r['volume_ml']:.1f} ml" if "volume_ml" in r else f"{r['name']} {r['voxels']} px"
            for r in rows
        ]
        return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
    if isinstance(result, Classification):
        return f"{result.best} {float(result.probabilities.max()):.1%}"
    if isinstance(result, Embedding):
        return f"embedding of {result.vector.shape[-1]} features"
    if isinstance(result, SlideFeatures):
        return f"{result.patches} patches, {result.width} features each"
    if isinstance(result, Scores):
        return f"{len(next(iter(result.columns.values()), ()))} rows"
    if isinstance(result, Detections):
        if not len(result.boxes):
            return "nothing found"
        top = int(np.argmax(result.scores))
        return (
            f"{len(result.boxes)} found, best {result.classes[int(result.labels[top])]} {float(result.scores[top]):.1%}"
        )
    if isinstance(result, Generation):
        line = " ".join(result.text.split())
        return line if len(line) <= 72 else f"{line[:71]}…"
    return result.kind.value


def summarise(result: Result) -> dict[str, Any]:
    """Kind, measurements and what can be told without the arrays."""
    facts: dict[str, Any] = {"kind": result.kind.value, "measurements": dict(result.measurements)}
    if result.notes:
        facts["notes"] = list(result.notes)
    if isinstance(result, VideoSegmentation):
        facts |= {"frames": len(result.labels), "rate": result.rate}
    if isinstance(result, StackSegmentation):
        facts |= {"start": list(result.start), "spacing_um": list(result.spacing_um) if result.spacing_um else None}
    if isinstance(result, Segmentation):
        facts |= {"shape": list(result.labels.shape), "structures": _structures(result)}
        if result.geometry is not None:
            facts |= {"affine": result.geometry.affine.tolist(), "orientation": result.geometry.orientation}
    elif isinstance(result, Classification):
        pairs = zip(result.classes, result.probabilities.tolist(), strict=True)
        facts |= {"best": result.best, "probabilities": dict(pairs)}
    elif isinstance(result, SlideFeatures):
        facts |= {"patches": result.patches, "features": result.width, "patch_size_level0": list(result.side)}
    elif isinstance(result, Embedding):
        facts["features"] = int(result.vector.shape[-1])
    elif isinstance(result, Scores):
        facts |= {"columns": list(result.columns), "rows": len(next(iter(result.columns.values()), ()))}
    elif isinstance(result, Detections):
        facts |= {"classes": list(result.classes), "boxes": len(result.boxes)}
    elif isinstance(result, Generation):
        facts |= {
            "text": result.text,
            "finish_reason": result.finish_reason,
            "usage": {"prompt_tokens": result.prompt_tokens, "completion_tokens": result.completion_tokens},
        }
    return facts


def _structures(result: Segmentation) -> list[dict[str, Any]]:
    counts = result.counts()
    volume = result.geometry.voxel_volume_mm3 / 1000.0 if result.geometry else None
    rows: list[dict[str, Any]] = []
    for place, label in enumerate(result.structures):
        voxels = counts[label.value]
        row: dict[str, Any] = {"value": label.value, "name": label.name, "voxels": voxels}
        if volume is not None:
            row["volume_ml"] = voxels * volume
        if isinstance(result, VideoSegmentation):
            row["frames"] = result.found_in()[label.value]
        row |= {name: values[place] for name, values in result.columns.items()}
        rows.append(row)
    return rows
