"""Simulated prompts, metrics and the fine-tuning objective."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from omlab.errors import InputError  # noqa: E402
from omlab_sam_med2d import metrics, protocol  # noqa: E402
from omlab_sam_med2d.losses import DiceLoss, FineTuningLoss, FocalLoss, QualityLoss  # noqa: E402
from omlab_sam_med2d.network import Sam  # noqa: E402
from omlab_sam_med2d.training import rounds, trainable  # noqa: E402
from omlab_sdk.segment_anything.frame import frame_of  # noqa: E402


def _mask() -> np.ndarray:
    mask = np.zeros((32, 32), np.uint8)
    mask[4:12, 6:20] = 1
    mask[20:24, 2:5] = 1
    return mask


def test_the_box_is_of_the_largest_part() -> None:
    assert protocol.box_of(_mask()).tolist() == [6, 4, 20, 12]
    corner = np.zeros((8, 8), np.uint8)
    corner[0, 0] = corner[1, 1] = 1  # they touch at a corner and are one part
    assert protocol.box_of(corner).tolist() == [0, 0, 2, 2]
    with pytest.raises(InputError, match="empty mask"):
        protocol.box_of(np.zeros((4, 4)))


def test_the_box_moves_and_keeps_its_size() -> None:
    boxes = np.array([protocol.box_of(_mask(), np.random.RandomState(seed), 5) for seed in range(200)])
    assert {tuple(b) for b in (boxes[:, 2:] - boxes[:, :2])} == {(14, 8)}
    shifts = boxes[:, :2] - [6, 4]
    assert (shifts.min(), shifts.max()) == (-4, 3)  # int(5 x a tenth of 8) = 4, the upper end left out
    random = np.random.RandomState(3)
    dx, dy = random.randint(-4, 4), random.randint(-4, 4)
    assert protocol.box_of(_mask(), np.random.RandomState(3), 5).tolist() == [6 + dx, 4 + dy, 20 + dx, 12 + dy]
    thin = np.zeros((32, 32), np.uint8)
    thin[5, 3:20] = 1
    assert protocol.box_of(thin, np.random.RandomState(0), 5).tolist() == [3, 5, 20, 6]  # too thin to move


def test_first_points() -> None:
    places, labels = protocol.first_points(_mask(), np.random.RandomState(0))
    assert labels.tolist() == [1]
    assert _mask()[places[0, 1], places[0, 0]] == 1
    inside = np.argwhere(_mask())
    assert places[0].tolist() == inside[np.random.RandomState(0).randint(0, len(inside))][::-1].tolist()
    places, labels = protocol.first_points(_mask(), np.random.RandomState(0), 9)
    assert sorted(labels.tolist()) == [0] * 5 + [1] * 4
    assert [_mask()[y, x] for x, y in places] == labels.tolist()
    assert protocol.first_points(np.zeros((8, 8)), np.random.RandomState(0))[1].tolist() == [0]


def test_corrections_lie_where_it_is_wrong() -> None:
    found = np.zeros((32, 32), bool)
    found[4:12, 10:25] = True
    places, labels = protocol.correction_points(found, _mask(), np.random.RandomState(0), 40)
    for (x, y), label in zip(places, labels, strict=True):
        assert found[y, x] != _mask()[y, x]
        assert label == _mask()[y, x]
    _, labels = protocol.correction_points(_mask() > 0, _mask(), np.random.RandomState(0), 3)
    assert labels.tolist() == [-1, -1, -1]


def test_masks_that_are_none() -> None:
    frame = frame_of((32, 32), 64, "evaluation")
    assert protocol.mask_in_frame(255 * _mask(), frame).sum() == _mask().sum()
    for mask, message in (
        (_mask()[:20], "has 20 x 32 pixels, its picture has 32 x 32"),
        (7 * _mask(), r"values \[0, 7\]"),
        (np.where(np.arange(32) == 9, 128, 255 * _mask()), r"values \[0, 128, 255\]"),  # blurred edges
    ):
        with pytest.raises(InputError, match=message):
            protocol.mask_in_frame(mask, frame, "m.png")


def test_metrics() -> None:
    truth, found = np.zeros((2, 1, 4, 4)), np.zeros((2, 1, 4, 4))
    truth[0, 0, :2], found[0, 0, 1:3] = 1, 1
    assert metrics.dice(found, truth).tolist() == pytest.approx([0.5, 1.0])  # two empty masks agree
    assert metrics.iou(found, truth).tolist() == pytest.approx([1 / 3, 1.0])
    logits = np.where(found > 0, 2.0, -2.0)
    assert metrics.dice(logits, truth)[0] == pytest.approx(0.5)


def test_losses_on_paper() -> None:
    logits, mask = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0], [0, 0]]]])
    log2 = np.log(2)
    assert float(FocalLoss()(logits, mask)) == pytest.approx((0.25 + 3 * 0.75) * 0.25 * log2 / 4, rel=1e-5)
    assert float(DiceLoss()(logits, mask)) == pytest.approx(1 - (2 * 0.5 + 1) / (2 + 1 + 1), rel=1e-5)
    assert float(QualityLoss()(logits, mask, torch.tensor([[0.7]]))) == pytest.approx((0.5 / 2.5 - 0.7) ** 2, rel=1e-5)
    parts = 20 * FocalLoss()(logits, mask) + DiceLoss()(logits, mask) + QualityLoss()(logits, mask, torch.ones(1, 1))
    assert float(FineTuningLoss()(logits, mask, torch.ones(1, 1))) == pytest.approx(float(parts))


@pytest.fixture
def sam() -> Sam:
    torch.manual_seed(0)
    return Sam(
        img_size=32, embed_dim=16, depth=1, num_heads=2, global_attn_indexes=(0,), prompt_dim=32, dec_heads=2,
        dec_mlp=32, iou_hidden=16,
    )  # fmt: skip


def test_what_is_trained(sam) -> None:
    chosen = {id(p) for p in trainable(sam)}
    names = {name for name, p in sam.named_parameters() if id(p) in chosen}
    assert {n for n in names if n.startswith("image_encoder.")} == {
        n for n, _ in sam.named_parameters() if ".Adapter." in n
    }
    assert {n for n, _ in sam.named_parameters() if not n.startswith("image_encoder.")} <= names


def test_rounds_train(sam) -> None:
    """Adapters move in the first round alone, the decoder in all, and the loss falls."""
    optimizer = torch.optim.Adam(trainable(sam), lr=5e-3)
    loss, images = FineTuningLoss(), torch.randn(2, 3, 32, 32)
    masks = torch.from_numpy(np.stack([[_mask()] * 2, [_mask().T] * 2]).astype(np.float32))
    random = np.random.RandomState(0)
    means = []
    for _ in range(4):
        values, kinds = [], []
        for number, step in enumerate(rounds(sam, images, masks, random)):
            optimizer.zero_grad()
            value = loss(step.logits, step.masks, step.qualities)
            value.backward()
            adapter = sam.image_encoder.blocks[0].Adapter.spatial[0].weight.grad
            assert (adapter is not None and bool(adapter.abs().sum() > 0)) == (number == 0)
            assert sam.mask_decoder.mask_tokens.weight.grad.abs().sum() > 0
            optimizer.step()
            values.append(value.item())
            kinds.append(step.prompt)
            assert step.logits.shape == step.masks.shape == (4, 1, 32, 32)
        assert len(kinds) == 9
        assert kinds[0] in ("box", "points")
        assert kinds[-1] == "mask"
        assert kinds.count("mask") == 2
        means.append(np.mean(values))
    assert means[-1] < 0.8 * means[0], means
