"""Closed vocabularies of the cards.

A word outside of them makes a manifest invalid, so that ``omlab list --task segmentation`` finds every
segmentation model and nothing is filed under three spellings.
"""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What a plugin can contribute; also the table's name in its manifest."""

    MODEL = "model"
    DATASET = "dataset"
    ADAPTER = "adapter"
    EVALUATOR = "evaluator"
    ENGINE = "engine"
    COMMAND = "command"
    EXPORTER = "exporter"


class InputKind(StrEnum):
    """Shape of a case: what a model looks at."""

    IMAGE = "image"  # 2D
    VOLUME = "volume"  # 3D
    STACK = "stack"  # planes of a volume that is larger than memory
    VIDEO = "video"
    SLIDE = "slide"
    FEATURES = "features"  # of the patches of a slide
    TEXT = "text"
    SEQUENCE = "sequence"


#: How people say it on the command line.
DIMENSIONS = {"2d": InputKind.IMAGE, "3d": InputKind.VOLUME}


class Modality(StrEnum):
    """Where the data comes from."""

    XRAY = "x-ray"
    MAMMOGRAPHY = "mammography"
    CT = "ct"
    MR = "mr"
    PET = "pet"
    ULTRASOUND = "ultrasound"
    FUNDUS = "fundus"
    OCT = "oct"
    ENDOSCOPY = "endoscopy"
    DERMOSCOPY = "dermoscopy"
    HISTOPATHOLOGY = "histopathology"
    CYTOLOGY = "cytology"
    MICROSCOPY = "microscopy"
    LIGHT_SHEET = "light-sheet"
    PROTEIN = "protein"
    TEXT = "text"
    ANY = "any"


class Task(StrEnum):
    """What is asked."""

    CLASSIFICATION = "classification"
    SEGMENTATION = "segmentation"
    DETECTION = "detection"
    LOCALISATION = "localisation"
    REGRESSION = "regression"
    EMBEDDING = "embedding"
    RECONSTRUCTION = "reconstruction"
    GENERATION = "generation"
    FITNESS = "fitness"


class OutputKind(StrEnum):
    """Shape of an answer."""

    SEGMENTATION = "segmentation"
    CLASSIFICATION = "classification"
    EMBEDDING = "embedding"
    DETECTIONS = "detections"
    GENERATION = "generation"
    SCORES = "scores"


class Prompt(StrEnum):
    """What a promptable model can be told besides the case."""

    POINT = "point"
    BOX = "box"
    MASK = "mask"
    TEXT = "text"


class SourceKind(StrEnum):
    """Where a file comes from."""

    HUB = "hub"
    HTTPS = "https"
    WHEEL = "wheel"
    BY_HAND = "by-hand"


class Precision(StrEnum):
    """Arithmetic of an engine's inner tensors; inputs and outputs stay as the graph declares them."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"
    INT4 = "int4"


#: How a result can be written (:func:`omlab.results.write`).
FORMATS = (
    "nifti", "png", "tiff", "dicom-seg", "dicom-seg-binary", "rtstruct", "json", "csv", "npz", "txt",
    "h5", "pt", "tiff-folder", "zarr",
)  # fmt: skip
