"""Slide classifiers over bags of patch features (Lu et al. 2021), with the state-dict names of the published heads.

A bag is [patch, feature]. Every network gives (logits [1, class], scores [row, patch]): a row of attention before its
softmax for CLAM, or what each patch by itself says of each class for pooling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from omlab_clam.losses import SmoothTop1SVM

#: [features, hidden, attention] by name; those of CLAM_SB as they come with BROW, and of CLAM_MB.
SIZES: dict[str, dict[str, tuple[int, int, int]]] = {
    "CLAM_SB": {"small": (768, 512, 256), "big": (1024, 512, 384), "cl": (512, 512, 256)},
    "CLAM_MB": {"small": (1024, 512, 256), "big": (1024, 512, 384)},
}
DROPOUT = 0.25
#: Entries of checkpoints that evaluation has no use for.
LEFT_OVER = ("instance_loss_fn", "classifiers1")


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)


def _dropout(dropout: bool) -> list[nn.Module]:
    return [nn.Dropout(DROPOUT)] if dropout else []


class GatedAttention(nn.Module):
    """Hidden features [patch, hidden] to attention [patch, branch], before the softmax."""

    def __init__(self, hidden: int, inner: int, branches: int, dropout: bool) -> None:
        super().__init__()
        self.attention_a = nn.Sequential(nn.Linear(hidden, inner), nn.Tanh(), *_dropout(dropout))
        self.attention_b = nn.Sequential(nn.Linear(hidden, inner), nn.Sigmoid(), *_dropout(dropout))
        self.attention_c = nn.Linear(inner, branches)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.attention_c(self.attention_a(x) * self.attention_b(x)))


class PlainAttention(nn.Module):
    """The same without a gate."""

    def __init__(self, hidden: int, inner: int, branches: int, dropout: bool) -> None:
        super().__init__()
        self.module = nn.Sequential(
            nn.Linear(hidden, inner), nn.Tanh(), *_dropout(dropout), nn.Linear(inner, branches)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.module(x))


class Clam(nn.Module):
    """Clustering-constrained attention: what CLAM_SB (one branch) and CLAM_MB (one a class) share.

    Parameters
    ----------
    size : (features, hidden, attention), or a name of :data:`SIZES`.
    features : replaces the first of the three: bags of another encoder.
    k_sample : patches of the highest and of the lowest attention that the instance loss looks at.
    subtyping : classes exclude each other, so that patches of high attention in other branches are told apart too.
    instance_loss : ``"svm"`` or ``"cross-entropy"``.
    """

    upstream = ""

    def __init__(
        self, branches: int, *, size: str | tuple[int, int, int] = "small", features: int | None = None,
        gate: bool = True, dropout: bool = True, k_sample: int = 8, n_classes: int = 2, subtyping: bool = False,
        instance_loss: str = "svm",
    ) -> None:  # fmt: skip
        super().__init__()
        width, hidden, inner = SIZES[self.upstream][size] if isinstance(size, str) else size
        self.width = width = features or width
        self.k_sample, self.n_classes, self.subtyping = k_sample, n_classes, subtyping
        attention = GatedAttention if gate else PlainAttention
        self.attention_net = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), *_dropout(dropout), attention(hidden, inner, branches, dropout)
        )
        self.hidden = hidden
        self._classifiers()
        self.instance_classifiers = nn.ModuleList(nn.Linear(hidden, 2) for _ in range(n_classes))
        self.instance_loss_fn: nn.Module = SmoothTop1SVM(2) if instance_loss == "svm" else nn.CrossEntropyLoss()
        _initialise(self)

    def _classifiers(self) -> None:
        raise TypeError(f"{type(self).__name__} must define _classifiers()")

    def _logits(self, pooled: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define _logits()")

    def look(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden features [patch, hidden], and attention [branch, patch] before its softmax."""
        *first, attention = self.attention_net
        hidden = bag
        for layer in first:
            hidden = layer(hidden)
        return hidden, attention(hidden).transpose(0, 1)

    def pooled(self, bag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attended feature [branch, hidden], attention before its softmax, hidden features."""
        hidden, raw = self.look(bag)
        return torch.softmax(raw, dim=1) @ hidden, raw, hidden

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        feature, raw, _ = self.pooled(bag)
        return self._logits(feature), raw

    def steps(self, bag: Tensor, label: int | None = None) -> dict[str, Tensor]:
        """Every quantity by upstream's name; with the instance loss of a bag of this label."""
        feature, raw, hidden = self.pooled(bag)
        logits = self._logits(feature)
        found = {
            "A_raw": raw, "attention": torch.softmax(raw, dim=1), "logits": logits, "features": feature,
            "Y_prob": torch.softmax(logits, dim=1), "Y_hat": logits.argmax(dim=1, keepdim=True),
        }  # fmt: skip
        return found if label is None else found | self._instances(hidden, found["attention"], label)

    def loss(self, bag: Tensor, label: int, *, bag_weight: float = 0.7, bag_loss: nn.Module | None = None) -> Tensor:
        """Loss of a bag: of its class, and of the patches of the highest and lowest attention.

        Raises
        ------
        ValueError
            The bag has fewer than ``k_sample`` patches.
        """
        found = self.steps(bag, label)
        target = torch.tensor([label], device=bag.device)
        whole = (bag_loss or nn.CrossEntropyLoss())(found["logits"], target)
        return cast(Tensor, bag_weight * whole + (1 - bag_weight) * found["inst_loss"])

    def _instances(self, hidden: Tensor, attention: Tensor, label: int) -> dict[str, Tensor]:
        if len(hidden) < self.k_sample:
            raise ValueError(f"a bag of {len(hidden)} patches is smaller than the {self.k_sample} that are looked at")
        losses, labels, predictions = [], [], []
        for number, classifier in enumerate(self.instance_classifiers):
            if number != label and not self.subtyping:
                continue
            row = attention[number if len(attention) > 1 else 0]
            top = row.topk(self.k_sample).indices
            if number == label:
                chosen = torch.cat([top, row.neg().topk(self.k_sample).indices])
                targets = torch.cat([torch.ones_like(top), torch.zeros_like(top)])
            else:
                chosen, targets = top, torch.zeros_like(top)
            scores = classifier(hidden[chosen])
            losses.append(self.instance_loss_fn(scores, targets))
            labels.append(targets)
            predictions.append(scores.argmax(dim=1))
        total = torch.stack(losses).sum() / (len(self.instance_classifiers) if self.subtyping else 1)
        return {"inst_loss": total, "inst_labels": torch.cat(labels), "inst_preds": torch.cat(predictions)}


class ClamSB(Clam):
    """One attention branch for all classes (upstream's ``CLAM_SB``)."""

    upstream = "CLAM_SB"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(1, **arguments)

    def _classifiers(self) -> None:
        self.classifiers: nn.Module = nn.Linear(self.hidden, self.n_classes)

    def _logits(self, pooled: Tensor) -> Tensor:
        return cast(Tensor, self.classifiers(pooled))


class ClamMB(Clam):
    """A branch for each class (upstream's ``CLAM_MB``)."""

    upstream = "CLAM_MB"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(arguments.get("n_classes", 2), **arguments)

    def _classifiers(self) -> None:
        self.classifiers = nn.ModuleList(nn.Linear(self.hidden, 1) for _ in range(self.n_classes))

    def _logits(self, pooled: Tensor) -> Tensor:
        rows = [classifier(pooled[i : i + 1]) for i, classifier in enumerate(self.classifiers)]  # type: ignore[arg-type]
        return torch.cat(rows, dim=1)


class _Pooling(nn.Module):
    """What classifiers have in common that look at each patch by itself."""

    def loss(self, bag: Tensor, label: int, *, bag_weight: float = 1.0, bag_loss: nn.Module | None = None) -> Tensor:
        """Loss of a bag; patches have none of their own, so ``bag_weight`` is not used."""
        target = torch.tensor([label], device=bag.device)
        return cast(Tensor, (bag_loss or nn.CrossEntropyLoss())(self(bag)[0], target))


class MaxMIL(_Pooling):
    """Two classes: the patch that is surest of class 1 speaks for the slide (upstream's ``MIL_fc``)."""

    def __init__(
        self, *, features: int = 1024, hidden: int = 512, n_classes: int = 2, dropout: bool = True
    ) -> None:  # fmt: skip
        super().__init__()
        if n_classes != 2:
            raise ValueError(f"tells 2 classes apart, {n_classes} were asked for; MaxMILMany takes more")
        self.width = features
        self.classifier = nn.Sequential(
            nn.Linear(features, hidden), nn.ReLU(), *_dropout(dropout), nn.Linear(hidden, n_classes)
        )
        _initialise(self)

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classifier(bag)
        probabilities = torch.softmax(logits, dim=1)
        top = probabilities[:, 1:].argmax(dim=0)  # two axes until here: some engines want that
        return logits.index_select(0, top), probabilities.transpose(0, 1)


class MaxMILMany(_Pooling):
    """More classes: the patch that is surest of any class speaks for the slide (upstream's ``MIL_fc_mc``)."""

    def __init__(
        self, *, features: int = 1024, hidden: int = 512, n_classes: int = 3, dropout: bool = True
    ) -> None:  # fmt: skip
        super().__init__()
        self.width = features
        self.fc = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), *_dropout(dropout))
        self.classifiers = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(n_classes))
        _initialise(self)

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.fc(bag)
        logits = torch.cat([classifier(hidden) for classifier in self.classifiers], dim=1)
        probabilities = torch.softmax(logits, dim=1)
        top = probabilities.amax(dim=1, keepdim=True).argmax(dim=0)
        return logits.index_select(0, top), probabilities.transpose(0, 1)


class MeanMIL(_Pooling):
    """The mean of all patches speaks for the slide. Not upstream's: the plainest thing to compare with."""

    def __init__(
        self, *, features: int = 768, hidden: int = 512, n_classes: int = 2, dropout: bool = True
    ) -> None:  # fmt: skip
        super().__init__()
        self.width = features
        self.embedding = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), *_dropout(dropout))
        self.classifier = nn.Linear(hidden, n_classes)
        _initialise(self)

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.embedding(bag)
        alone = torch.softmax(self.classifier(hidden), dim=1)
        return cast(Tensor, self.classifier(hidden.mean(dim=0, keepdim=True))), alone.transpose(0, 1)


def max_mil(**arguments: Any) -> nn.Module:
    """The upstream network of max pooling for this number of classes."""
    return MaxMIL(**arguments) if arguments.get("n_classes", 2) == 2 else MaxMILMany(**arguments)


#: Name in cards and options -> network.
NETWORKS: dict[str, Callable[..., nn.Module]] = {"sb": ClamSB, "mb": ClamMB, "max": max_mil, "mean": MeanMIL}
