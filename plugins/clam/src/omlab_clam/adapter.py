"""Training of slide classifiers on bags of features, as CLAM's scripts do it (Lu et al. 2021)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omlab import manifest
from omlab.adapter import TRAINING, Adapter
from omlab.cards import ModelCard, Variant
from omlab.cases import PatchFeatures, Slide
from omlab.dataset import BoundDataset, Item
from omlab.errors import InputError, UsageError, require
from omlab.files import write_text
from omlab.heads import softmax
from omlab.labelled import Split, Splits, figures, gather
from omlab.loading import LoadedModel
from omlab.model import Model
from omlab.progress import Listener, Progress, silent
from omlab.results import SlideFeatures
from omlab_clam.model import HEAD, TrainedClassifier, features_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from omlab_sdk.training import Settings

#: Epochs of warm-up, before which no epoch is chosen; and from which the rate is halved.
WARM, LATE = 10, 50
#: Features that are kept in memory between epochs, in bytes.
KEPT_BYTES = 2**30


class SlideClassifier(Adapter):
    """The adapter ``clam``: CLAM_SB, CLAM_MB, or mean or max pooling, on frozen features."""

    def adapt(
        self, base: LoadedModel, dataset: BoundDataset, folder: Path, options: Mapping[str, Any],
        listener: Listener = silent,
    ) -> dict[str, Any]:  # fmt: skip
        """Train on the split ``train``, keep the epoch that is best on ``val``, measure on all.

        Raises
        ------
        omlab.errors.InputError
            Features are missing, of several widths, or bags are smaller than ``k``; what
            :func:`omlab.labelled.gather` raises.
        omlab.errors.UsageError
            Classes that do not exclude each other, or options that do not fit.
        """
        require("torch", needed_for="training slide classifiers", install="omlab-clam[train]")
        from safetensors.torch import save_file

        from omlab_sdk.training import clear, fit

        splits = gather(dataset, shots=options["shots"], seed=options["seed"], listener=listener)
        if not splits.exclusive:
            raise UsageError(f"dataset '{dataset.name}' has slides of several classes at once, one was expected")
        bags = Bags(base, folder, listener)
        width = bags.read(splits.train.items[0]).shape[1]
        network = build(options, width, len(splits.classes))
        drawn = Drawn(bags, splits.train, options)
        listener(Progress(self.card.name, "train"))
        fitted = fit(
            network, self._loss(options), drawn, validate=self._validate(bags, splits, drawn, options),
            settings=settings_of(options), folder=folder / TRAINING,
            identity=f"{base.weights_sha256} {dataset.name} {sorted(i.name for i in splits.train.items)}",
            what=f"{self.card.name} on {dataset.name}", listener=listener,
        )  # fmt: skip
        kept = {n: t.detach().contiguous() for n, t in network.state_dict().items() if "instance_loss_fn" not in n}
        save_file(kept, folder / HEAD)
        clear(folder / TRAINING)
        report: dict[str, Any] = {
            "history": [dict(row) for row in fitted.history], "best_epoch": fitted.best_epoch, "steps": fitted.steps,
            "features": width, "remarks": list(splits.remarks),
        }  # fmt: skip
        measured, rows = _measured(network, bags, splits)
        report |= measured
        write_text(folder / "slides.csv", _csv(splits.classes, rows))
        takes_slides = Slide.kind in base.card.inputs
        made = features_of(base.graphs)
        if takes_slides and made not in (None, width):
            takes_slides = False
            report["remarks"].append(
                f"the dataset has {width} features a patch, '{base.card.name}' ({base.variant.name}) makes {made}: "
                "the model takes features only"
            )
        network_name = {"sb": "CLAM-SB", "mb": "CLAM-MB", "max": "max pooling", "mean": "mean pooling"}
        return {
            "title": f"{base.card.title or base.card.name}, {network_name[options['network']]}",
            "summary": f"Classifies slides as {', '.join(splits.classes)} by features of {base.card.name}",
            "task": ["classification"], "outputs": ["classification"],
            "inputs": ["slide", "features"] if takes_slides else ["features"],
            "labels": [{"value": i, "name": name} for i, name in enumerate(splits.classes)],
            "options": _options(),
            "variants": [{"name": "adapted", "config": {"network": options["network"], "features": width}}],
            "report": report,
        }  # fmt: skip

    def model(self, card: ModelCard, base: Model, base_variant: Variant, folder: Path) -> Model:
        """The model of a directory that :meth:`adapt` filled."""
        return TrainedClassifier(card, base, base_variant, folder)

    @staticmethod
    def _loss(options: Mapping[str, Any]) -> Any:
        from torch import nn

        from omlab_clam.losses import SmoothTop1SVM

        weight = options["bag_weight"] if options["network"] in ("sb", "mb") else 1.0

        def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            bag, label = batch
            inner: Any = getattr(network, "module", network)  # on several devices it is wrapped
            whole: nn.Module = nn.CrossEntropyLoss()
            if options["bag_loss"] == "svm":
                whole = SmoothTop1SVM(int(inner(bag[:1])[0].shape[1])).to(bag.device)
            return inner.loss(bag, int(label), bag_weight=weight, bag_loss=whole)  # type: ignore[no-any-return]

        return loss

    @staticmethod
    def _validate(bags: Bags, splits: Splits, drawn: Drawn, options: Mapping[str, Any]) -> Any:
        warm = WARM if options["epochs"] > WARM else 0

        def validate(network: nn.Module) -> dict[str, float]:
            split = splits.val if len(splits.val) else splits.train
            logits = logits_of(network, bags, split)
            measured = figures(softmax(logits), split.targets, exclusive=True)
            area = float(measured.get("auc", measured.get("accuracy", 0.0)))
            found = {f"val_{key}": float(value) for key, value in measured.items()}
            # No epoch of the warm-up is chosen; of equals the last.
            chosen = area + 1e-9 * drawn.epoch if drawn.epoch >= warm else drawn.epoch - 1e6
            return found | {"chosen": chosen}

        return validate


class Bags:
    """Features of the slides of a dataset, read when they are asked for; the last ones stay in memory.

    Slides that come as pictures are encoded once by ``base``, into ``folder/training``.
    """

    def __init__(self, base: LoadedModel, folder: Path, listener: Listener) -> None:
        self.base, self.folder, self.listener = base, folder / TRAINING / "features", listener
        self._kept: dict[str, NDArray[np.float32]] = {}
        self._room = KEPT_BYTES
        self.width = 0  # of the first slide that was read

    def read(self, item: Item) -> NDArray[np.float32]:
        """[patch, feature]. Raises :class:`omlab.errors.InputError`."""
        if item.name in self._kept:
            return self._kept[item.name]
        features = self._features(item)
        self.width = self.width or features.shape[1]
        if features.shape[1] != self.width:
            raise InputError(
                f"{item.name}: has {features.shape[1]} features a patch, others have {self.width}",
                remedy="Use features of one encoder",
            )
        if features.nbytes <= self._room:
            self._kept[item.name] = features
            self._room -= features.nbytes
        return features

    def _features(self, item: Item) -> NDArray[np.float32]:
        from omlab.cases import slide_features
        from omlab.results.slide_features import write_h5

        path = self.folder / f"{item.name.replace('/', '_')}.h5"
        if path.is_file():
            return slide_features.read(path).features
        case = item.case()
        if isinstance(case, PatchFeatures):
            return case.features
        if not isinstance(case, Slide):
            raise InputError(f"{item.name}: is of kind {case.kind}, a slide or features of its patches were expected")
        self.folder.mkdir(parents=True, exist_ok=True)
        result = self.base.run(case, listener=self.listener, scratch=self.folder / item.name).result
        if not isinstance(result, SlideFeatures):
            raise InputError(f"'{self.base.card.name}' gave {result.kind} for {item.name}, features were expected")
        write_h5(result, path)
        return result.features()


class Drawn:
    """Batches of one slide: all of them in a new order each epoch, or drawn so that every class comes as often."""

    def __init__(self, bags: Bags, split: Split, options: Mapping[str, Any]) -> None:
        from omlab_sdk.training import Arrays

        self.bags, self.split, self.epoch = bags, split, 0
        self.least = options["k"] if options["network"] in ("sb", "mb") else 1
        labels = split.targets.argmax(axis=1)
        weights = (len(labels) / np.bincount(labels, minlength=split.targets.shape[1]))[labels]
        self._order = Arrays([labels], 1, seed=options["seed"], weights=weights if options["weighted"] else None)

    def __len__(self) -> int:
        return len(self._order)

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Features [patch, feature] and class of one slide."""
        import torch

        self.epoch = epoch
        chosen = int(self._order.order(epoch)[index])
        item = self.split.items[chosen]
        features = self.bags.read(item)
        if len(features) < self.least:
            raise InputError(
                f"{item.name}: has {len(features)} patches, at least {self.least} are needed",
                remedy="Give a smaller --k, or take the slide out",
            )
        return torch.from_numpy(features), torch.tensor(int(self.split.targets[chosen].argmax()))


def build(options: Mapping[str, Any], width: int, classes: int) -> nn.Module:
    """The network that the options describe, with weights drawn by their seed."""
    import torch

    from omlab_clam.network import NETWORKS, SIZES

    name = options["network"]
    _, hidden, inner = SIZES["CLAM_SB"][options["size"]]
    common: dict[str, Any] = {"n_classes": classes, "dropout": options["dropout"]}
    with torch.random.fork_rng():
        torch.manual_seed(options["seed"])
        if name not in ("sb", "mb"):
            return NETWORKS[name](features=width, hidden=hidden, **common)
        return NETWORKS[name](
            size=(width, hidden, inner), k_sample=options["k"], subtyping=options["subtyping"],
            instance_loss=options["instance_loss"], **common,
        )  # fmt: skip


def rate(epoch: float, lr: float) -> float:
    """Learning rate: a step up each epoch for ten, then even, half from the fiftieth on."""
    whole = int(epoch)
    if whole < WARM:
        return lr * (whole + 1) / WARM
    return lr / 2 if whole >= LATE else lr


def settings_of(options: Mapping[str, Any]) -> Settings:
    """For the loop of the sdk: Adam, one slide a step."""
    import torch

    from omlab_sdk.training import Settings

    return Settings(
        epochs=options["epochs"], lr=options["lr"], weight_decay=options["reg"], seed=options["seed"],
        monitor="chosen", patience=options["patience"] or None,
        optimiser=lambda network, s: torch.optim.Adam(network.parameters(), lr=s.lr, weight_decay=s.weight_decay),
        schedule=lambda epoch: rate(epoch, options["lr"]),
    )  # fmt: skip


def logits_of(network: nn.Module, bags: Bags, split: Split) -> NDArray[np.float32]:
    """[slide, class] of a network in evaluation mode."""
    import torch

    network.eval()
    device = next(network.parameters()).device
    rows = []
    with torch.inference_mode():
        for item in split.items:
            rows.append(network(torch.from_numpy(bags.read(item)).to(device))[0][0].float().cpu().numpy())
    return np.stack(rows)


def _measured(network: nn.Module, bags: Bags, splits: Splits) -> tuple[dict[str, Any], list[list[Any]]]:
    """Figures of every split, and a row for each of its slides: name, split, class, class that is chosen,
    probabilities."""
    report: dict[str, Any] = {}
    rows: list[list[Any]] = []
    for name, split in splits.all().items():
        probabilities = softmax(logits_of(network, bags, split))
        found = figures(probabilities, split.targets, exclusive=True)
        report |= {f"{name}_slides": len(split)} | {f"{name}_{key}": value for key, value in found.items()}
        rows += [
            [item.name, name, int(y.argmax()), int(p.argmax()), *map(float, p)]
            for item, y, p in zip(split.items, split.targets, probabilities, strict=True)
        ]
    return report, rows


def _csv(classes: tuple[str, ...], rows: list[list[Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide_id", "split", "Y", "Y_hat", *(f"p_{n}" for n in range(len(classes)))])
    writer.writerows(rows)
    return text.getvalue()


def _options() -> list[dict[str, Any]]:
    """Those of the model ``clam`` that a trained head has, too: all but those that say what it is trained on."""
    tables = manifest.read_tables(Path(__file__).with_name(manifest.NAME))
    return [o for o in tables["model"][0]["options"] if o["name"] not in ("encoder", "encoder-variant", "names")]
