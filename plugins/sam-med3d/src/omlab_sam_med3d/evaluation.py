"""Upstream's evaluation: clicks simulated from reference masks, and the overlap that comes of them.

Of the engines of ``omlab.load``, on scans with label maps::

    python -m omlab_sam_med3d.evaluation FOLDER -o OUT
    python -m omlab_sam_med3d.evaluation scan.nii.gz labels.nii.gz --clicks 10 --rule validation -o OUT

``FOLDER`` holds ``imagesTr/NAME.nii.gz`` and ``labelsTr/NAME.nii.gz``, itself or in folders below it, as upstream's
data do. ``OUT`` gets ``report.json`` and the label map of each case, which ``omlab score`` measures by any evaluator.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases import Volume, read
from omlab.errors import InputError, OmlabError
from omlab.results import Label, Segmentation, read_segmentation
from omlab.results.colours import colour_of
from omlab_sam_med3d.grid import Begin, Grid, around, normalised
from omlab_sam_med3d.predictor import Predictor, Run, upsampled
from omlab_sam_med3d.session import CT_RANGE
from omlab_sam_med3d.windows import STRIDE, windows_of


class Rule(StrEnum):
    """Which of upstream's ways."""

    #: Of 2025: clicks anywhere in the error, all of them given; the last mask counts, on the scan's grid.
    NEWEST = "newest"
    #: Of 2023: see :meth:`omlab_sam_med3d.predictor.Predictor.simulate`; the best mask counts, on the cube.
    VALIDATION = "validation"


#: Seeds of upstream's scripts.
SEEDS = {Rule.NEWEST: 233, Rule.VALIDATION: 2023}


@attrs.frozen(eq=False)
class Scored:
    """What came of one label of one case.

    Attributes
    ----------
    dice : the value that the rule reports. Where the label has no voxel on the resampled grid, or the cube no image,
        nothing can be clicked on: the newest rule counts the empty mask, which is 0; ``None`` by the other one, whose
        data have the grid already.
    by_click : overlap in the central cube after each click.
    """

    dice: float | None
    by_click: list[float]


def dice(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """2 |A and B| / (|A| + |B|); not a number if both are empty."""
    a, b = np.asarray(found, bool), np.asarray(truth, bool)
    size = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / size if size else float("nan")


@attrs.frozen(eq=False)
class Evaluation:
    """One way of evaluating, with the engines that answer.

    Attributes
    ----------
    encoder, decoder : engines.
    size, spacing_mm : of the cube.
    windows : with the 26 windows around the central one (rule ``newest``).
    clip : clip to the range of CT first.
    """

    encoder: Run
    decoder: Run
    size: int = 128
    spacing_mm: float = 1.5
    rule: Rule = Rule.NEWEST
    clicks: int = 1
    windows: bool = False
    clip: bool = False

    def case(
        self, scan: Volume, labels: NDArray[Any], seed: int | None = None
    ) -> tuple[NDArray[Any], dict[int, Scored]]:
        """Label map on the grid of the scan, and what came of each value in ``labels`` [i, j, k], ascending; where two
        claim a voxel, the later one has it.

        Raises
        ------
        omlab.errors.InputError
            The labels are of another shape, or there are none.
        """
        if labels.shape != scan.geometry.shape:
            raise InputError(
                f"{scan.name}: has {' x '.join(map(str, scan.geometry.shape))} voxels, its labels "
                f"{' x '.join(map(str, labels.shape))}"
            )
        values = [int(v) for v in np.unique(labels) if v]
        if not values:
            raise InputError(f"{scan.name}: its label map is empty")
        random = np.random.RandomState(SEEDS[self.rule] if seed is None else seed)
        grid = Grid.of(scan.geometry, (self.spacing_mm,) * 3)
        prediction = np.zeros(labels.shape, np.uint8 if max(values) < 256 else np.uint16)
        scores = {}
        for value in values:
            mask = labels == value
            found, by_click = self._label(scan, mask, grid, random)
            if found is None:
                scores[value] = Scored(0.0 if self.rule is Rule.NEWEST else None, [])
                continue
            prediction[found] = value
            best = max(by_click) if self.rule is Rule.VALIDATION else dice(found, mask)
            scores[value] = Scored(best, by_click)
        return prediction, scores

    def _label(
        self, scan: Volume, mask: NDArray[np.bool_], grid: Grid, random: np.random.RandomState
    ) -> tuple[NDArray[np.bool_] | None, list[float]]:
        cube = (self.size,) * 3
        reach = STRIDE * self.size // 128 if self.windows else 0
        centre = around(grid.labels(mask, (0, 0, 0), grid.shape).astype(bool), cube)
        begin: Begin = (centre[0] - reach, centre[1] - reach, centre[2] - reach)
        region = np.zeros(tuple(n + 2 * reach for n in cube), bool)
        by_click: list[float] = []
        seen = False
        for window in windows_of(grid.shape, centre, cube, around=self.windows, stride=reach or STRIDE):
            if window.empty and window.begin != centre:
                continue
            truth = grid.labels(mask, window.begin, cube).astype(bool)
            found = self._cube(scan, grid, window.begin, truth, random)
            if found is None:
                continue
            seen = True
            masks, overlaps = found
            if window.begin == centre:
                by_click = overlaps
            inside = tuple(slice(a, b) for a, b in window.cube)
            outside = tuple(
                slice(w - b + lo, w - b + hi) for w, b, (lo, hi) in zip(window.begin, begin, window.cube, strict=True)
            )
            region[outside] = masks[inside]
        if not seen:
            return None, []
        box, index, order = grid.restore(begin, region.shape)
        whole = np.zeros(mask.shape, bool)
        whole[box] = region.transpose(order)[np.ix_(*index)]
        return whole, by_click

    def _cube(
        self, scan: Volume, grid: Grid, begin: Begin, truth: NDArray[np.bool_], random: np.random.RandomState
    ) -> tuple[NDArray[np.bool_], list[float]] | None:
        """Last mask of one cube and the overlap after each click; ``None`` where nothing can be clicked on."""
        if not truth.any():
            return None
        cube = grid.image(scan.voxels, begin, truth.shape)
        image = normalised(np.clip(cube, *CT_RANGE) if self.clip else cube)
        if image is None:
            return None
        predictor = Predictor(self.decoder, self.encoder({"image": image[None, None]})["image_embeddings"], self.size)
        overlaps = []
        for _, answer in predictor.simulate(truth, self.clicks, random, older=self.rule is Rule.VALIDATION):
            found = upsampled(answer.low) > 0
            overlaps.append(dice(found, truth))
        return found, overlaps


def pairs(source: Path, labels: Path | None = None) -> Iterator[tuple[Path, Path]]:
    """Scans and their label maps. Raises :class:`omlab.errors.InputError` for a folder of another layout."""
    if labels is not None:
        yield source, labels
        return
    folders = sorted(path for path in [source / "imagesTr", *source.rglob("*/imagesTr")] if path.is_dir())
    if not folders:
        raise InputError(
            f"{source}: holds no folder 'imagesTr'", remedy="Expected imagesTr and labelsTr, or give SCAN and LABELS"
        )
    for folder in folders:
        for scan in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
            other = folder.parent / "labelsTr" / scan.name
            if not other.is_file():
                raise InputError(f"{other}: does not exist, the label map of {scan} was expected there")
            yield scan, other


def summary(cases: Mapping[str, Mapping[int, Scored]]) -> dict[str, Any]:
    """Means over the cases, of each label and of all; what is undefined is left out and counted."""
    values: dict[int, list[float]] = {}
    undefined = 0
    for scores in cases.values():
        for value, scored in scores.items():
            if scored.dice is None or np.isnan(scored.dice):
                undefined += 1
            else:
                values.setdefault(value, []).append(scored.dice)
    every = [one for found in values.values() for one in found]
    return {
        "dice": float(np.mean(every)) if every else None,
        "dice_by_label": {str(value): float(np.mean(found)) for value, found in sorted(values.items())},
        "undefined": undefined,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m omlab_sam_med3d.evaluation", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("source", type=Path, metavar="FOLDER|SCAN")
    parser.add_argument("labels", type=Path, nargs="?", help="label map of a single scan")
    parser.add_argument("--variant", help="of the model")
    parser.add_argument("--rule", type=Rule, choices=list(Rule), default=Rule.NEWEST)
    parser.add_argument("--clicks", type=int, help="clicks a structure [newest 1, validation 5]")
    parser.add_argument("--windows", action="store_true", help="newest: the 26 windows around the cube, too")
    parser.add_argument("--clip-ct", action="store_true", help="clip to -1000..1000 HU first")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    clicks = options.clicks or (5 if options.rule is Rule.VALIDATION else 1)
    if clicks < 1:
        parser.error("--clicks is 1 or more")
    try:
        report = _run(options, clicks)
    except OmlabError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(json.dumps(report["summary"], indent=2))  # noqa: T201
    return 0


def _run(options: argparse.Namespace, clicks: int) -> dict[str, Any]:
    import omlab
    from omlab.files import write_text
    from omlab.results import write
    from omlab.running import prepare_folder

    found = list(pairs(options.source, options.labels))  # a wrong folder is told before an engine is made
    model = omlab.load("sam-med3d", variant=options.variant, engine=options.engine)
    config = model.variant.config
    evaluation = Evaluation(
        model.engines["encoder"], model.engines["decoder"], int(config["side"]), float(config["spacing_mm"]),
        options.rule, clicks, options.windows and options.rule is Rule.NEWEST, options.clip_ct,
    )  # fmt: skip
    prepare_folder(options.out)
    cases: dict[str, dict[int, Scored]] = {}
    for scan_path, labels_path in found:
        scan: Any = read(scan_path)
        if not isinstance(scan, Volume):
            raise InputError(f"{scan_path}: is of kind {scan.kind}, a volume was expected")
        prediction, scores = evaluation.case(scan, read_segmentation(labels_path).labels)
        name = scan.name if scan.name not in cases else f"{scan.name}-{len(cases)}"
        cases[name] = scores
        structures = [Label(value=v, name=f"label {v}", colour=colour_of(v)) for v in scores]
        folder = options.out / name
        prepare_folder(folder)
        write(
            Segmentation(labels=prediction, structures=structures, geometry=scan.geometry), scan, folder,
            model_name=model.card.name, model_version=model.card.version,
        )  # fmt: skip
        print(f"{name}: {', '.join(f'{v} {s.dice}' for v, s in scores.items())}", file=sys.stderr)  # noqa: T201
    report = {
        "rule": str(options.rule), "clicks": clicks, "windows": evaluation.windows, "variant": model.variant.name,
        "summary": summary(cases),
        "cases": {name: {str(v): attrs.asdict(s) for v, s in scores.items()} for name, scores in cases.items()},
    }  # fmt: skip
    write_text(options.out / "report.json", json.dumps(report, indent=2))
    return report


if __name__ == "__main__":
    raise SystemExit(main())
