"""Upstream's evaluation, from pictures and reference masks to Dice and IoU for each label.

    python -m omlab_sam_med2d.evaluation FOLDER -o report.json
    python -m omlab_sam_med2d.evaluation FOLDER --prompt points --rounds 8 --seed 0

``FOLDER`` has upstream's layout: ``images/NAME.png``, ``masks/NAME_CLASS_III.png`` and ``label2image_test.json``, which
maps masks to pictures. Prompts are simulated from the masks and can be kept and replayed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError, OmlabError, UsageError
from omlab.report import Report, Value
from omlab_sam_med2d import metrics, protocol
from omlab_sam_med2d.dataset import class_of
from omlab_sdk.segment_anything.frame import bilinear, encoder_input, frame_of
from omlab_sdk.segment_anything.predictor import MOST_POINTS, Predictor, Query, Run, sigmoid

LIST = "label2image_test.json"


@attrs.frozen
class Sample:
    """A reference mask and its picture; ``label`` is the class in the mask's name."""

    mask: Path
    image: Path

    @property
    def label(self) -> str:
        """``liver`` of ``NAME_liver_000.png``."""
        return class_of(self.image.stem, self.mask)


@attrs.frozen
class Asked:
    """Prompts of one mask, in the frame: as upstream keeps them."""

    boxes: list[float]
    point_coords: list[list[float]]
    point_labels: list[int]


@attrs.frozen
class Failure:
    """Why a mask was left out."""

    mask: str
    image: str
    label: str
    reason: str


@attrs.frozen
class Row:
    """What came of one mask."""

    mask: str
    image: str
    label: str
    dice: float
    iou: float
    quality: float


def samples(folder: Path) -> list[Sample]:
    """Samples of a folder in upstream's layout.

    Raises
    ------
    InputError
        The list is missing or no JSON object, or names a file that is not there.
    """
    path = folder / LIST
    try:
        table = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder}: holds no {LIST}", remedy="It maps masks to pictures, as in upstream's data"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(table, dict) or not table:
        raise InputError(f"{path}: expected an object that maps masks to pictures")
    return [Sample(_found(folder, mask), _found(folder, image)) for mask, image in table.items()]


def _found(folder: Path, name: str) -> Path:
    """Paths of the list begin with the folder that upstream's data lies in, whatever it is called here."""
    for path in (folder.parent / name, folder / name, folder.joinpath(*Path(name).parts[1:])):
        if path.is_file():
            return path
    raise InputError(f"{folder / LIST}: names {name}, which is not there")


def evaluate(
    encoder: Run,
    decoder: Run,
    chosen: list[Sample],
    *,
    size: int = 256,
    prompt: str = "box",
    points: int = 1,
    rounds: int = 1,
    multimask: bool = True,
    seed: int = 0,
    stored: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[tuple[Row, Asked] | Failure]:
    """Rows and prompts, mask by mask; of a mask or picture that cannot be read or makes no sense the reason.

    Parameters
    ----------
    encoder, decoder : engines of the two graphs.
    prompt : ``"box"``, or ``"points"``: so many ``points``, then in each further one of ``rounds`` as many more where
        the answer is wrong, with the mask of the round before.
    seed : of the places drawn.
    stored : prompts to replay, mask file name -> ``boxes``, ``point_coords``, ``point_labels``.

    Raises
    ------
    UsageError
        ``prompt`` is none of the two; ``points`` or ``rounds`` is not positive, or more than the decoder takes.
    """
    if prompt not in ("box", "points"):
        raise UsageError(f"prompts are 'box' or 'points', found '{prompt}'")
    if points < 1 or rounds < 1:
        raise UsageError(f"points and rounds are at least 1, found {points} and {rounds}")
    if prompt == "points" and points * rounds >= MOST_POINTS:
        raise UsageError(
            f"{rounds} rounds of {points} points are {points * rounds}, at most {MOST_POINTS - 1} are possible"
        )
    random = np.random.RandomState(seed)
    shown: tuple[Path, Predictor] | None = None
    for sample in chosen:
        try:
            if shown is None or shown[0] != sample.image:  # one embedding serves all masks of a picture
                shown = sample.image, _shown(encoder, decoder, sample.image, size)
            predictor = shown[1]
            truth = _opened(sample.mask, "L")
            placed = protocol.mask_in_frame(truth, predictor.frame, sample.mask.name)
            asked = _asked(placed, sample, random, points, stored)
        except InputError as error:
            yield Failure(sample.mask.name, sample.image.name, sample.label, error.message)
            continue
        query = Query(box=asked.boxes) if prompt == "box" else Query(asked.point_coords, asked.point_labels)
        answer = predictor.predict([query], multimask=multimask)
        for _ in range(rounds - 1 if prompt == "points" else 0):
            query = _corrected(query, answer.low[0], placed, random, points)
            answer = predictor.predict([query], multimask=multimask)
        logits = predictor.frame.restore(answer.low)
        reference = (truth > 0)[None]
        yield (
            Row(
                sample.mask.name, sample.image.name, sample.label,
                round(float(metrics.dice(logits, reference)[0]), 4),
                round(float(metrics.iou(logits, reference)[0]), 4), float(answer.qualities[0]),
            ),
            asked,
        )  # fmt: skip


def _shown(encoder: Run, decoder: Run, path: Path, size: int) -> Predictor:
    """A picture that the encoder has seen."""
    rgb = _opened(path, "RGB")
    frame = frame_of((rgb.shape[0], rgb.shape[1]), size, "evaluation")
    image = encoder_input(rgb, frame, "evaluation")
    return Predictor(decoder, frame, encoder({"image": image})["image_embeddings"])


def _opened(path: Path, mode: str) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        return np.asarray(Image.open(path).convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path.name}: cannot be read as a picture: {error}") from None


def _asked(
    placed: NDArray[np.uint8], sample: Sample, random: np.random.RandomState, points: int,
    stored: Mapping[str, Mapping[str, Any]] | None,
) -> Asked:  # fmt: skip
    if stored is not None:
        return _replayed(stored.get(sample.mask.name), sample.mask.name)
    box = protocol.box_of(placed, random)
    places, labels = protocol.first_points(placed, random, points)
    return Asked(box.tolist(), places.tolist(), labels.tolist())


def _replayed(table: Any, name: str) -> Asked:
    """Stored prompts of one mask; upstream nests them in lists of one."""
    if table is None:
        raise InputError(f"the stored prompts have none for {name}")
    try:
        box, places, labels = (
            np.asarray(table[key], dtype=np.float64) for key in ("boxes", "point_coords", "point_labels")
        )
        found = Asked(box.reshape(4).tolist(), places.reshape(-1, 2).tolist(), labels.ravel().astype(int).tolist())
    except (KeyError, TypeError, ValueError):
        found = None
    if found is None or len(found.point_coords) != len(found.point_labels):
        raise InputError(
            f"the stored prompts of {name} are not four numbers in 'boxes', and as many places in 'point_coords' as "
            "numbers in 'point_labels'"
        )
    return found


def _corrected(
    query: Query, low: NDArray[np.float32], truth: NDArray[np.uint8], random: np.random.RandomState, count: int
) -> Query:
    """All points so far and new ones where the answer is wrong, with the answer as the mask."""
    up = bilinear(truth.shape[0], low.shape[0])
    places, labels = protocol.correction_points(up @ low @ up.T > 0, truth, random, count)
    return Query(
        np.concatenate([query.points, places.astype(np.float32)]),
        np.concatenate([query.labels, labels.astype(np.float32)]),
        mask=sigmoid(low),
    )


def report(rows: list[Row], settings: Mapping[str, Any], failures: list[Failure] | None = None) -> Report:
    """Means over the masks, in all and for each label; masks that were left out are told."""
    summary: dict[str, Value] = {}
    for metric in ("dice", "iou"):
        values = [getattr(row, metric) for row in rows]
        summary[metric] = Value(
            value=float(np.mean(values)) if values else None, n=len(rows), undefined="" if values else "no mask"
        )
    for label in dict.fromkeys(row.label for row in rows):
        own = [row for row in rows if row.label == label]
        for metric in ("dice", "iou"):
            summary[f"{label}/{metric}"] = Value(value=float(np.mean([getattr(r, metric) for r in own])), n=len(own))
    return Report(
        evaluator="sam-med2d-protocol",
        summary=summary,
        cases=[attrs.asdict(row) for row in rows],
        options=dict(settings),
        warnings=[f"left out {one.mask}: {one.reason}" for one in failures or ()],
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m omlab_sam_med2d.evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="images, masks and label2image_test.json")
    parser.add_argument("-o", "--out", type=Path, help="write the report here, as JSON")
    parser.add_argument("--variant", help="variant of the model (omlab info sam-med2d)")
    parser.add_argument("--engine", default="auto", help="auto, or the name of an engine")
    parser.add_argument("--prompt", choices=("box", "points"), default="box")
    parser.add_argument("--points", type=int, default=1, help="points a round [1]")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of points [1]")
    parser.add_argument("--single-mask", action="store_true", help="take mask 0 instead of the best of 1 to 3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-prompts", type=Path, metavar="FILE", help="write the simulated prompts here")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="use the prompts of this file")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 1 if a mask was left out or nothing could be done."""
    import sys

    from omlab.api import load
    from omlab.files import write_text

    given = _parser().parse_args(arguments)
    try:
        stored = json.loads(given.replay.read_text("utf-8")) if given.replay else None
        if stored is not None and not isinstance(stored, dict):
            raise InputError(f"{given.replay}: expected an object that maps masks to prompts")
        chosen = samples(given.folder)
        model = load("sam-med2d", variant=given.variant, engine=given.engine)
        settings = {"prompt": given.prompt, "points": given.points, "rounds": given.rounds, "seed": given.seed}
        rows, failures, kept = [], [], {}
        for found in evaluate(
            model.engines["encoder"], model.engines["decoder"], chosen,
            size=int(model.variant.config["side"]), multimask=not given.single_mask, stored=stored, **settings,
        ):  # fmt: skip
            if isinstance(found, Failure):
                failures.append(found)
                print(f"failed {found.mask}: {found.reason}", file=sys.stderr)  # noqa: T201
                continue
            row, asked = found
            rows.append(row)
            kept[row.mask] = attrs.asdict(asked)
            print(f"{row.mask}  dice {row.dice:.4f}  iou {row.iou:.4f}", flush=True)  # noqa: T201
        settings |= {"variant": model.variant.name, "weights_sha256": model.weights_sha256}
        table = report(rows, settings, failures)
        if given.keep_prompts:
            write_text(given.keep_prompts, json.dumps(kept))
        if given.out:
            write_text(given.out, json.dumps(table.as_json(), indent=2))
    except (OmlabError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    for name, value in table.summary.items():
        print(f"{name}  {value.value:.4f}  ({value.n} masks)" if value.value is not None else f"{name}  undefined")  # noqa: T201
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
