"""Pre-training on images without labels; the model stays what it is, with other weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from omlab.adapter import TRAINING
from omlab.dataset import BoundDataset, Item
from omlab.embeddings import failures
from omlab.errors import UsageError, require
from omlab.labelled import gather
from omlab.loading import LoadedModel
from omlab.progress import Listener, silent
from omlab_sdk.adapting.capture import only_graph
from omlab_sdk.adapting.model import WEIGHTS
from omlab_sdk.adapting.prepared import prepare
from omlab_sdk.adapting.trained import LOOK, TrainedAdapter

if TYPE_CHECKING:
    from torch import Tensor, nn


class MaskedAutoencoding(TrainedAdapter):
    """The adapter ``masked-autoencoder``. The model directory holds the whole network."""

    needs_base_weights = False
    sources: ClassVar[tuple[str, ...]] = ()

    def assemble(self, network: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
        """The network as it is."""
        return network

    def adapt(
        self,
        base: LoadedModel,
        dataset: BoundDataset,
        folder: Path,
        options: Mapping[str, Any],
        listener: Listener = silent,
    ) -> dict[str, Any]:
        """Learn from the images of ``train``, keep the last epoch; the loss on ``val`` is reported.

        Raises
        ------
        omlab.errors.MissingDependency
            torch or accelerate is not installed.
        UsageError
            The network has no vision transformer, or the dataset no images to learn from.
        """
        for module in ("torch", "accelerate", "safetensors"):
            require(module, needed_for=f"the adapter {self.card.name}", install="omlab-sdk[train]")
        import accelerate
        import torch
        from safetensors.torch import save_file

        from omlab_masked_autoencoder.network import MaskedAutoencoder
        from omlab_sdk.adapting.augment import Augment
        from omlab_sdk.training import Arrays, Settings, fit

        if not 0 < options["crop"] <= 1 or options["batch"] < 1:
            raise UsageError(
                f"crop lies within 0 to 1 and a batch has at least one image, found {options['crop']}, "
                f"{options['batch']}"
            )
        graph = only_graph(base.model, base.variant)
        parts, remarks = _parts(dataset, options, listener)
        work = folder / TRAINING
        found = prepare(base, parts, work, listener=listener)
        train = found.arrays["train"]
        if train.ndim != 4 or train.shape[2] != train.shape[3]:
            raise UsageError(
                f"the network of '{base.card.name}' takes tensors of the shape {train.shape[1:]}, square images are "
                "needed"
            )
        with torch.random.fork_rng():
            torch.manual_seed(options["seed"])
            network = base.model.network(graph, base.variant, base.files)
            network.requires_grad_(True)
            autoencoder = MaskedAutoencoder(
                network, base.card.name, train.shape[1], train.shape[2], mask_ratio=options["mask_ratio"],
                norm_pix=options["norm_pix"], width=options["decoder_width"], depth=options["decoder_depth"],
            )  # fmt: skip
        rate = options["base_lr"] * options["batch"] * options["accumulate"] / 256
        settings = Settings(
            epochs=options["epochs"], lr=rate, min_lr=0.0, warmup_epochs=options["warmup_epochs"],
            weight_decay=options["weight_decay"], betas=(0.9, 0.95), accumulate=options["accumulate"],
            clip=options["clip"] or None, precision=options["precision"], seed=options["seed"],
            device=base.choice.device if base.choice.device in ("cpu", "cuda") else "auto",
        )  # fmt: skip
        change = Augment.crop(options["crop"], options["flip"])
        batches = Arrays([train], min(options["batch"], len(train)), seed=options["seed"], augment=change)
        fitted = fit(
            autoencoder, lambda net, batch: net(batch[0]), batches, settings=settings, folder=work,
            validate=lambda net: _validate(net, found.arrays.get("val")), what=self.card.name, listener=listener,
            identity=repr([base.weights_sha256, len(train), sorted(options.items())]),
        )  # fmt: skip
        kept = {name: tensor.contiguous().clone() for name, tensor in self.stored(network).items()}
        save_file(kept, folder / WEIGHTS)
        report: dict[str, Any] = {
            "history": [dict(row) for row in fitted.history], "steps": fitted.steps, "remarks": remarks,
            **{f"{name}_images": len(array) for name, array in found.arrays.items()},
            "weights": sum(p.numel() for p in network.parameters()), "torch": torch.__version__,
            "accelerate": accelerate.__version__, **failures(found.failed),
            "training": {
                "device": fitted.device, "precision": fitted.precision, "processes": fitted.processes,
                "resumed_at": fitted.resumed_at,
            },
        }  # fmt: skip
        title = base.card.title or base.card.name
        return {
            "title": f"{title}, pre-trained",
            "summary": f"{base.card.name}, pre-trained as a masked autoencoder on {len(train)} images",
            "outputs": ["embedding"], "task": ["embedding"], "variants": [{"name": "adapted", "config": {}}],
            "report": report,
        }  # fmt: skip


def _parts(
    dataset: BoundDataset, options: Mapping[str, Any], listener: Listener
) -> tuple[dict[str, tuple[Item, ...]], list[str]]:
    """Cases of ``train`` and ``val``, and remarks; labels are only looked at where shots are to be drawn."""
    if options["shots"]:
        splits = gather(dataset, shots=options["shots"], seed=options["seed"], listener=listener)
        return {name: split.items for name, split in splits.all().items() if name != "test"}, list(splits.remarks)
    known = dataset.dataset.card.splits
    parts = {name: tuple(dataset.items(name)) for name in ("train", "val") if not known or name in known}
    if not known:
        parts = {"train": tuple(dataset.items())}
    if not parts.get("train"):
        raise UsageError(f"dataset '{dataset.name}' has no training cases", remedy="A split called train is needed")
    return {name: items for name, items in parts.items() if items}, []


def _validate(network: nn.Module, images: Any) -> dict[str, float]:
    """The loss on the validation images, the same patches hidden every time."""
    import torch

    if images is None:
        return {}
    generator = torch.Generator().manual_seed(0)
    device = next(network.parameters()).device
    count = network.decoder_positions.shape[1] - network.extra  # type: ignore[union-attr, operator]
    total = 0.0
    for start in range(0, len(images), LOOK):
        batch: Tensor = torch.from_numpy(np.array(images[start : start + LOOK]))
        noise = torch.rand(len(batch), count, generator=generator)
        total += float(network(batch.to(device), noise.to(device))) * len(batch)
    return {"val_loss": total / len(images)}
