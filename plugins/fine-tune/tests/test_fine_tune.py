"""The recipe behind the defaults of the card; whole adaptations are tested with the other adapters."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from omlab.adapter import with_shared
from omlab.labelled import Split, Splits
from omlab.loading import options_of
from omlab.plugins import Registry
from omlab.vocabulary import Kind

torch = pytest.importorskip("torch")


@pytest.fixture
def adapter():
    return Registry.discover().load(Kind.ADAPTER, "fine-tune")


def test_the_defaults_are_the_recipe(adapter):
    options = options_of(with_shared(adapter.card), {})
    base = SimpleNamespace(choice=SimpleNamespace(device="auto"))
    settings = adapter._settings(base, SimpleNamespace(monitor="val_auc"), options)
    assert settings.lr == pytest.approx(3.125e-4)  # what RETFound's command comes to with batches of 16
    assert (settings.min_lr, settings.warmup_epochs, settings.epochs) == (1e-6, 10, 50)
    assert (settings.layer_decay, settings.weight_decay, settings.betas) == (0.65, 0.05, (0.9, 0.999))
    assert (options["drop_path"], options["label_smoothing"], options["mixup"]) == (0.2, 0.1, 0.0)
    assert settings.clip is None
    assert not options["flip"]


def test_the_loss_is_that_of_the_classes_that_can_be_learnt():
    from omlab_sdk.adapting.trained import _Task

    targets = np.eye(3, dtype=np.float32)[[0, 1, 0, 1]]  # nothing of the third class
    split = Split(items=(None,) * 4, targets=targets)
    splits = Splits(train=split, val=split.take([]), test=split.take([]), classes=("a", "b", "c"), exclusive=True)
    task = _Task(splits, {}, {"label_smoothing": 0.1})
    logits = torch.tensor([[1.0, 0.0, 50.0]]).repeat(4, 1)
    loss = task.loss(lambda images: logits, (torch.zeros(4), torch.from_numpy(targets)))
    logs = torch.tensor([1.0, 0.0]).log_softmax(0)
    own = torch.tensor([logs[0], logs[1], logs[0], logs[1]])
    assert float(loss) == pytest.approx(float(-(0.9 * own + 0.1 * logs.mean()).mean()))
    assert task.monitor is None
