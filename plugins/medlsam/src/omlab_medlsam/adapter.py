"""The adapter: a few scans with label maps to a model that finds and segments these organs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.adapter import Adapter
from omlab.cards import ModelCard, Variant
from omlab.cases import Volume
from omlab.dataset import BoundDataset, Item
from omlab.errors import Cancelled, InputError, OmlabError, UsageError
from omlab.loading import LoadedModel
from omlab.model import Model
from omlab.progress import Listener, Progress, silent
from omlab.results import Label, Segmentation
from omlab.shots import draw
from omlab_medlsam import metrics
from omlab_medlsam.configuration import SCALES
from omlab_medlsam.localising import boxes, locate, look
from omlab_medlsam.medlam import MedLam
from omlab_medlsam.model import OPTIONS, MedLsam
from omlab_medlsam.points import bounds, parts_of, support_points
from omlab_medlsam.scans import Prepared, padded, prepare, resampled_labels
from omlab_medlsam.templates import FILE, Template, save, template_of

#: More templates than this are not better, and each takes a run of the network for each of its points.
MOST_TEMPLATES = 50
_GREATEST = 65535


@attrs.frozen(eq=False, kw_only=True)
class _Scan:
    """A scan with its label map.

    Attributes
    ----------
    prepared : at 3 mm.
    labels : label map at 3 mm, [z, y, x].
    original : the file's labels [i, j, k].
    structures : what the label map can hold.
    digest : of the voxels.
    """

    name: str
    prepared: Prepared
    labels: NDArray[np.uint16]
    original: NDArray[Any]
    structures: tuple[Label, ...]
    spacing_mm: tuple[float, float, float]
    digest: str


class MedLsamAdapter(Adapter):
    """The adapter ``medlsam``."""

    def adapt(
        self,
        base: LoadedModel,
        dataset: BoundDataset,
        folder: Path,
        options: Mapping[str, Any],
        listener: Listener = silent,
    ) -> dict[str, Any]:
        """Describe the six extreme points (or those of each part) of every organ of the split ``train``; measure the
        boxes on ``val`` where there is one.

        Raises
        ------
        UsageError
            The base is no MedLAM, an option is out of its range, or there are far too many templates.
        InputError
            No template can be read or has an organ, or a template is in ``val`` too.
        """
        if not isinstance(base.model, MedLam):
            raise UsageError(
                f"'{base.card.name}' cannot localise organs from templates", remedy="Take medlam as the base"
            )
        scales = _scales(options)
        train, failed = _read(dataset, "train", options, listener)
        val, val_failed = _read(dataset, "val", options, listener)
        val, remarks = _without_templates(val, train, options["duplicates"])
        structures = _structures(train, dataset)
        patch = int(base.variant.config["patch"])
        templates, lacking = _templates(base, train, structures, options, listener)
        remarks += lacking
        if not templates:
            raise InputError(
                f"dataset '{dataset.name}' has no template with an organ",
                remedy="Give label maps whose structures are larger than a few millimetres",
            )
        save(templates, folder / FILE)
        known = [label for label in structures if label.value in templates]
        names = [label.name for label in known]
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        segments = "sam" in base.variant.config
        report = {
            "templates": len(train), "train_images": len(train), "val_images": len(val), "structures": len(names),
            "boxes": {label.name: templates[label.value].parts for label in known}, "remarks": remarks,
            **{f"{split}_failed": rows for split, rows in (("train", failed), ("val", val_failed)) if rows},
            **_measured(base, val, templates, known, scales, patch, listener),
        }  # fmt: skip
        return {
            "title": f"MedLSAM: {shown}", "summary": f"{'Segments' if segments else 'Finds'} {shown} in CT",
            "task": ["segmentation", "localisation"], "outputs": ["segmentation"], "options": list(OPTIONS),
            "variants": [{"name": "adapted", "config": {"scales": scales, "mode": options["mode"]}}],
            "labels": [
                {"value": label.value, "name": label.name, "colour": "#{:02x}{:02x}{:02x}".format(*label.colour)}
                for label in known
            ],
            "report": report,
        }  # fmt: skip

    def model(self, card: ModelCard, base: Model, base_variant: Variant, folder: Path) -> Model:
        """The model of a directory that :meth:`adapt` filled."""
        if not isinstance(base, MedLam):
            raise UsageError(f"{folder}: its base '{base.card.name}' is no MedLAM", remedy="Make the model again")
        return MedLsam(card, base, base_variant, folder)


def _scales(options: Mapping[str, Any]) -> list[int]:
    words = [word.strip() for word in str(options["scales"]).split(",") if word.strip()]
    if words == ["none"]:
        words = []
    unknown = [word for word in words if word not in SCALES]
    if unknown:
        raise UsageError(f"option 'scales' has {', '.join(SCALES)} or none, found '{unknown[0]}'")
    if options["interval"] < 1:
        raise UsageError(f"option 'interval' is at least 1, found {options['interval']}")
    return sorted({SCALES.index(word) for word in words})


def _read(
    dataset: BoundDataset, split: str, options: Mapping[str, Any], listener: Listener
) -> tuple[list[_Scan], list[str]]:
    """Scans of a split at 3 mm, the drawn ones of ``train``, and a line for each that cannot be used."""
    if split not in (dataset.dataset.card.splits or ("train",)):
        return [], []
    # A dataset without splits is all templates.
    items = [item for item in dataset.items(split) if item.split == split or (item.split == "all" and split == "train")]
    shots = options["shots"] if split == "train" else 0
    if split == "train" and not shots and len(items) > MOST_TEMPLATES:
        raise UsageError(
            f"dataset '{dataset.name}' has {len(items)} training cases, at most {MOST_TEMPLATES} can be templates",
            remedy="Give --shots 5",
        )
    chosen = _few(items, shots, options["seed"]) if shots else items
    scans, failed = [], []
    for number, item in enumerate(chosen):
        listener(Progress(f"{dataset.name} {split}", "prepare", number, len(chosen), "scans"))
        try:
            scans.append(_scan(item))
        except Cancelled:
            raise
        except OmlabError as error:
            failed.append(f"{item.name}: {error.message}")
    if split == "train" and not scans:
        raise InputError(
            f"dataset '{dataset.name}' has no template that can be used" + (f": {failed[0]}" if failed else ""),
            remedy="MedLSAM learns from CT with label maps in a split called train, three to ten are advised",
        )
    return scans, failed


def _few(items: Sequence[Item], shots: int, seed: int) -> list[Item]:
    """So many templates of each organ, of those that can be read."""
    usable, there = [], []
    for item in items:
        try:
            reference = item.truth()
        except OmlabError:
            reference = None
        if isinstance(reference, Segmentation):
            usable.append(item)
            there.append({int(v) for v in np.unique(reference.labels)} - {0})
    values = sorted(set().union(*there)) if there else []
    if not values:
        return list(items)[:shots]
    targets = np.array([[value in own for value in values] for own in there])
    chosen, _ = draw(targets, shots, seed, groups=[item.group for item in usable])
    return [usable[index] for index in chosen]


def _scan(item: Item) -> _Scan:
    case, reference = item.case(), item.truth()
    if not isinstance(case, Volume):
        raise InputError(f"{item.name}: is of kind {case.kind}, a volume was expected")
    if not isinstance(reference, Segmentation):
        raise InputError(f"{item.name}: has no label map")
    if reference.geometry is None or not case.geometry.same_grid(reference.geometry):
        raise InputError(
            f"{item.name}: its label map lies on another grid than the scan", remedy="Resample one of them"
        )
    if int(reference.labels.max(initial=0)) > _GREATEST:
        raise InputError(f"{item.name}: has the label {int(reference.labels.max())}, at most {_GREATEST} is possible")
    prepared = prepare(case)
    turned = prepared.turn.apply(reference.labels).transpose(2, 1, 0)
    return _Scan(
        name=item.name, prepared=prepared, labels=resampled_labels(turned, prepared.zoom), original=reference.labels,
        structures=tuple(label for label in reference.structures if label.value), spacing_mm=case.geometry.spacing_mm,
        digest=hashlib.sha256(np.ascontiguousarray(case.voxels).data).hexdigest(),
    )  # fmt: skip


def _without_templates(
    val: list[_Scan], train: Sequence[_Scan], policy: str
) -> tuple[list[_Scan], list[str]]:  # fmt: skip
    """Validation scans that are no template. Raises :class:`InputError` where the policy is to refuse."""
    seen = {scan.digest: scan.name for scan in train}
    double = [scan for scan in val if scan.digest in seen]
    if double and policy == "refuse":
        raise InputError(
            f"case '{double[0].name}' of val is the template '{seen[double[0].digest]}'",
            remedy="A template proves nothing: take it out of one split, or give --duplicates drop",
        )
    remarks = [f"{scan.name} of val is a template and was not measured" for scan in double]
    return [scan for scan in val if scan.digest not in seen], remarks


def _structures(train: Sequence[_Scan], dataset: BoundDataset) -> list[Label]:
    found: dict[int, Label] = {}
    for scan in train:
        for label in scan.structures:
            found.setdefault(label.value, label)
    if not found:
        raise InputError(f"dataset '{dataset.name}' names no organ", remedy="Its label maps need structures")
    return [found[value] for value in sorted(found)]


def _templates(
    base: LoadedModel, train: Sequence[_Scan], structures: Sequence[Label], options: Mapping[str, Any],
    listener: Listener,
) -> tuple[dict[int, Template], list[str]]:  # fmt: skip
    """Label value -> template of the organs that a scan shows, and remarks on what is lacking."""
    templates: dict[int, Template] = {}
    remarks = []
    patch = int(base.variant.config["patch"])
    for number, label in enumerate(structures):
        listener(Progress(base.card.name, "describe", number, len(structures), "organs"))
        supports = [scan for scan in train if (scan.labels == label.value).any()]
        if not supports:
            remarks.append(f"no template has {label.name}: the model does not look for it")
            continue
        if len(supports) < len(train):
            lacking = ", ".join(scan.name for scan in train if scan not in supports)
            remarks.append(f"{label.name} is lacking in {lacking}; scans that show it: {len(supports)}")
        templates[label.value] = _described(base, supports, label.value, patch, options)
    return templates, remarks


def _described(
    base: LoadedModel, supports: Sequence[_Scan], value: int, patch: int, options: Mapping[str, Any]
) -> Template:
    masks = [padded(scan.labels == value, patch) for scan in supports]
    parts = parts_of(masks, int(options["interval"])) if options["mode"] == "parts" else 0
    return template_of(
        base.engines["describe"],
        [(scan.prepared.image, support_points(mask, parts)) for scan, mask in zip(supports, masks, strict=True)],
        patch,
    )


def _measured(
    base: LoadedModel, val: Sequence[_Scan], templates: Mapping[int, Template], known: Sequence[Label],
    scales: Sequence[int], patch: int, listener: Listener,
) -> dict[str, Any]:  # fmt: skip
    """IoU and wall distance of the boxes of the validation scans, the mean over organs and by organ."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for number, scan in enumerate(val):
        listener(Progress(scan.name, "validate", number, len(val), "scans"))
        match = base.engines["match"] if scales else None
        query = look(base.engines["position"], scan.prepared.image, patch, name=scan.name)
        for label in known:
            mask = scan.original.transpose(2, 1, 0) == label.value
            if not mask.any():
                continue
            located = locate(match, query, templates[label.value], patch, scales=scales)
            found, true = boxes(located.points, scan.prepared), bounds(mask)
            whole = np.stack([found[:, 0].min(axis=0), found[:, 1].max(axis=0)])
            wall = metrics.wall_distance(whole, true, scan.spacing_mm[::-1]).mean()
            rows.setdefault(label.name, []).append((metrics.box_iou(whole, true), float(wall)))
    if not rows:
        return {}
    means = {name: np.mean(values, axis=0) for name, values in rows.items()}
    iou, wall = np.mean(list(means.values()), axis=0)
    return {
        "val_box_iou": float(iou), "val_wall_mm": float(wall),
        "val_organs": {name: {"box_iou": float(a), "wall_mm": float(b)} for name, (a, b) in means.items()},
    }  # fmt: skip
