"""From paths to cases: what a file is, which files make a case, and the checks that every case must pass."""

from __future__ import annotations

import glob
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from omlab.cases.sniff import Family, expected, family_of
from omlab.cases.types import Case, Image, Volume
from omlab.errors import InputError, OmlabError
from omlab.files import case_stem
from omlab.vocabulary import InputKind

NONFINITE = ("error", "keep", "zero")
#: Smallest and greatest distance of voxels that a scanner makes, in mm; beyond lies a wrong unit or a broken header.
SPACING_MM = (1e-3, 1e3)


def read(
    path: str | Path,
    *,
    kind: Collection[InputKind] | InputKind | None = None,
    frame: int | None = None,
    series: str | None = None,
    nonfinite: str = "error",
    files: Sequence[Path] = (),
) -> Case:
    """Read a case from a file, or from a folder with a DICOM series. The content decides what it is, not the name.

    Parameters
    ----------
    kind : what the caller can use; anything else is an error.
    frame : which volume of a 4D file, page of a TIFF or frame of a multi-frame DICOM, from 0.
    series : which series (UID) of a DICOM folder.
    nonfinite : what to do with NaN and infinite voxels: ``"error"``, ``"keep"``, or ``"zero"``.
    files : the files of a DICOM series, where :func:`find` has sorted them out already.

    Raises
    ------
    omlab.errors.InputError
        The file is missing, empty, damaged, of another kind, or its geometry makes no sense.
    """
    path = Path(path)
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite is one of {', '.join(NONFINITE)}, found '{nonfinite}'")
    kinds = {kind} if isinstance(kind, InputKind) else set(kind or ())
    family = Family.DICOM if files else family_of(path, kinds)
    if kinds and not kinds & family.kinds:
        raise InputError(f"{path.name}: is {family.noun}, expected {expected(kinds)}")
    if family is Family.VIDEO or kinds == {InputKind.VIDEO}:
        from omlab.cases import video

        return video.read(files[0] if files else path)
    if family in (Family.FASTA, Family.TEXT):
        return _only(path, kinds)
    if family is Family.SLIDE:
        from omlab.cases import slide

        return slide.read(path)
    if family is Family.STACK:
        from omlab.cases import stack

        return stack.read(path, frame=frame)
    if family is Family.HDF5:
        from omlab.cases import slide_features

        return slide_features.read(path)
    if family is Family.NIFTI:
        from omlab.cases import nifti

        case: Case = nifti.read(path, frame=frame)
    elif family is Family.ITK:
        from omlab.cases import itk

        case = itk.read(path, frame=frame)
    elif family is Family.PICTURE:
        from omlab.cases import images

        case = images.read(path, frame=frame)
    else:
        from omlab.cases import dicom

        case = dicom.read(path, files=files, frame=frame, series=series, kinds=kinds)
    if kinds and case.kind not in kinds:
        wanted = " or ".join(sorted(k.value for k in kinds))
        raise InputError(f"{path.name}: is {_article(case.kind)}, the model takes {wanted}")
    return _checked(case, nonfinite)


def _article(kind: InputKind) -> str:
    names = {
        InputKind.IMAGE: "a 2D image", InputKind.VOLUME: "a 3D volume", InputKind.VIDEO: "a video",
        InputKind.SEQUENCE: "a protein sequence", InputKind.TEXT: "text",
        InputKind.SLIDE: "a whole slide", InputKind.FEATURES: "features of patches",
        InputKind.STACK: "a stack of planes",
    }  # fmt: skip
    return names.get(kind, f"of kind {kind}")


def _records(path: Path, kinds: Collection[InputKind]) -> list[tuple[str, Case | OmlabError]]:
    """The cases of a file that holds several, each with its name; a record that can be none with its error."""
    if InputKind.SEQUENCE in kinds or family_of(path) is Family.FASTA:
        from omlab.cases import sequences

        return sequences.read_all(path)
    from omlab.cases import texts

    return texts.read_all(path)


def _only(path: Path, kinds: Collection[InputKind]) -> Case:
    records = _records(path, kinds)
    if len(records) != 1:
        raise InputError(f"{path.name}: holds {len(records)} records, expected one", remedy="omlab.find gives them all")
    ((_, case),) = records
    if isinstance(case, OmlabError):
        raise case
    return case


def _checked(case: Case, nonfinite: str) -> Case:
    if isinstance(case, Volume):
        affine = case.geometry.affine
        if not np.isfinite(affine).all():
            raise InputError(f"{case.name}: its affine has values that are not finite", remedy="Mend the header")
        spacing = case.geometry.spacing_mm
        low, high = SPACING_MM
        if min(spacing) < low or max(spacing) > high:
            shown = " x ".join(f"{s:g}" for s in spacing)
            raise InputError(
                f"{case.name}: its spacing is {shown} mm, expected {low:g} to {high:g} mm along each axis",
                remedy="Mend the header",
            )
        if abs(np.linalg.det(affine[:3, :3])) < 1e-6 * np.prod(spacing):
            raise InputError(
                f"{case.name}: its affine is singular: two axes point the same way", remedy="Mend the header"
            )
        return _finite(case, case.voxels, "voxels", nonfinite)
    if isinstance(case, Image):
        return _finite(case, case.pixels, "pixels", nonfinite)
    return case


def _finite(case: Any, values: np.ndarray, field: str, nonfinite: str) -> Case:
    if values.dtype.kind != "f":
        return case  # type: ignore[no-any-return]
    # The sum is finite only if all values are: one cheap pass without a temporary for the usual case.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.sum(values, dtype=np.float64)):
            return case  # type: ignore[no-any-return]
    bad = ~np.isfinite(values)
    count = int(bad.sum())
    if not count:
        return case  # type: ignore[no-any-return]
    if nonfinite == "error":
        raise InputError(
            f"{case.name}: {count} of {values.size} {field} are NaN or infinite",
            remedy="Run with --nonfinite zero to take them as 0, or --nonfinite keep to pass them on",
        )
    note = f"{count} {field} are NaN or infinite"
    if nonfinite == "zero":
        values = values.copy()
        values[bad] = 0
        note += " and were taken as 0"
    source = attrs.evolve(case.source, warnings=(*case.source.warnings, note))
    return attrs.evolve(case, source=source, **{field: values})  # type: ignore[no-any-return]


@attrs.frozen(eq=False)
class Found:
    """A case that was found, not yet read.

    Attributes
    ----------
    name : unique among the cases found together, and fit for a folder.
    path : what to read.
    files : the files of a DICOM series.
    error : why it cannot be a case; raised when it is read.
    case : the case itself, where its file holds many small ones (sequences, texts) and was read whole.
    """

    name: str
    path: Path
    files: tuple[Path, ...] = ()
    error: OmlabError | None = None
    case: Case | None = None

    def read(self, **reading: Any) -> Case:
        """Read it; arguments as of :func:`read`."""
        if self.error is not None:
            raise self.error
        return self.case or read(self.path, files=self.files, **reading)


def find(inputs: Sequence[str | Path], *, series: str | None = None, kinds: Collection[InputKind] = ()) -> list[Found]:
    """Cases behind files, folders and glob patterns, in order.

    A folder is searched with its subfolders; DICOM files in it are grouped by series, other files that are no case are
    passed over. Each record of a file of sequences or texts is a case. A file that was named and cannot be a case
    becomes a :class:`Found` with an error.

    Parameters
    ----------
    series : only this DICOM series.
    kinds : what the caller can use; scans and pictures without any. Where only videos are, a folder of pictures is
        one video; where stacks of planes are, a folder of TIFF pages or of OME-Zarr is one stack, and a folder with
        stacks is searched for nothing else.
    """
    kinds = frozenset(kinds)
    found: list[Found] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            inside = _in_folder(path, series, kinds)
            found += inside or [Found(path.name, path, (), _nothing(path, series))]
        elif path.exists() or not glob.has_magic(str(given)):
            found += _file(path, kinds)
        else:
            matches = sorted(glob.glob(str(given), recursive=True))
            if not matches:
                error = InputError(f"{given}: no file fits this pattern")
                found.append(Found("pattern", path, (), error))
            for match in matches:
                found += _in_folder(Path(match), series, kinds) if Path(match).is_dir() else _file(Path(match), kinds)
    return _unique(found)


def _nothing(folder: Path, series: str | None) -> InputError:
    what = "no file that can be a case" if series is None else f"no DICOM series {series}"
    return InputError(f"{folder}: holds {what}")


def _file(path: Path, kinds: frozenset[InputKind]) -> list[Found]:
    try:
        family = family_of(path, kinds)
        if family in (Family.FASTA, Family.TEXT) and family.kinds & kinds:
            return [
                Found(name, path, (), case) if isinstance(case, OmlabError) else Found(name, path, case=case)
                for name, case in _records(path, kinds)
            ]
    except OmlabError as error:
        return [Found(path.name, path, (), error)]
    return [Found(path.name, path)]


def _in_folder(folder: Path, series: str | None, kinds: frozenset[InputKind]) -> list[Found]:
    if InputKind.STACK in kinds:
        from omlab.cases import stack

        stacks = [Found(path.name, path) for path in stack.find(folder)]
        kinds -= {InputKind.STACK}
        if stacks or not kinds:
            return stacks
    single: list[Found] = []
    dicom: list[Path] = []
    frames: set[Path] = set()
    wanted = kinds or {InputKind.IMAGE, InputKind.VOLUME}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        try:
            family = family_of(path, kinds)
        except OmlabError:
            continue
        if family is Family.PICTURE and wanted == {InputKind.VIDEO}:
            if path.parent not in frames:
                frames.add(path.parent)
                single.append(Found(path.parent.name, path.parent))
        elif not family.kinds & wanted:
            continue
        elif family in (Family.FASTA, Family.TEXT):
            single += _file(path, kinds)
        elif family is Family.DICOM:
            dicom.append(path)
        elif not (path.suffix == ".img" and path.with_suffix(".hdr").is_file()):
            single.append(Found(path.name, path))
    if not dicom:
        return single
    from omlab.cases import dicom as reader

    return single + [Found(name, folder, files, error) for name, files, error in reader.group(dicom, folder, series)]


def _unique(found: list[Found]) -> list[Found]:
    """Names that can be folders, each once."""
    taken: set[str] = set()
    named = []
    for item in found:
        stem = case_stem(item.name)
        clean = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem).strip("._") or "case"
        name, number = clean[:120], 1
        while name.lower() in taken:
            number += 1
            name = f"{clean[:110]}-{number}"
        taken.add(name.lower())
        named.append(attrs.evolve(item, name=name))
    return named
