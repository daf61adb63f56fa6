"""Results as CSV, JSON and NPZ."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from omlab.files import whole, write_text
from omlab.report import jsonable
from omlab.results.frames import VideoSegmentation
from omlab.results.summary import summarise
from omlab.results.types import Classification, Detections, Embedding, Generation, Result, Scores, Segmentation


def columns_of(result: Result) -> dict[str, list[Any]]:
    """The result as columns: a row a structure, class, feature or item."""
    if isinstance(result, Scores):
        return {name: list(values) for name, values in result.columns.items()}
    if isinstance(result, Classification):
        return {"class": list(result.classes), "probability": result.probabilities.tolist()}
    if isinstance(result, Embedding):
        return {"feature": list(range(len(result.vector))), "value": result.vector.tolist()}
    if isinstance(result, VideoSegmentation):
        return result.by_frame()
    if isinstance(result, Segmentation):
        rows = summarise(result)["structures"]
        return {key: [row[key] for row in rows] for key in (rows[0] if rows else ())}
    if isinstance(result, Detections):
        named = {"class": [result.classes[int(i)] for i in result.labels], "score": result.scores.tolist()}
        edges = {name: result.boxes[:, i].tolist() for i, name in enumerate(("x0", "y0", "x1", "y1"))}
        frames = {} if result.frames is None else {"frame": [int(f) for f in result.frames]}
        return frames | named | edges
    if isinstance(result, Generation):
        return {"text": [result.text], "finish_reason": [result.finish_reason]}
    return {"measurement": list(result.measurements), "value": list(result.measurements.values())}


def write_csv(result: Result, path: Path) -> None:
    """A header line, then a row an item."""
    columns = columns_of(result)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_text(path, text.getvalue())


def write_json(result: Result, path: Path) -> None:
    """What :func:`omlab.results.summarise` says, with the columns of a table."""
    facts = summarise(result)
    if isinstance(result, Scores | Detections | VideoSegmentation):
        facts["table"] = columns_of(result)
    write_text(path, json.dumps(jsonable(facts), indent=2, ensure_ascii=False))


def write_npz(result: Result, path: Path) -> None:
    """The arrays, without pickles."""
    arrays: dict[str, Any] = {}
    if isinstance(result, Segmentation):
        arrays["labels"] = np.asarray(result.labels)
        if isinstance(result, VideoSegmentation):
            arrays |= {"frames": result.frames, "rate": np.float64(result.rate)}
        if result.geometry is not None:
            arrays["affine"] = result.geometry.affine
    elif isinstance(result, Classification):
        arrays |= {"probabilities": result.probabilities, "classes": np.array(result.classes)}
    elif isinstance(result, Embedding):
        arrays["vector"] = result.vector
        if result.tokens is not None:
            arrays["tokens"] = result.tokens
    elif isinstance(result, Scores):
        arrays |= {name: np.asarray(values) for name, values in result.columns.items()}
    elif isinstance(result, Detections):
        arrays |= {"boxes": result.boxes, "scores": result.scores, "labels": result.labels}
        arrays["classes"] = np.array(result.classes)
        if result.frames is not None:
            arrays["frames"] = result.frames
    elif isinstance(result, Generation):
        arrays["text"] = np.array(result.text)
    with whole(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
