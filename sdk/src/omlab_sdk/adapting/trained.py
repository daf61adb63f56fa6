"""The adapter that trains a network for classes; what of it, and how, subclasses say. Only training needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from omlab.adapter import TRAINING, Adapter
from omlab.cards import ModelCard, Variant
from omlab.dataset import BoundDataset
from omlab.embeddings import failures
from omlab.errors import UsageError, require
from omlab.heads import classifier_table, sigmoid, softmax
from omlab.labelled import Splits, figures, gather
from omlab.loading import LoadedModel
from omlab.model import Model
from omlab.progress import Listener, silent
from omlab_sdk.adapting.capture import only_graph
from omlab_sdk.adapting.model import WEIGHTS, AdaptedModel
from omlab_sdk.adapting.prepared import Augmented, augments_itself, prepare_splits

if TYPE_CHECKING:
    from torch import Tensor, nn

    from omlab_sdk.training import Fitted, Settings

#: Cases that are looked at together where nothing is learnt.
LOOK = 64


class TrainedAdapter(Adapter):
    """Base of adapters that train the network, or a part of it, as a classifier.

    A subclass says how the network is put together (:meth:`assemble`), what of it learns (:meth:`learn`), and which of
    its tensors are kept (:meth:`stored`).
    """

    #: Modules whose text decides what the adapted network computes.
    sources: ClassVar[tuple[str, ...]] = ("omlab_sdk.adapting.networks",)

    # --- what subclasses say -----------------------------------------------------------------------------------------

    def plan(self, network: nn.Module, base: LoadedModel, options: Mapping[str, Any]) -> dict[str, Any]:
        """What :meth:`assemble` needs to know besides the head, JSON-able; kept in the manifest."""
        return {}

    def assemble(self, network: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
        """The base's network with all that is added to it, before the trained tensors are put in."""
        from omlab_sdk.adapting.networks import with_head

        return with_head(network, plan)

    def learn(self, network: nn.Module, options: Mapping[str, Any]) -> None:
        """Say by ``requires_grad`` what learns. The default lets everything learn."""
        network.requires_grad_(True)

    def stored(self, network: nn.Module) -> dict[str, Tensor]:
        """Tensors of an assembled network that are kept. The default keeps all."""
        return {name: tensor.detach() for name, tensor in network.state_dict().items()}

    def finish(self, network: nn.Module) -> nn.Module:
        """The network as it is run, once the trained tensors are in."""
        return network

    # --- what they share ---------------------------------------------------------------------------------------------

    def adapt(
        self,
        base: LoadedModel,
        dataset: BoundDataset,
        folder: Path,
        options: Mapping[str, Any],
        listener: Listener = silent,
    ) -> dict[str, Any]:
        """Train on the split ``train``, keep the epoch that is best on ``val``, measure on ``test``.

        Raises
        ------
        omlab.errors.MissingDependency
            torch or accelerate is not installed.
        InputError, UsageError
            See :func:`omlab.labelled.gather`, :func:`omlab_sdk.adapting.prepared.prepare`.
        omlab_sdk.training.TrainingError
            The loss is not finite.
        """
        for module in ("torch", "accelerate", "safetensors"):
            require(module, needed_for=f"the adapter {self.card.name}", install="omlab-sdk[train]")
        import torch
        from safetensors.torch import save_file

        from omlab_sdk.training import fit

        graph = only_graph(base.model, base.variant)
        splits = gather(dataset, shots=options["shots"], seed=options["seed"], listener=listener)
        work = folder / TRAINING
        splits, arrays, failed = prepare_splits(base, splits, work, duplicates=options["duplicates"], listener=listener)
        with torch.random.fork_rng():
            torch.manual_seed(options["seed"])
            network, plan = self._begin(base, graph, splits, options)
        self.learn(network, options)
        task = _Task(splits, arrays, options)
        fitted = fit(
            network, task.loss, self._batches(base, splits, arrays, options), validate=task.validate,
            settings=self._settings(base, task, options), folder=work, what=self.card.name, listener=listener,
            identity=repr([base.weights_sha256, [len(array) for array in arrays.values()], sorted(options.items())]),
        )  # fmt: skip
        task.silence(network, plan)
        kept = {name: tensor.contiguous().clone() for name, tensor in self.stored(network).items()}
        save_file(kept, folder / WEIGHTS)
        report = self._report(network, fitted, task, options)
        report |= {"trained_weights": _count(network, True), "weights": _count(network, False), **failures(failed)}
        how = (self.card.title or self.card.name).lower()
        table = classifier_table(base.card, how, splits.classes, splits.exclusive)
        table["variants"] = [{"name": "adapted", "config": {"exclusive": splits.exclusive, **plan}}]
        return {**table, "report": report}

    def model(self, card: ModelCard, base: Model, base_variant: Variant, folder: Path) -> Model:
        """The model of a directory that :meth:`adapt` filled."""
        return AdaptedModel(card, base, base_variant, folder, self)

    def _begin(
        self, base: LoadedModel, graph: Any, splits: Splits, options: Mapping[str, Any]
    ) -> tuple[nn.Module, dict[str, Any]]:
        """The assembled network before training, and its plan."""
        from omlab_sdk.adapting.networks import plan_head, set_drop_path

        network = base.model.network(graph, base.variant, base.files)
        plan: dict[str, Any] = {"classes": len(splits.classes), **plan_head(network, graph, base.card.name)}
        plan |= self.plan(network, base, options)
        if options.get("drop_path"):
            set_drop_path(network, options["drop_path"])
        return self.assemble(network, plan), plan

    def _batches(self, base: LoadedModel, splits: Splits, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        from omlab_sdk.adapting.augment import Augment
        from omlab_sdk.training import Arrays

        if options["batch"] < 1:
            raise UsageError(f"a batch has at least one case, found {options['batch']}")
        own = augments_itself(base.model) and options["augment"] != "none"
        change = None if own else Augment.of(options["augment"], options["flip"])
        data = (arrays["train"], splits.train.targets)
        batches = Arrays(
            data, min(options["batch"], len(splits.train)), seed=options["seed"], augment=change,
            weights=_balance(splits.train.targets) if options["balance"] else None,
        )  # fmt: skip
        return Augmented(base, splits.train.items, batches) if own else batches

    def _settings(self, base: LoadedModel, task: _Task, options: Mapping[str, Any]) -> Settings:
        from omlab_sdk.training import Settings

        device = base.choice.device if base.choice.device in ("cpu", "cuda") else "auto"
        # RETFound's rule: the rate is given for 256 cases a step
        rate = options["base_lr"] * options["batch"] * options["accumulate"] / 256
        return Settings(
            epochs=options["epochs"], lr=rate, min_lr=min(1e-6, rate / 10), warmup_epochs=options["warmup_epochs"],
            weight_decay=options["weight_decay"], layer_decay=options.get("layer_decay", 1.0),
            accumulate=options["accumulate"], clip=options["clip"] or None, precision=options["precision"],
            monitor=task.monitor, smaller=task.monitor == "val_loss", second="val_loss",
            patience=options["patience"] or None, seed=options["seed"], device=device,
        )  # fmt: skip

    def _report(self, network: nn.Module, fitted: Fitted, task: _Task, options: Mapping[str, Any]) -> dict[str, Any]:
        import accelerate
        import torch

        splits = task.splits
        remarks = list(splits.remarks)
        if not len(splits.val):
            remarks.append("without validation cases the last epoch was kept")
        if options.get("layer_decay", 1.0) != 1.0 and not _blocks(network):
            remarks.append("the network has no list of blocks: all layers had the same learning rate")
        report: dict[str, Any] = {
            "history": [dict(row) for row in fitted.history], "best_epoch": fitted.best_epoch, "steps": fitted.steps,
            "stopped_early": fitted.stopped_early, "remarks": remarks, "torch": torch.__version__,
            "accelerate": accelerate.__version__,
            "training": {
                "device": fitted.device, "precision": fitted.precision, "processes": fitted.processes,
                "resumed_at": fitted.resumed_at,
            },
        }  # fmt: skip
        for name, split in splits.all().items():
            measured = figures(task.answer(network, name), split.targets, exclusive=splits.exclusive)
            report |= {f"{name}_images": len(split)} | {f"{name}_{key}": value for key, value in measured.items()}
        return report


class _Task:
    """Loss and validation of a classifier."""

    def __init__(self, splits: Splits, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self.splits, self.arrays = splits, arrays
        self.smoothing, self.mixup = options.get("label_smoothing", 0.0), options.get("mixup", 0.0)
        self.present = np.flatnonzero(splits.present())
        self.monitor: str | None = None
        if len(splits.val):
            both = (splits.val.targets > 0.5).any(axis=0) & (splits.val.targets < 0.5).any(axis=0)
            self.monitor = "val_auc" if both.any() else "val_loss"

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Cross-entropy over the classes that have training cases, smoothed; of each class by itself where they do not
        exclude each other."""
        import torch
        from torch.nn import functional as F

        images, targets = batch
        if self.mixup > 0 and len(images) > 1:
            share = torch.distributions.Beta(self.mixup, self.mixup).sample().item()
            images, targets = (
                share * images + (1 - share) * images.flip(0),
                share * targets + (1 - share) * targets.flip(0),
            )
        logits = network(images)[:, self.present].float()
        targets = targets[:, self.present]
        if self.splits.exclusive:
            return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        smooth = targets * (1 - self.smoothing) + 0.5 * self.smoothing
        return F.binary_cross_entropy_with_logits(logits, smooth)

    def answer(self, network: nn.Module, split: str) -> Any:
        """[cases, classes] probabilities."""
        import torch

        array = self.arrays[split]
        device = next(network.parameters()).device
        found = []
        with torch.no_grad():
            for start in range(0, len(array), LOOK):
                rows = np.array(array[start : start + LOOK])  # a copy: torch does not take what cannot be written
                found.append(network(torch.from_numpy(rows).to(device)).float().cpu().numpy())
        logits = np.concatenate(found)
        return softmax(logits) if self.splits.exclusive else sigmoid(logits)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """``val_loss``, ``val_accuracy`` and ``val_auc``; nothing without validation cases."""
        if not len(self.splits.val):
            return {}
        probabilities, targets = self.answer(network, "val"), self.splits.val.targets
        safe = np.clip(probabilities[:, self.present], 1e-7, 1 - 1e-7)
        own = targets[:, self.present]
        if self.splits.exclusive:
            loss = -(own * np.log(safe)).sum(axis=1).mean()
        else:
            loss = -(own * np.log(safe) + (1 - own) * np.log(1 - safe)).mean()
        measured = figures(probabilities, targets, exclusive=self.splits.exclusive)
        return {"val_loss": float(loss), **{f"val_{key}": value for key, value in measured.items()}}

    def silence(self, network: nn.Module, plan: Mapping[str, Any]) -> None:
        """Let classes without a training case never be predicted."""
        import torch

        from omlab_sdk.adapting.networks import NEVER, head_of

        absent = np.setdiff1d(np.arange(len(self.splits.classes)), self.present)
        head = head_of(network, plan)
        with torch.no_grad():
            head.weight[absent] = 0.0
            head.bias[absent] = NEVER


def _balance(targets: Any) -> Any:
    """[cases] how likely each is drawn, so that all classes come alike often; of several classes the rarest counts,
    and cases of none are a class of their own."""
    rows = np.concatenate([targets, targets.sum(axis=1, keepdims=True) == 0], axis=1)
    return (rows / np.maximum(rows.sum(axis=0), 1)).max(axis=1)


def _count(network: nn.Module, learning: bool) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not learning)


def _blocks(network: nn.Module) -> int:
    from omlab_sdk.training.rates import depth_of

    return depth_of(network)
