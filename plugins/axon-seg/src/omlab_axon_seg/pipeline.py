"""From a stack to its label map, centre lines, densities and figures, in one pass over its planes."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases import Stack
from omlab.errors import InputError, OutputError, UsageError
from omlab.model import Context
from omlab.results import Label, StackSegmentation
from omlab.results.stack_picture import Projection, draw
from omlab.results.stacks import ENDINGS, StackLabels, Writer, move, writer
from omlab_axon_seg.brain import Network, Windows, probabilities
from omlab_axon_seg.labels import step_lengths
from omlab_axon_seg.measures import figures, spacing_of
from omlab_axon_seg.tracing import CellSums, Thinner

Triple = tuple[int, int, int]


def run(stack: Stack, context: Context, network: Network, structure: Label, side: int) -> StackSegmentation:
    """Segment a stack. Memory does not grow with the number of its planes; results grow on the disk.

    Parameters
    ----------
    network : takes windows of ``side`` voxels.

    Raises
    ------
    omlab.errors.InputError
        A plane is damaged, or the region lies outside of the stack.
    omlab.errors.OutputError
        The disk is full.
    omlab.errors.UsageError
        An option is out of its range.
    """
    options = context.options
    windows = Windows(*region_of(options["region"], stack), overlap=int(options["overlap"]), side=side)
    spacing = spacing_of(options["voxel"]) or stack.spacing_um
    temporary = context.scratch is None
    folder = Path(tempfile.mkdtemp(prefix="omlab-axons-")) if context.scratch is None else context.scratch
    there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    form = stack.source.format if stack.source.format in ENDINGS else "tiff"
    clock = _Clock(network)
    try:
        with context.stage("restore"), _Outputs(folder, form, windows, spacing, structure, options) as outputs:
            for number, plane in probabilities(
                stack, windows, clock, normalise=options["normalise"], background=options["background"],
                folder=folder, seen=outputs.seen, done=_teller(context, clock),
            ):  # fmt: skip
                if number >= windows.start[0]:
                    outputs.push(plane)
            outputs.finish()
    except BaseException as error:
        if temporary:
            shutil.rmtree(folder, ignore_errors=True)
        elif not there and not any(folder.iterdir()):
            folder.rmdir()
        if isinstance(error, OSError):
            raise OutputError(
                f"{folder} cannot be written: {error.strerror or error}",
                remedy="Free space, or name another folder with -o",
            ) from None
        raise
    context.share_out(clock.seconds)
    numbers = outputs.figures() | {"windows": float(clock.asked), "windows_left_out": float(clock.left_out)}
    result = StackSegmentation(
        labels=StackLabels(outputs.paths["segmentation"], form, {structure.value: outputs.voxels}),
        structures=[structure], start=windows.start, spacing_um=spacing, measurements=numbers,
        files={path.name.removeprefix(PREFIX): _Mover(path) for path in outputs.further()},
        illustration=lambda title: draw(
            outputs.bright, outputs.marked, title=title, name=stack.name, colour=structure.colour,
            caption=caption(numbers), um=spacing[1] if spacing else None,
        ),
    )  # fmt: skip
    return result.keep_until_gone(folder) if temporary else result


#: Of files that are not complete.
PREFIX = "unfinished-"


class _Mover:
    """Gives a file of a result its place."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, path: Path) -> None:
        move(self._path, path)
        self._path = path


class _Outputs:
    """Everything that is made of the planes of probabilities, each as it comes."""

    def __init__(
        self, folder: Path, form: str, windows: Windows, spacing: tuple[float, float, float] | None, structure: Label,
        options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.voxels = 0
        self.paths: dict[str, Path] = {}
        self._windows, self._spacing, self._structure = windows, spacing, structure
        self._threshold, self._cell = int(options["threshold"]), int(options["cell"])
        planes, size = windows.stop[0] - windows.start[0], windows.size
        self._total = planes * size[0] * size[1]
        self.bright, self.marked = Projection(size), Projection(size)
        self._thinner, self._before = Thinner(size), None
        self._length = 0.0
        self._steps = CellSums(size, self._cell)
        self._shares = CellSums(size, self._cell)
        self._writers: dict[str, Writer] = {}
        cells: Triple = (-(-planes // self._cell), -(-size[0] // self._cell), -(-size[1] // self._cell))
        coarse = tuple(s * self._cell for s in spacing) if spacing else None
        with ExitStack() as undo:
            undo.callback(self._abandon)

            def open_one(name: str, form: str, shape: Triple, dtype: str, **more: Any) -> None:
                self.paths[name] = folder / f"{PREFIX}{name}{ENDINGS[form]}"
                self._writers[name] = writer(form, self.paths[name], shape, dtype, **more)

            fine = {"start": windows.start[0], "spacing_um": spacing}
            open_one("segmentation", form, (planes, *size), "uint8", structures=[structure], **fine)
            if options["lines"]:
                open_one("lines", form, (planes, *size), "uint8", structures=[structure], **fine)
            if options["probabilities"]:
                open_one("probabilities", form, (planes, *size), "uint8", **fine)
            for name in ("density", "length-density"):
                open_one(name, "tiff", cells, "float32", spacing_um=coarse)
            undo.pop_all()

    def __enter__(self) -> _Outputs:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None:
            self._abandon()

    def _abandon(self) -> None:
        for made in self._writers.values():
            made.abandon()

    def seen(self, number: int, plane: NDArray[Any]) -> None:
        """A plane of the stack, as it was read."""
        self.bright.add(plane)

    def push(self, grey: NDArray[np.uint8]) -> None:
        """The next plane of probabilities."""
        mask = grey > self._threshold
        self.voxels += int(np.count_nonzero(mask))
        self.marked.add(mask.astype(np.uint8))
        self._writers["segmentation"].append(mask.astype(np.uint8) * self._structure.value)
        if "probabilities" in self._writers:
            self._writers["probabilities"].append(grey)
        self._to("density", self._shares.push(mask))
        for lines in self._thinner.push(mask):
            self._line(lines)

    def finish(self) -> None:
        """After the last plane."""
        for lines in self._thinner.finish():
            self._line(lines)
        assert self._before is not None
        self._step(self._before, np.zeros_like(self._before))
        self._to("density", self._shares.finish())
        self._to("length-density", self._steps.finish(), self._per_volume)
        for made in self._writers.values():
            made.finish()

    def further(self) -> Iterator[Path]:
        """Files beside the label map."""
        return (path for name, path in self.paths.items() if name != "segmentation")

    def figures(self) -> dict[str, float]:
        """What was found (:func:`omlab_axon_seg.measures.figures`)."""
        return figures(self.voxels, self._total, self._length, self._spacing)

    @property
    def _per_volume(self) -> float:
        """What makes a length a voxel, in micrometres or voxels, a length density in mm/mm3 or 1/voxel2."""
        return 1.0 if self._spacing is None else 1e6 / float(np.prod(self._spacing))

    def _line(self, lines: NDArray[np.bool_]) -> None:
        if "lines" in self._writers:
            self._writers["lines"].append(lines.astype(np.uint8) * self._structure.value)
        if self._before is not None:
            self._step(self._before, lines)
        self._before = lines

    def _step(self, lines: NDArray[np.bool_], following: NDArray[np.bool_]) -> None:
        lengths = step_lengths(lines, following, self._spacing or (1.0, 1.0, 1.0))
        self._length += float(lengths.sum(dtype=np.float64))
        self._to("length-density", self._steps.push(lengths), self._per_volume)

    def _to(self, name: str, planes: Iterator[NDArray[np.float32]], factor: float = 1.0) -> None:
        for plane in planes:
            self._writers[name].append(plane * np.float32(factor))


@attrs.define
class _Clock:
    """A network that tells how long it took."""

    network: Network
    seconds: float = 0.0
    asked: int = 0
    left_out: int = 0

    def __call__(self, tile: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        start = time.perf_counter()
        found = self.network(tile)
        self.seconds += time.perf_counter() - start
        return found


def _teller(context: Context, clock: _Clock) -> Callable[[int, int, bool], None]:
    def tell(done: int, total: int, asked: bool) -> None:
        clock.asked += asked
        clock.left_out += not asked
        context.progress("network", done, total, "windows")

    return tell


def check(options: Mapping[str, Any], side: int) -> None:
    """Raise :class:`omlab.errors.UsageError` for options that fit no stack."""
    Windows((0, 0, 0), (1, 1, 1), side=side, overlap=int(options["overlap"]))
    if not 0 <= options["threshold"] < 255:
        raise UsageError(f"option 'threshold' is from 0 to 254, found {options['threshold']}")
    if options["cell"] < 1:
        raise UsageError(f"option 'cell' is 1 or more voxels, found {options['cell']}")
    spacing_of(options["voxel"])
    _ranges(options["region"])


def _ranges(text: str) -> list[tuple[int | None, int | None]]:
    if not text:
        return [(None, None)] * 3
    try:
        pairs = [part.split(":") for part in text.split(",")]
        found = [(int(a) if a.strip() else None, int(b) if b.strip() else None) for a, b in pairs]
    except ValueError:
        found = []
    if len(found) != 3 or any((a or 0) < 0 or (b is not None and b <= (a or 0)) for a, b in found):
        raise UsageError(
            f"option 'region' is three ranges of voxels, z,y,x: 0:200,500:1500,: (the end not in it); found '{text}'"
        )
    return found


def region_of(text: str, stack: Stack) -> tuple[Triple, Triple]:
    """First voxel and the voxel after the last, (z, y, x), from ``"0:200,500:1500,:"``.

    Raises
    ------
    omlab.errors.InputError
        It lies outside of the stack.
    omlab.errors.UsageError
        It is no region.
    """
    ranges = _ranges(text)
    start = tuple(first or 0 for first, _ in ranges)
    stop = tuple(n if last is None else last for (_, last), n in zip(ranges, stack.shape, strict=True))
    if any(b > n or a >= b for a, b, n in zip(start, stop, stack.shape, strict=True)):
        raise InputError(
            f"{stack.name}: has {' x '.join(map(str, stack.shape))} voxels (z, y, x), the region '{text}' is not in it"
        )
    return start, stop  # type: ignore[return-value]


def caption(numbers: Mapping[str, float]) -> str:
    """The line below the picture."""
    length = (
        f"{numbers['length_mm']:.4g} mm" if "length_mm" in numbers else f"{numbers['length_voxels']:.4g} voxels"
    )  # fmt: skip
    return f"brightest along z   axons {numbers['axon_share']:.2%} of the voxels, {length} of centre lines"
