"""The adapter: a dataset of label maps to a segmenter of its structures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from omlab.adapter import TRAINING, Adapter
from omlab.cards import ModelCard, Variant, as_table
from omlab.dataset import BoundDataset, Item
from omlab.errors import Cancelled, InputError, OmlabError, UsageError, require
from omlab.files import whole, write_text
from omlab.loading import LoadedModel
from omlab.model import Model
from omlab.progress import Listener, Progress, silent
from omlab.results import Label, Segmentation
from omlab_segmenter_tuning.model import NETWORK, TunedSegmenter
from omlab_segmenter_tuning.windows import Scan, Windows

if TYPE_CHECKING:
    import torch

    from omlab_sdk.segmenters import Recipe

#: Windows of scans held back that the Dice of an epoch is taken on.
_CHECKED = 8
_SEEN = "scans.json"
#: What the title of a model says after the base's, once in a chain.
_MADE = ", fine-tuned"
#: Labels are written in eight bits.
_GREATEST = 255


@attrs.frozen(eq=False, kw_only=True)
class _Gathered:
    """Prepared scans by split, the structures, and what the reader of the report should know."""

    scans: Mapping[str, Sequence[Scan]]
    structures: tuple[Label, ...]
    failed: Mapping[str, Sequence[str]]
    remarks: tuple[str, ...]
    digest: str


class SegmenterTuning(Adapter):
    """The adapter ``segmenter-tuning``."""

    needs_base_weights = False

    def adapt(
        self,
        base: LoadedModel,
        dataset: BoundDataset,
        folder: Path,
        options: Mapping[str, Any],
        listener: Listener = silent,
    ) -> dict[str, Any]:
        """Train on the split ``train``, choose the epoch by the Dice on windows of ``val``.

        Value v of the dataset's label maps becomes output v of the network, so predictions and references carry the
        same numbers.

        Raises
        ------
        UsageError
            The base has no recipe, an option is out of its range, or the network takes no windows of that size.
        InputError
            There is no training case with a structure, or a case or its content is in two splits.
        omlab_sdk.training.TrainingError
            The loss is not finite.
        """
        for module in ("torch", "accelerate", "omlab_sdk"):
            require(module, needed_for="fine-tuning a segmenter", install="omlab-segmenter-tuning[train]")
        from omlab_sdk.segmenters import Tunable

        _check(options)
        if not isinstance(base.model, Tunable):
            raise UsageError(
                f"'{base.card.name}' cannot be fine-tuned: it has no recipe (omlab_sdk.segmenters.Tunable)",
                remedy="Take one that has, say stunet",
            )
        changes: dict[str, Any] = {}
        if options["spacing"]:
            changes["spacing_mm"] = (options["spacing"],) * 3
        # The number of outputs is known after the references were read, how to read them does not depend on it.
        reader = base.model.recipe(base.variant, base.files, 2, **changes)
        _patch(reader, options["patch"])  # what does not fit is told before every scan is prepared
        found = _gather(dataset, reader, folder / TRAINING, options, listener)
        outputs = max(label.value for label in found.structures) + 1
        recipe = base.model.recipe(base.variant, base.files, outputs, **changes)
        fitted, settings = _fit(recipe, found, folder / TRAINING, options, listener)
        from safetensors.torch import save_file

        with whole(folder / NETWORK) as temporary:
            # Copies: blocks may share a table, which safetensors refuses.
            save_file({k: v.contiguous().clone() for k, v in recipe.state.state_dict().items()}, temporary)
        table = as_table(base.card)
        names = [label.name for label in found.structures]
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        history = list(fitted.history)
        best = history[fitted.best_epoch - 1]
        labels = [
            {"value": label.value, "name": label.name, "colour": "#{:02x}{:02x}{:02x}".format(*label.colour)}
            for label in found.structures
        ]
        report = {
            "history": history, "best_epoch": fitted.best_epoch, "steps": fitted.steps,
            "stopped_early": fitted.stopped_early, "remarks": list(found.remarks),
            "train_images": len(found.scans["train"]),
            "val_images": len(found.scans["val"]), "val_dice": best["dice"], "structures": len(names),
            "training": settings, **{f"{split}_failed": list(rows) for split, rows in found.failed.items() if rows},
        }  # fmt: skip
        return {
            "title": (base.card.title or base.card.name).removesuffix(_MADE) + _MADE,
            "summary": f"Segments {shown}",
            "options": table.get("options", []), "labels": labels, "report": report,
            "variants": [{"name": "adapted", "config": dict(recipe.config), "labels": labels}],
        }  # fmt: skip

    def model(self, card: ModelCard, base: Model, base_variant: Variant, folder: Path) -> Model:
        """The model of a directory that :meth:`adapt` filled."""
        return TunedSegmenter(card, base, folder)


def _check(options: Mapping[str, Any]) -> None:
    for name in ("epochs", "batches", "batch", "lr", "patch", "spacing", "patience"):
        if options[name] < 0:
            raise UsageError(f"option '{name}' cannot be negative, found {options[name]:g}")
    if not 0 <= options["foreground"] <= 1:
        raise UsageError(f"option 'foreground' is a share from 0 to 1, found {options['foreground']:g}")


def _gather(
    dataset: BoundDataset, recipe: Recipe, folder: Path, options: Mapping[str, Any], listener: Listener
) -> _Gathered:
    """Prepare every case once; what an interrupted adaptation left is taken again."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = dataset.dataset.card.splits or ("train",)
    items = {split: list(dataset.items(split)) if split in splits else [] for split in ("train", "val")}
    items = {split: [i for i in rows if i.split in (split, "all")] for split, rows in items.items()}
    items |= {"test": list(dataset.items("test")) if "test" in splits else []}
    _refuse_leaks(items)
    structures: dict[int, Label] = {}
    seen = _Seen.of(folder / _SEEN)
    scans: dict[str, list[Scan]] = {"train": [], "val": []}
    failed: dict[str, list[str]] = {"train": [], "val": []}
    for split in scans:
        for number, item in enumerate(items[split]):
            listener(Progress(f"{dataset.name} {split}", "prepare", number, len(items[split]), "scans"))
            try:
                row = seen.prepared(item, f"{split}{number:05d}", recipe, folder)
            except Cancelled:
                raise
            except OmlabError as error:
                failed[split].append(f"{item.name}: {error.message}")
                continue
            for label in row["structures"]:
                structures.setdefault(label.value, label)
            scans[split].append(Scan.open(item.name, folder / row["stem"]))
    seen.refuse_duplicates(options["duplicates"], scans)
    remarks = []
    if options["shots"]:
        scans["train"], more = _few(scans["train"], options["shots"], options["seed"])
        remarks += more
    present = {value for scan in scans["train"] for value in scan.structures}
    if not present:
        raise InputError(
            f"dataset '{dataset.name}' has no training case with a structure",
            remedy="A segmenter learns from a split called train, with label maps",
        )
    greatest = max(structures)
    if greatest > _GREATEST:
        raise InputError(f"dataset '{dataset.name}' has the label {greatest}; at most {_GREATEST} can be written")
    absent = sorted(label.name for value, label in structures.items() if value not in present)
    if absent:
        remarks.append(f"no training case has {', '.join(absent)}: what cannot be learnt is hardly ever predicted")
    if not scans["val"]:
        remarks.append("there is no val split: the Dice of an epoch is of windows that were learnt from")
    digest = hashlib.sha256("".join(seen.digests(scan.name) for scan in scans["train"]).encode()).hexdigest()
    return _Gathered(
        scans=scans, structures=tuple(structures[value] for value in sorted(structures)), failed=failed,
        remarks=tuple(remarks), digest=digest,
    )  # fmt: skip


def _refuse_leaks(items: Mapping[str, Sequence[Item]]) -> None:
    where: dict[tuple[str, str], str] = {}
    for split, rows in items.items():
        for item in rows:
            for kind, name in (("case", item.name), ("patient", item.group)):
                before = where.setdefault((kind, name), split) if name else split
                if before != split:
                    raise InputError(
                        f"{kind} '{name}' is in the splits {before} and {split}",
                        remedy="A case that was learnt from proves nothing: take it out of one of them",
                    )


def _few(scans: Sequence[Scan], shots: int, seed: int) -> tuple[list[Scan], list[str]]:
    """So many scans of each structure."""
    from omlab.shots import draw

    values = sorted({value for scan in scans for value in scan.structures})
    targets = np.array([[value in scan.structures for value in values] for scan in scans])
    chosen, remarks = draw(targets, shots, seed, classes=[f"label {value}" for value in values])
    return [scans[index] for index in chosen], remarks


@attrs.define
class _Seen:
    """What of the dataset is prepared already: case -> its row."""

    path: Path
    rows: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, path: Path) -> _Seen:
        try:
            return cls(path, json.loads(path.read_text("utf-8")))
        except (OSError, ValueError):
            return cls(path, {})

    def prepared(self, item: Item, stem: str, recipe: Recipe, folder: Path) -> dict[str, Any]:
        """Row of a case, which is prepared unless it was."""
        row = self.rows.get(item.name)
        if row is None:
            case, reference = item.case(), item.truth()
            if not isinstance(case, recipe.takes):
                raise InputError(f"{item.name}: is of kind {case.kind}, expected {recipe.takes.kind}")
            if not isinstance(reference, Segmentation):
                raise InputError(f"{item.name}: has no label map")
            found = recipe.prepare(case, reference)
            Scan.store(item.name, found.image, found.labels, folder / stem)
            digest = hashlib.sha256(np.ascontiguousarray(found.image).data).hexdigest()
            names = [[s.value, s.name, s.colour] for s in reference.structures if s.value]
            row = self.rows[item.name] = {"stem": stem, "digest": digest, "structures": names}
            write_text(self.path, json.dumps(self.rows))
        labels = [Label(value=v, name=n, colour=c) for v, n, c in row["structures"]]
        return {**row, "structures": labels}

    def digests(self, name: str) -> str:
        """Of a case's content."""
        return str(self.rows[name]["digest"])

    def refuse_duplicates(self, policy: str, scans: dict[str, list[Scan]]) -> None:
        """Raise :class:`InputError` where train and val share content, or leave it out of train."""
        later = {self.digests(scan.name): scan.name for scan in scans["val"]}
        double = [scan for scan in scans["train"] if self.digests(scan.name) in later]
        if double and policy == "refuse":
            raise InputError(
                f"{len(double)} train cases are also in the split val under another name, first '{double[0].name}', "
                f"which is '{later[self.digests(double[0].name)]}'",
                remedy="--duplicates drop leaves them out of what is learnt from",
            )
        scans["train"] = [scan for scan in scans["train"] if scan not in double]


def _fit(
    recipe: Recipe, found: _Gathered, folder: Path, options: Mapping[str, Any], listener: Listener
) -> tuple[Any, dict[str, Any]]:
    """The fitted network, in the recipe, and the settings in force."""
    import torch

    from omlab_sdk.training import Settings, fit

    epochs, batches = options["epochs"] or recipe.epochs, options["batches"] or recipe.batches
    batch, rate = options["batch"] or recipe.batch, options["lr"] or recipe.rate
    patch = _patch(recipe, options["patch"])
    windows = Windows(
        scans=found.scans["train"], patch=patch, batch_size=batch, batches=batches, foreground=options["foreground"],
        augment=options["augment"], mirror=tuple(recipe.mirror), seed=options["seed"],
    )  # fmt: skip
    checked = attrs.evolve(
        windows, scans=found.scans["val"] or found.scans["train"], batch_size=1, augment="none",
        seed=options["seed"] + 1,
    )  # fmt: skip
    if options["optimiser"] == "adamw":
        optimiser = None
    else:

        def optimiser(network: torch.nn.Module, settings: Any) -> torch.optim.Optimizer:
            return recipe.optimiser(network, settings.lr)

    settings = Settings(
        epochs=epochs, lr=rate, weight_decay=1e-4, clip=recipe.clip, precision=options["precision"],
        monitor="dice", patience=options["patience"] or None, seed=options["seed"], device=options["device"],
        optimiser=optimiser, schedule=lambda epoch: recipe.schedule(epoch, epochs, rate), save_seconds=120.0,
    )  # fmt: skip
    shown = {
        "epochs": epochs, "batches": batches, "batch": batch, "lr": rate, "patch": list(patch),
        "optimiser": options["optimiser"],
    }  # fmt: skip
    fitted = fit(
        recipe.network, lambda network, given: recipe.loss(network(given[0]), given[1]), windows,
        validate=lambda network: {"dice": _dice(recipe, network, checked)}, settings=settings, folder=folder,
        identity=f"{found.digest} {json.dumps(shown, sort_keys=True)}", what="segmenter-tuning", listener=listener,
    )  # fmt: skip
    shown |= {
        "torch": torch.__version__, "device": fitted.device, "precision": fitted.precision,
        "resumed_at": fitted.resumed_at,
    }  # fmt: skip
    return fitted, shown


def _patch(recipe: Recipe, side: int) -> tuple[int, int, int]:
    """Sides of the training windows. Raises :class:`UsageError` for what the network does not take."""
    if not side:
        return recipe.patch
    found = tuple(side if n > 1 else 1 for n in recipe.patch)
    own = " x ".join(map(str, recipe.patch))
    if recipe.multiple is None and found != recipe.patch:
        raise UsageError(
            f"the network takes windows of {own}, found a patch of {side}", remedy="Leave the option 'patch' out"
        )
    if recipe.multiple is not None and any(n % m for n, m in zip(found, recipe.multiple, strict=True)):
        raise UsageError(
            f"the network takes windows whose sides are multiples of {' x '.join(map(str, recipe.multiple))}, found a "
            f"patch of {side}",
            remedy=f"Leave the option 'patch' out: {own}",
        )
    return found  # type: ignore[return-value]


def _dice(recipe: Recipe, network: torch.nn.Module, windows: Windows) -> float:
    """Mean over the structures that occur of the Dice over all windows together."""
    sums: dict[str, np.ndarray] = {}
    device = next(network.parameters()).device
    for number in range(_CHECKED):
        image, truth = windows.batch(0, number)
        labels = recipe.labels(network(image.to(device))).cpu().numpy().ravel()
        expected = truth.numpy().ravel()
        size = int(max(labels.max(), expected.max())) + 1
        for name, values in (("found", labels), ("expected", expected), ("both", expected[labels == expected])):
            counts = np.bincount(values, minlength=size)
            before = sums.get(name, np.zeros(0, np.int64))
            longest = max(len(before), len(counts))
            sums[name] = np.pad(before, (0, longest - len(before))) + np.pad(counts, (0, longest - len(counts)))
    longest = max(len(values) for values in sums.values())
    both, found, expected = (np.pad(sums[k], (0, longest - len(sums[k]))) for k in ("both", "found", "expected"))
    there = np.flatnonzero(expected[1:]) + 1
    return float((2 * both[there] / (found[there] + expected[there])).mean()) if len(there) else float("nan")
