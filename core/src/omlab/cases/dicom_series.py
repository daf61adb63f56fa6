"""Which DICOM frames make a volume, in which order, and where it lies.

Order and spacing come from the positions of the frames alone; slice numbers, thickness and file names do not matter.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from omlab.cases.dicom_header import Header
from omlab.errors import InputError
from omlab.geometry import Geometry

#: Direction cosines that differ by no more are one orientation.
SAME_DIRECTION = 2e-3
#: Gaps between slices may differ from the usual one by this share, as positions are stored with few digits.
UNEVEN = 0.05
#: Slices that do not lie exactly over each other are told from a tilted gantry, in degrees.
TILT_DEGREES = 0.05
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: What tells apart the images at one position, the most telling first.
SERIES_WITHIN = (
    "TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "DiffusionBValue", "TriggerTime", "AcquisitionNumber",
    "AcquisitionTime", "ContentTime", "ImageType",
)  # fmt: skip


@attrs.frozen(eq=False)
class Frame:
    """One slice: a file, or a frame of a multi-frame file.

    Attributes
    ----------
    index : of the frame in its file, from 0.
    position : [3] LPS millimetres of the centre of the first pixel.
    directions : [2, 3] direction of growing column index, then of growing row index.
    spacing_mm : between rows, between columns.
    slope, intercept : of the rescale; 1 and 0 where there is none.
    groups : of a multi-frame file, what tells its frames apart; see :attr:`within`.
    """

    header: Header
    index: int
    position: NDArray[np.float64]
    directions: NDArray[np.float64]
    spacing_mm: tuple[float, float]
    slope: float
    intercept: float
    groups: tuple[str, ...] | None = None

    @property
    def within(self) -> tuple[str, ...]:
        """What tells apart the images at one position: the value of each of :data:`SERIES_WITHIN`, or the groups."""
        if self.groups is not None:
            return self.groups
        return tuple(str(self.header.get(keyword, "")) for keyword in SERIES_WITHIN)

    @property
    def label(self) -> str:
        """How it is called in messages."""
        return f"{self.header.path.name} frame {self.index}" if self.header.frames > 1 else self.header.path.name


def frames_of(header: Header) -> list[Frame]:
    """The slices in a file; none where it has no place in a patient (a radiograph, a photograph, a cine loop)."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    if per_frame:
        shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
        found = [_enhanced(header, index, groups, shared[0]) for index, groups in enumerate(per_frame)]
        return [frame for frame in found if frame is not None] if all(f is not None for f in found) else []
    if header.frames > 1:
        return []
    position, orientation = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    spacing = header.get("PixelSpacing")
    if position is None or orientation is None:
        return []
    return [_frame(header, 0, position, orientation, spacing, header.values, None)]


def _enhanced(header: Header, index: int, groups: Dataset, shared: Dataset) -> Frame | None:
    def value(sequence: str, keyword: str) -> Any:
        for owner in (groups, shared):
            items = owner.get(sequence)
            if items and keyword in items[0]:
                return items[0].get(keyword)
        return None

    position = value("PlanePositionSequence", "ImagePositionPatient")
    orientation = value("PlaneOrientationSequence", "ImageOrientationPatient")
    if position is None or orientation is None:
        return None
    owner = next((o for o in (groups, shared) if o.get("PixelValueTransformationSequence")), None)
    rescale = owner.PixelValueTransformationSequence[0] if owner is not None else Dataset()
    spacing = value("PixelMeasuresSequence", "PixelSpacing")
    within = [
        str(value("FrameContentSequence", "TemporalPositionIndex") or ""),
        str(value("MREchoSequence", "EffectiveEchoTime") or ""),
        str(value("MRDiffusionSequence", "DiffusionBValue") or ""),
        str(value("FrameContentSequence", "StackID") or ""),
    ]
    return _frame(header, index, position, orientation, spacing, rescale, tuple(within))


def _frame(
    header: Header,
    index: int,
    position: Any,
    orientation: Any,
    spacing: Any,
    rescale: Any,
    groups: tuple[str, ...] | None,
) -> Frame:
    name = header.path.name
    if spacing is None or len(spacing) != 2:
        raise InputError(f"{name}: its DICOM header has no PixelSpacing, a slice must have one")
    if len(position) != 3 or len(orientation) != 6:
        raise InputError(f"{name}: ImagePositionPatient or ImageOrientationPatient has the wrong number of values")
    place = np.array([float(v) for v in position])
    directions = np.array([float(v) for v in orientation]).reshape(2, 3)
    if not (np.isfinite(place).all() and np.isfinite(directions).all()):
        raise InputError(f"{name}: its position or orientation in the patient is not finite")
    lengths = np.linalg.norm(directions, axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(float(directions[0] @ directions[1])) > 0.01:
        raise InputError(
            f"{name}: ImageOrientationPatient is {list(map(float, orientation))}, expected two unit vectors at right"
            " angles",
            remedy="Mend the header",
        )
    slope, intercept = rescale.get("RescaleSlope"), rescale.get("RescaleIntercept")
    return Frame(
        header=header, index=index, position=place, directions=directions / lengths[:, None],
        spacing_mm=(float(spacing[0]), float(spacing[1])),
        slope=1.0 if slope is None else float(slope), intercept=0.0 if intercept is None else float(intercept),
        groups=groups,
    )  # fmt: skip


@attrs.frozen(eq=False)
class Stack:
    """Frames of one series, size, pixel spacing and orientation: what may be one volume."""

    series: str
    frames: tuple[Frame, ...]

    @property
    def first(self) -> Header:
        """The header of its first frame."""
        return self.frames[0].header

    def describe(self) -> str:
        """In a few words, without anything of the patient."""
        header = self.first
        size = f"{len(self.frames)} x {header.get('Rows')} x {header.get('Columns')}"
        return f"{header.get('Modality', '?')} {size}, series {self.series}"


def stacks_of(headers: Iterable[Header]) -> tuple[list[Stack], list[Header]]:
    """Sort files: stacks that may be volumes, and files that are images by themselves."""
    stacks: list[list[Frame]] = []
    keys: list[tuple[Any, ...]] = []
    singles: list[Header] = []
    for header in headers:
        frames = frames_of(header)
        if not frames:
            singles.append(header)
        # A multi-frame file is a volume by itself, one file of several time points too.
        own = str(header.path) if header.frames > 1 else ""
        for frame in frames:
            key = (
                str(header.get("SeriesInstanceUID", "")), own, header.number("Rows"), header.number("Columns"),
                int(header.get("SamplesPerPixel", 1)), header.get("BitsAllocated"), header.get("PixelRepresentation"),
            )  # fmt: skip
            for known, stack in zip(keys, stacks, strict=True):
                if known == key and _alike(stack[0], frame):
                    stack.append(frame)
                    break
            else:
                keys.append(key)
                stacks.append([frame])
    return [Stack(key[0], tuple(stack)) for key, stack in zip(keys, stacks, strict=True)], singles


def _alike(one: Frame, other: Frame) -> bool:
    return bool(
        np.abs(one.directions - other.directions).max() <= SAME_DIRECTION
        and np.allclose(one.spacing_mm, other.spacing_mm, rtol=1e-3, atol=0)
    )


@attrs.frozen(eq=False)
class Ordered:
    """A stack put in order.

    Attributes
    ----------
    frames : the slices, k ascending.
    geometry : (columns, rows, slices) with the affine to RAS+.
    volumes : number of volumes that the stack holds, more than one for time points, echoes and the like.
    """

    frames: tuple[Frame, ...]
    geometry: Geometry
    volumes: int
    tilt_degrees: float
    warnings: tuple[str, ...]


def order(stack: Stack, name: str, frame: int | None) -> Ordered:
    """Put a stack in order and find its grid.

    Raises
    ------
    omlab.errors.InputError
        Duplicate or missing slices, uneven spacing, several volumes and no ``frame``.
    """
    normal = np.cross(*stack.frames[0].directions)
    _refuse_copies(stack.frames, name)
    places = _places(stack.frames, normal)
    chosen, volumes = _one_volume(places, name, frame)
    header = stack.first
    positions = np.array([f.position for f in chosen])
    warnings: list[str] = []
    if len(chosen) > 1:
        step = _step(chosen, positions, normal, name, warnings)
    else:
        step = normal * _thickness(header, warnings)
    along = float(step @ normal)
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(step - along * normal), along)))
    if tilt > TILT_DEGREES:
        warnings.append(f"the slices are sheared by {tilt:.1f} degrees (gantry tilt); the grid keeps this")
    else:
        tilt = 0.0
    between_rows, between_columns = chosen[0].spacing_mm
    right, down = chosen[0].directions
    affine = np.eye(4)
    affine[:3] = np.column_stack([right * between_columns, down * between_rows, step, positions[0]])
    shape = (header.number("Columns"), header.number("Rows"), len(chosen))
    return Ordered(tuple(chosen), Geometry(shape, LPS_TO_RAS @ affine), volumes, tilt, tuple(warnings))


def _refuse_copies(frames: Sequence[Frame], name: str) -> None:
    seen: dict[tuple[str, int], Frame] = {}
    for frame in frames:
        uid = str(frame.header.get("SOPInstanceUID", ""))
        first = seen.setdefault((uid, frame.index), frame) if uid else frame
        if first is not frame:
            raise InputError(
                f"{name}: the same slice is there twice: {first.label} and {frame.label}", remedy="Remove one of them"
            )


def _places(frames: Sequence[Frame], normal: NDArray[np.float64]) -> list[list[Frame]]:
    """Frames by their place along the normal, ascending; those at one place together."""
    ranked = sorted(frames, key=lambda f: float(f.position @ normal))
    depth = np.array([float(f.position @ normal) for f in ranked])
    gaps = np.diff(depth)
    wide = gaps[gaps > 1e-3]
    together = min(0.01, 0.1 * float(np.median(wide))) if len(wide) else 1e-3
    places = [[ranked[0]]]
    for gap, frame in zip(gaps, ranked[1:], strict=True):
        if gap > together:
            places.append([])
        places[-1].append(frame)
    return places


def _one_volume(places: list[list[Frame]], name: str, frame: int | None) -> tuple[list[Frame], int]:
    counts = Counter(len(place) for place in places)
    volumes = max(counts)
    if volumes == 1:
        if frame not in (None, 0):
            raise InputError(f"{name}: has a single volume, --frame {frame} was asked for")
        return [place[0] for place in places], 1
    doubled = next(place for place in places if len(place) > 1)
    names = " and ".join(f.label for f in doubled[:2])
    if len(counts) > 1:
        raise InputError(f"{name}: two slices are at the same place: {names}", remedy="Remove the duplicates")
    groups = _split(places)
    if groups is None:
        raise InputError(
            f"{name}: there are {volumes} slices at every place and nothing tells them apart: {names}",
            remedy="Remove the duplicates",
        )
    if frame is None:
        raise InputError(
            f"{name}: holds {volumes} volumes (time points, echoes or the like), expected one",
            remedy=f"Choose one with --frame N (0 to {volumes - 1})",
        )
    if not 0 <= frame < volumes:
        raise InputError(f"{name}: has no volume {frame}", remedy=f"It has 0 to {volumes - 1}")
    return groups[frame], volumes


def _split(places: list[list[Frame]]) -> list[list[Frame]] | None:
    """Volumes by the first attribute that has the same values at every place, each once."""
    volumes = len(places[0])
    for number in range(len(places[0][0].within)):
        groups: defaultdict[str, list[Frame]] = defaultdict(list)
        for place in places:
            for frame in place:
                groups[frame.within[number]].append(frame)
        whole = all(len({id(f.header) if f.header.frames == 1 else f.index for f in g}) == len(places) for g in
                    groups.values())  # fmt: skip
        once = all(len({f.within[number] for f in place}) == volumes for place in places)
        if len(groups) == volumes and whole and once:
            return [groups[key] for key in sorted(groups, key=_natural)]
    return None


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text


def _step(
    frames: Sequence[Frame], positions: NDArray[np.float64], normal: NDArray[np.float64], name: str, warnings: list[str]
) -> NDArray[np.float64]:
    """[3] from one slice to the next, LPS mm; the slices must lie evenly on a line."""
    depth = positions @ normal
    gaps = np.diff(depth)
    usual = float(np.median(gaps))
    allowed = max(UNEVEN * usual, 0.005)
    uneven = np.flatnonzero(np.abs(gaps - usual) > allowed)
    if uneven.size:
        at = int(uneven[np.argmax(gaps[uneven])])
        gap = float(gaps[at])
        missing = round(gap / usual) - 1
        between = (
            f"between {frames[at].label} and {frames[at + 1].label} (at {depth[at]:.2f} and {depth[at + 1]:.2f} mm)"
        )
        if missing >= 1 and abs(gap - (missing + 1) * usual) <= allowed * (missing + 1):
            count = "1 slice is missing" if missing == 1 else f"{missing} slices are missing"
            raise InputError(
                f"{name}: {count} {between}: the gap is {gap:.3f} mm, usual are {usual:.3f} mm",
                remedy="Fetch the whole series again",
            )
        raise InputError(
            f"{name}: its slices are unevenly spaced: {gap:.3f} mm {between}, usual are {usual:.3f} mm",
            remedy="Resample it to an even spacing first, or give the part that is even",
        )
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    line = positions[0] + np.arange(len(frames))[:, None] * step
    off = float(np.abs(positions - line).max())
    if off > max(allowed, 0.1 * min(frames[0].spacing_mm)):
        worst = frames[int(np.abs(positions - line).max(axis=1).argmax())]
        raise InputError(f"{name}: its slices do not lie on a line, {worst.label} is {off:.2f} mm beside it")
    if off > 0.02:
        warnings.append(f"the positions of the slices differ from an even grid by up to {off:.3f} mm")
    return np.asarray(step)


def _thickness(header: Header, warnings: list[str]) -> float:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        value = header.get(keyword)
        if value is not None and float(value) > 0:
            return float(value)
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    measures = shared.get("PixelMeasuresSequence")
    if measures and measures[0].get("SliceThickness"):
        return float(measures[0].SliceThickness)
    warnings.append("a single slice that does not tell its thickness; 1 mm was taken")
    return 1.0
