"""The loss of the detection network: which place learns which box, the terms by hand, and that it can be learnt."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from omlab_endo_fm import detection_loss as loss  # noqa: E402
from omlab_endo_fm.detection import Detector  # noqa: E402

#: Of a frame of 64 x 96 pixels.
SIZES = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]


def test_a_place_learns_the_smallest_box_that_it_is_in_the_middle_of() -> None:
    boxes = torch.tensor([[0.0, 0, 60, 60], [20, 20, 36, 36]])
    wanted, distances = loss.assign(SIZES, boxes, torch.tensor([1, 2]))
    first = wanted[: 8 * 12].reshape(8, 12)
    # Places of the first level lie at 4, 12, 20, 28, 36 ...; the boxes' middles are (30, 30) and (28, 28).
    assert first[3, 3] == 2 and first[4, 4] == 1 and first[2, 2] == 1 and first[0, 0] == 0
    assert distances[: 8 * 12].reshape(8, 12, 4)[3, 3].tolist() == [8, 8, 8, 8]
    assert (wanted[8 * 12 :] == 0).all()  # no edge is farther than 64 pixels
    wide, far = loss.assign(SIZES, torch.tensor([[0.0, 0, 96, 64]]), torch.tensor([1]))
    assert (wide[: 8 * 12].reshape(8, 12) > 0).sum(0).tolist() == [0, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 0]
    assert far[: 8 * 12].reshape(8, 12, 4)[3, 5].tolist() == [44, 28, 52, 36]
    none, _ = loss.assign(SIZES, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert (none == 0).all() and len(none) == sum(rows * columns for rows, columns in SIZES)


def test_terms_by_hand() -> None:
    a, b = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]])
    assert float(loss.iou(a, b)) == pytest.approx(1 / 3) and float(loss.giou(a, b)) == pytest.approx(1 / 3)
    apart = torch.tensor([[3.0, 0, 4, 2]])
    assert float(loss.giou(a, apart)) == pytest.approx(-2 / 8)
    assert loss.centrality(torch.tensor([[1.0, 2, 4, 2]])).tolist() == [0.5]
    # One class of two is right with a chance of 0.5: 0.25 * 0.25 * ln 2; three others are wrongly at 0.5.
    found = loss.focal(torch.zeros(2, 2), torch.tensor([1, 0]))
    assert float(found) == pytest.approx((0.25 + 3 * 0.75) * 0.25 * 0.693147, rel=1e-4)


def test_a_frame_without_boxes_has_a_loss() -> None:
    outputs = {
        name: [torch.zeros(1, channels, *size, requires_grad=True) for size in SIZES]
        for name, channels in (("cls", 2), ("centerness", 1), ("box", 4), ("stft_cls", 2), ("stft_box", 4))
    }
    outputs["pre_box"] = [torch.zeros(1, rows * columns, 4) for rows, columns in SIZES]
    found = loss.DetectionLoss()(outputs, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert found["boxes"] == 0 and found["stft_boxes"] == 0 and found["classes"] > 0
    found["total"].backward()


def test_a_detector_learns_a_box() -> None:
    torch.manual_seed(0)
    network = Detector(out_channels=32, embed_dim=32, depth=1, num_heads=2, img_size=64, drop_path_rate=0.0).train()
    frames = torch.randn(3, 3, 64, 96)
    boxes, kinds = torch.tensor([[16.0, 8, 56, 52]]), torch.tensor([2])
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    totals = []
    for _ in range(40):
        outputs = network(frames)
        terms = loss.DetectionLoss()(outputs, boxes, kinds)
        optimiser.zero_grad()
        terms["total"].backward()
        optimiser.step()
        totals.append(terms["total"].item())
    assert totals[-1] < 0.5 * totals[0]
    assert network.rpn.head.dcn_cls_subnet.conv_offset.weight.grad is None  # upstream's never learn
    wanted, _ = loss.assign([(m.shape[2], m.shape[3]) for m in outputs["cls"]], boxes, kinds)
    chances = torch.cat([m[0].flatten(1).T for m in outputs["cls"]]).sigmoid()
    assert chances[wanted > 0, 1].mean() > 3 * chances[wanted == 0, 1].mean()
    best = torch.cat([m[0] for m in outputs["pre_box"]])[wanted > 0]
    assert float(loss.iou(best, boxes).mean()) > 0.5
