"""Write a result in the format of its input, or in those that the user names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from omlab.cases.types import Case
from omlab.errors import OutputError, UsageError
from omlab.results.frames import VideoSegmentation
from omlab.results.slide_features import SlideFeatures
from omlab.results.stacks import ENDINGS, StackSegmentation, settle
from omlab.results.types import Classification, Detections, Embedding, Generation, Result, Scores, Segmentation
from omlab.vocabulary import FORMATS


def default_formats(result: Result, case: Case) -> tuple[str, ...]:
    """The format of the input for label maps; the plainest one that holds everything for the rest."""
    if isinstance(result, VideoSegmentation):
        return ("tiff", "csv")
    if isinstance(result, StackSegmentation):
        return (result.labels.format, "csv")
    if isinstance(result, Segmentation):
        table = ("csv",) if result.columns else ()
        if case.source.format == "dicom":
            return ("dicom-seg", *table)
        return ("nifti", *table) if result.geometry is not None else ("png", *table)
    if isinstance(result, SlideFeatures):
        return ("h5",)
    if isinstance(result, Embedding):
        return ("npz",)
    if isinstance(result, Classification | Scores | Detections):
        return ("csv",)
    if isinstance(result, Generation):
        return ("txt",)
    return ("json",)


def write(
    result: Result,
    case: Case,
    folder: Path,
    *,
    formats: Sequence[str] | None = None,
    model_name: str = "",
    model_version: str = "",
) -> dict[str, Path]:
    """Write ``result`` into ``folder``, each file whole or not at all; returns format -> path.

    Raises
    ------
    UsageError
        A format that cannot hold this result.
    OutputError
        The folder is read-only, the disk is full.
    """
    written = {}
    names = tuple(formats or default_formats(result, case))
    if isinstance(result, StackSegmentation) and result.labels.path.parent == folder and not set(names) & set(ENDINGS):
        names = (result.labels.format, *names)  # a label map that lies there already gets its name
    for name in names:
        filename, writer = _writer(name, result, case, model_name, model_version)
        written[name] = _written(folder / filename, writer)
    if isinstance(result, StackSegmentation):
        settle(result, {name: path for name, path in written.items() if name in ENDINGS}, folder)
    for filename, writer in result.files.items():
        written[filename] = _written(folder / filename, writer)
    return written


def _written(path: Path, writer: Callable[[Path], None]) -> Path:
    try:
        writer(path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}",
            remedy="Free space, or name another folder with -o",
        ) from None
    return path


def _writer(
    name: str, result: Result, case: Case, model_name: str, model_version: str
) -> tuple[str, Callable[[Path], None]]:
    stem = result.kind.value
    if isinstance(result, SlideFeatures):
        return _features_writer(name, result)
    if name in ("json", "csv", "npz"):
        from omlab.results import tables

        function = {"json": tables.write_json, "csv": tables.write_csv, "npz": tables.write_npz}[name]
        return f"{stem}.{name}", lambda path: function(result, path)
    if name == "txt" and isinstance(result, Generation):
        from omlab.files import write_text

        text = result.text
        return f"{stem}.txt", lambda path: write_text(path, text + "\n")
    if isinstance(result, VideoSegmentation):
        if name != "tiff":
            raise UsageError(
                f"the masks of a video cannot be written as {name}", remedy="Use --format tiff, csv, json or npz"
            )
        from omlab.results.frames import write_tiff

        return f"{stem}.tiff", lambda path: write_tiff(result, path)
    if isinstance(result, StackSegmentation):
        if name not in ENDINGS:
            raise UsageError(
                f"the label map of a stack cannot be written as {name}", remedy=f"Use --format {', '.join(ENDINGS)}"
            )
        from omlab.results.stacks import write_segmentation

        return f"{stem}{ENDINGS[name]}", lambda path: write_segmentation(result, path, name)
    if not isinstance(result, Segmentation):
        raise UsageError(f"a {stem} cannot be written as {name}", remedy="Use --format json, csv or npz")
    if name == "nifti":
        if result.geometry is None:
            raise UsageError(
                "a 2D segmentation has no place in a volume and cannot be written as nifti", remedy="Use png"
            )
        from omlab.results import nifti

        return f"{stem}.nii.gz", lambda path: nifti.write_segmentation(result, path)
    if name == "png":
        if result.labels.ndim != 2:
            raise UsageError("a 3D segmentation cannot be written as png", remedy="Use nifti or dicom-seg")
        from omlab.results import png

        return f"{stem}.png", lambda path: png.write_segmentation(result, path)
    if case.source.format != "dicom":
        raise UsageError(
            f"{name} refers to the DICOM series that was segmented, but {case.name} is {case.source.format}",
            remedy="Use nifti, or give the DICOM series",
        )
    if name in ("dicom-seg", "dicom-seg-binary"):
        from omlab.results import dicom_seg

        binary = name == "dicom-seg-binary"
        return f"{stem}.dcm", lambda path: dicom_seg.write_segmentation(
            result, case, path, binary=binary, model_name=model_name, model_version=model_version
        )
    if name == "rtstruct":
        from omlab.results import rtstruct

        return "rtstruct.dcm", lambda path: rtstruct.write_segmentation(
            result, case, path, model_name=model_name, model_version=model_version
        )
    raise UsageError(f"'{name}' is no format of a {stem}", remedy=f"The formats are: {', '.join(FORMATS)}")


def _features_writer(name: str, result: SlideFeatures) -> tuple[str, Callable[[Path], None]]:
    from omlab.results import slide_features, tables

    writers: dict[str, Callable[[SlideFeatures, Path], None]] = {
        "h5": slide_features.write_h5, "pt": slide_features.write_pt, "npz": slide_features.write_npz,
        "json": tables.write_json,
    }  # fmt: skip
    if name not in writers:
        raise UsageError(
            f"features of a slide cannot be written as {name}", remedy=f"Use --format {', '.join(writers)}"
        )
    return f"features.{name}", lambda path: writers[name](result, path)
