"""The five sets of MedFMC, their label files and submissions."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError


@attrs.frozen
class Set:
    """One of the five.

    Attributes
    ----------
    classes : in the order of their columns.
    multi_label : an image may have several classes, or none.
    separator : between the labels of a line; labels stand behind the last blank but for a blank as separator.
    """

    name: str
    classes: tuple[str, ...]
    multi_label: bool
    separator: str = ""


SETS = {
    "chest": Set(
        "chest",
        (
            "pleural_effusion", "nodule", "pneumonia", "cardiomegaly", "hilar_enlargement", "fracture_old", "fibrosis",
            "aortic_calcification", "tortuous_aorta", "thickened_pleura", "TB", "pneumothorax", "emphysema",
            "atelectasis", "calcification", "pulmonary_edema", "increased_lung_markings", "elevated_diaphragm",
            "consolidation",
        ),
        True,
        ",",
    ),
    "colon": Set("colon", ("negative", "positive"), False),
    "endo": Set("endo", ("ulcer", "erosion", "polyp", "tumor"), True, " "),
    "neojaundice": Set("neojaundice", ("low", "high"), False),
    "retino": Set("retino", ("No DR", "Mild", "Moderate", "Severe", "Proliferative"), False),
}  # fmt: skip


def read_labels(path: Path, which: Set) -> dict[str, NDArray[np.int64]]:
    """Image -> labels of a label file (gzip or not): [classes] of 0 and 1 (-1 difficult), or [1] the class's index.

    Names hold blanks, so lines are cut from the right.

    Raises
    ------
    omlab.errors.InputError
        A line has another number of labels, a label is none, an image is there twice.
    """
    found: dict[str, NDArray[np.int64]] = {}
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        if not line.strip():
            continue
        count = len(which.classes) if which.separator == " " else 1
        name, *tail = line.strip().rsplit(" ", count)
        parts = tail[0].split(",") if which.separator == "," and tail else tail
        wanted = len(which.classes) if which.multi_label else 1
        try:
            values = np.array([int(part) for part in parts])
        except ValueError:
            values = np.empty(0, int)
        allowed = (-1, 0, 1) if which.multi_label else range(len(which.classes))
        if len(values) != wanted or not all(int(v) in allowed for v in values):
            raise InputError(f"{path.name}, line {number}: expected a name and {wanted} labels of {which.name}")
        if name in found:
            raise InputError(f"{path.name}, line {number}: {name} is there twice")
        found[name] = values
    if not found:
        raise InputError(f"{path.name}: holds no label")
    return found


def line_of(image: str, labels: NDArray[np.int64], which: Set) -> str:
    """An image and its labels as a line of a label file; what :func:`read_labels` reads."""
    return f"{image} {(which.separator or ' ').join(map(str, labels.tolist()))}"


def read_submission(path: Path, which: Set) -> dict[str, NDArray[np.float64]]:
    """Image -> [classes] scores of a submission (gzip or not): a name and a score a class, no header. Commas stand
    between, or blanks, as one of upstream's scripts writes them.

    Raises
    ------
    omlab.errors.InputError
        A line has another number of scores, a score is no finite number, an image is there twice.
    """
    found: dict[str, NDArray[np.float64]] = {}
    for number, row in enumerate(csv.reader(io.StringIO(text_of(path))), start=1):
        if not row:
            continue
        parts = row if len(row) > 1 else row[0].strip().rsplit(" ", len(which.classes))
        name, scores = parts[0].strip(), parts[1:]
        if len(scores) != len(which.classes):
            raise InputError(
                f"{path.name}, line {number}: has {len(scores)} scores, {which.name} has {len(which.classes)} classes"
            )
        keep(found, name, scores, f"{path.name}, line {number}")
    if not found:
        raise InputError(f"{path.name}: holds no score")
    return found


def keep(found: dict[str, NDArray[np.float64]], name: str, scores: Sequence[str | None], place: str) -> None:
    """Add the scores of an image, as they were written.

    Raises
    ------
    omlab.errors.InputError
        A score is no finite number, or the image is there already.
    """
    try:
        values = np.array([float(score) for score in scores])  # type: ignore[arg-type]  # a missing one is a TypeError
    except (TypeError, ValueError):
        values = np.array([math.nan])
    if not np.isfinite(values).all():
        raise InputError(f"{place}: a score of {name} is no finite number")
    if name in found:
        raise InputError(f"{place}: {name} is there twice")
    found[name] = values


def join(
    scores: dict[str, NDArray[np.float64]], labels: dict[str, NDArray[np.int64]], name: str
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """[images, classes] scores and [images, classes or 1] labels in the order of the submission.

    Names are compared without their ending, which some lists leave out.

    Raises
    ------
    omlab.errors.InputError
        An image is only on one side.
    """
    by_stem = {stem_of(image): values for image, values in labels.items()}
    unknown = [image for image in scores if stem_of(image) not in by_stem]
    given = {stem_of(image) for image in scores}
    absent = [image for image in labels if stem_of(image) not in given]
    if unknown or absent:
        count, what, first = (
            (len(absent), "images have a label and no score", absent[0])
            if absent
            else (len(unknown), "images have a score and no label", unknown[0])
        )
        raise InputError(f"{name}: {count} {what}, first {first}", remedy="Are they of the same part of the set?")
    return np.array(list(scores.values())), np.array([by_stem[stem_of(image)] for image in scores])


def stem_of(image: str) -> str:
    """The name of an image without its ending, which some lists leave out."""
    return image.removesuffix(".png").removesuffix(".jpg")


def text_of(path: Path) -> str:
    """A text file, compressed with gzip or not. Raises :class:`omlab.errors.InputError`."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist") from None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path.name}: cannot be read: {error}") from None
