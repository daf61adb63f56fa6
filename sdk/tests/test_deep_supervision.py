"""nnU-Net's loss by hand, and over several outputs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from omlab_sdk.training.deep_supervision import (  # noqa: E402
    DeepSupervision,
    DiceAndCrossEntropy,
    SoftDice,
    labels_at,
    output_weights,
)


def _drawn(classes: int = 2, side: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, side, side, side, generator=generator)
    return logits, torch.randint(classes, (2, 1, side, side, side), generator=generator)


def test_one_output_by_hand() -> None:
    logits, target = _drawn()
    p, t = logits.softmax(1)[:, 1], target[:, 0].float()
    dice = (2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5)
    entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    expected = pytest.approx(float(entropy - dice), abs=1e-5)
    assert float(DiceAndCrossEntropy()(logits, target)) == expected
    assert float(DeepSupervision()(logits, target)) == expected


def test_dice_of_each_case() -> None:
    logits, target = _drawn(3)
    alone = [float(SoftDice()(logits[n : n + 1], target[n : n + 1])) for n in range(2)]
    together = float(SoftDice(batch=False)(logits, target))
    assert together == pytest.approx(sum(alone) / 2, abs=1e-6)
    assert together != pytest.approx(float(SoftDice()(logits, target)), abs=1e-6)


def test_outputs_weigh_half_of_the_finer_one_and_the_coarsest_nothing() -> None:
    assert output_weights(1) == (1.0,)
    assert output_weights(4) == pytest.approx((4 / 7, 2 / 7, 1 / 7, 0))
    (fine, target), (middle, _), (coarse, _) = _drawn(3, 8), _drawn(3, 4), _drawn(3, 2)
    loss = DiceAndCrossEntropy()
    found = DeepSupervision()([fine, middle, coarse], target)
    expected = 2 / 3 * loss(fine, target) + 1 / 3 * loss(middle, labels_at(target, (4, 4, 4)))
    assert float(found) == pytest.approx(float(expected), abs=1e-6)
    own = DeepSupervision(weights=(0, 0, 1))([fine, middle, coarse], target)
    assert float(own) == pytest.approx(float(loss(coarse, labels_at(target, (2, 2, 2)))), abs=1e-6)


def test_labels_on_another_grid_are_those_of_the_nearest_voxel() -> None:
    target = torch.arange(8).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 3, 3)
    assert labels_at(target, (8, 3, 3)) is target
    assert labels_at(target, (4, 3, 2))[0, 0, :, 0, 0].tolist() == [1, 3, 5, 7]
    assert labels_at(target, (4, 3, 2)).shape == (1, 1, 4, 3, 2)
