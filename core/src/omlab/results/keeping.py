"""Results kept on disk without loss, so that an evaluation that was stopped goes on from there.

A file is a zip with ``result.json`` and the arrays as ``.npy``: no pickles, nothing in it is executed.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError, OutputError
from omlab.files import whole
from omlab.geometry import Geometry
from omlab.report import jsonable
from omlab.results.frames import FrameLabels, VideoSegmentation
from omlab.results.types import (
    Classification,
    Detections,
    Embedding,
    Generation,
    Label,
    Result,
    Scores,
    Segmentation,
)

#: Version of the form; a file of another one is no result.
FORM = 1
_NAME = "result.json"
_KINDS: dict[str, type[Result]] = {
    kind.__name__: kind
    for kind in (VideoSegmentation, Segmentation, Classification, Embedding, Scores, Detections, Generation)
}


def keep(result: Result, path: Path, record: Mapping[str, Any] | None = None) -> None:
    """Write a result whole or not at all; its illustration is not kept.

    Parameters
    ----------
    record : JSON-able facts that are kept beside it.

    Raises
    ------
    omlab.errors.OutputError
        The file cannot be written, or the result is of a kind that is not the core's.
    """
    facts, arrays = _parts(result)
    facts |= {"form": FORM, "kind": type(result).__name__, "measurements": dict(result.measurements)}
    facts["notes"] = list(result.notes)
    facts["record"] = dict(record or {})
    try:
        with whole(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
            file.writestr(_NAME, json.dumps(_plain(facts), ensure_ascii=False))
            for name, array in arrays.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
            if isinstance(result, VideoSegmentation):
                with file.open("frames.raw", "w", force_zip64=True) as member:
                    for labels in result.labels:
                        member.write(np.ascontiguousarray(labels).tobytes())
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}", remedy="Free space, or name another folder with -o"
        ) from None


def kept(path: Path) -> tuple[Result, dict[str, Any]]:
    """A result that :func:`keep` wrote, and the facts beside it.

    Raises
    ------
    omlab.errors.InputError
        The file is missing, damaged or of another form.
    """
    try:
        with zipfile.ZipFile(path) as file:
            facts = json.loads(file.read(_NAME))
            if facts.get("form") != FORM or facts.get("kind") not in _KINDS:
                raise InputError(f"{path}: is of form {facts.get('form')}, {FORM} was expected")
            arrays = {
                name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(file.read(name)), allow_pickle=False)
                for name in file.namelist()
                if name.endswith(".npy")
            }
            video = _frames(file, facts) if facts["kind"] == "VideoSegmentation" else None
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{path}: is no result that was kept: {error}") from None
    made = _made(facts, arrays, video)
    return attrs.evolve(made, notes=facts.get("notes", ())), facts["record"]


def _plain(value: Any) -> Any:
    """JSON that Python reads back to the same numbers: unlike in reports, NaN stays a number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    return value if isinstance(value, float) else value.item() if isinstance(value, np.generic) else jsonable(value)


def _parts(result: Result) -> tuple[dict[str, Any], dict[str, Any]]:
    if type(result).__name__ not in _KINDS or type(result) is not _KINDS[type(result).__name__]:
        raise OutputError(
            f"a result of type {type(result).__name__} cannot be kept", remedy="Evaluate without a folder to go on from"
        )
    if isinstance(result, Segmentation):
        facts: dict[str, Any] = {
            "structures": [[s.value, s.name, list(s.colour), s.code] for s in result.structures],
            "columns": {name: list(values) for name, values in result.columns.items()},
            "shape": result.geometry.shape if result.geometry is not None else None,
        }
        arrays: dict[str, Any] = {} if result.geometry is None else {"affine": result.geometry.affine}
        if isinstance(result, VideoSegmentation):
            facts |= {"rate": result.rate, "size": list(result.labels.size), "values": list(result.labels.values)}
            return facts, arrays | {"numbers": result.frames}
        return facts, arrays | {"labels": result.labels}
    if isinstance(result, Classification):
        return (
            {"classes": result.classes, "exclusive": result.exclusive},
            {"probabilities": result.probabilities},
        )
    if isinstance(result, Embedding):
        return {}, {"vector": result.vector} | ({} if result.tokens is None else {"tokens": result.tokens})
    if isinstance(result, Scores):
        return {"columns": {name: list(values) for name, values in result.columns.items()}}, {}
    if isinstance(result, Detections):
        own = {"boxes": result.boxes, "scores": result.scores, "labels": result.labels}
        return {"classes": result.classes}, own | ({} if result.frames is None else {"numbers": result.frames})
    assert isinstance(result, Generation)
    return {
        "text": result.text, "finish_reason": result.finish_reason, "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
    }, {}  # fmt: skip


def _frames(file: zipfile.ZipFile, facts: Mapping[str, Any]) -> FrameLabels:
    rows, columns = facts["size"]
    labels = FrameLabels((rows, columns), facts["values"])
    with file.open("frames.raw") as member:
        while block := member.read(rows * columns):
            labels.append(np.frombuffer(block, np.uint8).reshape(rows, columns))
    return labels


def _made(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], video: FrameLabels | None) -> Result:
    kind, measurements = facts["kind"], facts["measurements"]
    if kind in ("Segmentation", "VideoSegmentation"):
        structures = tuple(
            Label(value=value, name=name, colour=tuple(colour), code=tuple(code) if code else None)
            for value, name, colour, code in facts["structures"]
        )
        geometry = Geometry(facts["shape"], arrays["affine"]) if "affine" in arrays else None
        common: dict[str, Any] = {
            "structures": structures, "geometry": geometry, "columns": facts["columns"], "measurements": measurements,
        }  # fmt: skip
        if video is not None:
            return VideoSegmentation(labels=video, frames=arrays["numbers"], rate=facts["rate"], **common)
        return Segmentation(labels=arrays["labels"], **common)
    if kind == "Classification":
        return Classification(
            classes=facts["classes"], exclusive=facts["exclusive"], measurements=measurements, **arrays
        )
    if kind == "Embedding":
        return Embedding(vector=arrays["vector"], tokens=arrays.get("tokens"), measurements=measurements)
    if kind == "Scores":
        return Scores(columns=facts["columns"], measurements=measurements)
    if kind == "Detections":
        return Detections(
            boxes=arrays["boxes"], scores=arrays["scores"], labels=arrays["labels"], classes=facts["classes"],
            frames=arrays.get("numbers"), measurements=measurements,
        )  # fmt: skip
    own = {key: facts[key] for key in ("text", "finish_reason", "prompt_tokens", "completion_tokens")}
    return Generation(measurements=measurements, **own)
