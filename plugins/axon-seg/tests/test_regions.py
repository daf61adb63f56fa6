"""Brain regions: slices and back, the mean teacher, the training, by hand and on phantoms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from omlab.errors import InputError  # noqa: E402
from omlab_axon_seg import regions  # noqa: E402
from omlab_axon_seg.ceanet import CEANet  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402


class Small(torch.nn.Module):
    """Stands in for CEA-Net, whose least slice is 192 pixels wide."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = torch.nn.Conv2d(1, 8, 5, padding=2), torch.nn.BatchNorm2d(8)
        self.last = torch.nn.Conv2d(8, 2, 5, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


def _brain(seed: int, shape: tuple[int, int, int] = (20, 24, 28)) -> tuple[np.ndarray, np.ndarray]:
    """A dim ellipsoid with a bright and a dark ball in it, and where these are."""
    at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    move = np.random.default_rng(seed).integers(-1, 2, 3)
    labels = np.zeros(shape, np.uint8)
    for value, middle in ((1, (10, 9, 9)), (2, (10, 14, 19))):
        labels[((at - np.array(middle) - move) ** 2).sum(-1) < 20] = value
    inside = (((at - np.array(shape) / 2) / (np.array(shape) / 2)) ** 2).sum(-1) < 1
    brain = 800 * inside + 900 * (labels == 1) - 500 * (labels == 2)
    return brain + np.random.default_rng(seed).normal(0, 40, shape), labels


@pytest.mark.parametrize("view", [regions.View(0, (24, 28)), regions.View(1, (20, 28)), regions.View(2, (20, 24))])
def test_slices_and_back(view: regions.View) -> None:
    brain, labels = _brain(0)
    slices = view.slices(brain)
    assert slices.shape == (brain.shape[view.axis], 1, *view.size)
    np.testing.assert_allclose(slices.min((1, 2, 3)), 0)
    np.testing.assert_allclose(slices.max((1, 2, 3)), 1)
    plane = np.take(brain, 7, view.axis)
    np.testing.assert_allclose(slices[7, 0], (plane - plane.min()) / np.ptp(plane), atol=1e-6)
    masks = view.masks(labels, 2)
    back = view.restacked(torch.from_numpy(masks), labels.shape).numpy()
    assert np.array_equal(back[0], labels == 1) and np.array_equal(back[1], labels == 2)
    assert np.array_equal(regions.labels_of(back), labels)
    # On another grid, and by slices of another size, the regions stay where they are.
    wide = regions.View(view.axis, (32, 32))
    far = wide.restacked(torch.from_numpy(wide.masks(labels, 2)), (40, 48, 56)).numpy()
    assert regions.dice(regions.labels_of(far, 0.5)[::2, ::2, ::2], labels, 2) == pytest.approx([1, 1], abs=0.2)


def test_published_views_of_the_atlas() -> None:
    atlas = np.zeros(regions.ATLAS, np.uint8)
    assert regions.CORONAL.slices(atlas[:, :2]).shape == (2, 1, 320, 448)
    assert regions.HORIZONTAL.slices(atlas[:2]).shape == (2, 1, 512, 448)
    assert not regions.HORIZONTAL.slices(np.full((1, 528, 456), 7)).any()
    for bad in (np.zeros((3, 3)), np.full((2, 2, 2), np.nan), np.zeros((0, 2, 2))):
        with pytest.raises(InputError, match="a brain is"):
            regions.CORONAL.slices(bad)


def test_the_second_region_wins() -> None:
    given = np.array([[0.9, 0.9, 0.7, 0.1], [0.1, 0.8, 0.71, 0.7]])
    assert regions.labels_of(given).tolist() == [1, 2, 2, 0]


def test_dice_by_hand() -> None:
    truth = np.array([1, 1, 2, 0]).reshape(1, 2, 2)
    assert regions.dice(np.array([1, 0, 2, 2]).reshape(1, 2, 2), truth, 2) == pytest.approx([2 / 3, 2 / 3])
    found = regions.dice(truth, truth, 3)
    assert found[:2] == [1, 1] and np.isnan(found[2])
    with pytest.raises(ValueError, match="cannot be compared"):
        regions.dice(truth, truth[0], 2)


def test_objective_by_hand() -> None:
    random = torch.Generator().manual_seed(0)
    slices, other = (torch.rand(2, 1, 12, 12, generator=random) for _ in range(2))
    masks = (torch.rand(2, 2, 12, 12, generator=random) > 0.7).float()
    objective = regions.MeanTeacher(seed_module(Small())).eval()
    logits = objective.student(slices).double()
    p = torch.sigmoid(logits)
    expected = -(50 * masks * p.log() + (1 - masks) * (1 - p).log()).mean()
    torch.testing.assert_close(objective.supervised(slices, masks).double(), expected, atol=1e-4, rtol=1e-5)
    # A symmetric slice of a symmetric student would agree; this one does not, and the teacher gets no gradient.
    agreed = objective.consistency(other)
    flipped = torch.sigmoid(objective.student(other.flip(-1)))
    torch.testing.assert_close(agreed, ((flipped - torch.sigmoid(objective.teacher(other)).flip(-1)) ** 2).mean())
    assert agreed.item() > 1e-6
    total = objective(slices, masks, other)
    torch.testing.assert_close(total, objective.supervised(slices, masks) + agreed)
    total.backward()
    assert not list(objective.teacher.parameters()) and objective.student.first.weight.grad is not None


def test_teacher_is_a_running_mean() -> None:
    objective = regions.MeanTeacher(seed_module(Small())).train()
    assert objective.student.training and not objective.teacher.training
    before = objective.teacher.first.weight.clone()
    with torch.no_grad():
        objective.student.first.weight += 1
        objective.student.norm.running_mean += 3
    objective.follow()
    torch.testing.assert_close(objective.teacher.first.weight, before + 0.5)
    objective.follow()
    torch.testing.assert_close(objective.teacher.first.weight, before + 0.75)
    torch.testing.assert_close(objective.teacher.norm.running_mean, objective.student.norm.running_mean)


def test_agreement_of_two_views() -> None:
    _, labels = _brain(0)
    first, second = (
        torch.from_numpy(view.masks(labels, 2)).requires_grad_() for view in (regions.CORONAL, regions.HORIZONTAL)
    )
    same = regions.agreement(first, second, labels.shape)
    assert not same.requires_grad and float(same) < 0.02
    with torch.no_grad():
        assert float(regions.agreement(first, second.flip(1), labels.shape)) > 2 * float(same)
    regions.agreement(first, second, labels.shape, detached=False).backward()
    assert first.grad is not None and second.grad is not None


def test_recipe() -> None:
    made = regions.optimiser(Small())
    group = made.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-4, 0.9, 1e-6)
    assert [regions.schedule(epoch) for epoch in (0, 29.9, 30, 65)] == pytest.approx([1e-4, 1e-4, 1e-5, 1e-6])
    masks = np.zeros((20, 2, 4, 4), np.float32)
    numbered = np.arange(20, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 4, 4), np.float32)
    slices = regions.Slices(labelled=numbered, masks=masks, unlabelled=numbered[:5])
    assert len(slices) == 2
    first, second = (slices.batch(3, index) for index in range(2))
    assert first[0].shape == (8, 1, 4, 4) and first[1].shape == (8, 2, 4, 4) and first[2].shape == (8, 1, 4, 4)
    shown = torch.cat([first[0], second[0]])[:, 0, 0, 0].tolist()
    assert len(set(shown)) == 16 and shown != sorted(shown)
    assert set(first[2][:, 0, 0, 0].tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(slices.batch(3, 1)[0], second[0]) and not torch.equal(slices.batch(4, 1)[0], second[0])


def test_training_finds_regions_and_goes_on(tmp_path: Path) -> None:
    """An atlas with regions and a brain without teach a network, which finds them in a third brain; an interrupted
    training ends with the same weights."""
    view = regions.View(0, (24, 28))
    (atlas, truth), (other, _), (third, wanted) = (_brain(seed) for seed in range(3))
    slices = regions.Slices(
        labelled=view.slices(atlas), masks=view.masks(truth, 2), unlabelled=view.slices(2 * other), sizes=(4, 4)
    )
    torch.manual_seed(0)
    begun = Small().state_dict()

    def trained(epochs: int, **more: object) -> regions.MeanTeacher:
        student = Small()
        student.load_state_dict(begun)
        return regions.train(student, slices, epochs=epochs, rate=2e-3, device="cpu", **more)[0]

    whole = trained(60)
    found = regions.predict(whole.student, third, view, batch=6)
    scores = regions.dice(regions.labels_of(found), wanted, 2)
    assert found.shape == (2, *third.shape) and min(scores) > 0.6, scores
    assert regions.predict(whole.student, third, view, shape=(10, 12, 14)).shape == (2, 10, 12, 14)
    assert not torch.equal(whole.teacher.first.weight, whole.student.first.weight)

    class Stop(Exception):
        pass

    def stopping(progress: object) -> None:
        if getattr(progress, "done", 0) >= 12:
            raise Stop

    with pytest.raises(Stop):
        trained(6, folder=tmp_path / "state", listener=stopping)
    again = trained(6, folder=tmp_path / "state")
    for name, tensor in trained(6).state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_readme_learns_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the README as it is written, on a small network and view."""
    monkeypatch.setattr(regions, "HORIZONTAL", regions.View(0, (24, 28)))
    monkeypatch.setattr("omlab_axon_seg.ceanet.CEANet", Small)
    (block,) = (
        part.split("```")[0]
        for part in (Path(__file__).parent.parent / "README.md").read_text("utf-8").split("```python\n")[1:]
        if "regions.train" in part
    )
    defined: dict[str, object] = {}
    exec(block, defined)
    (atlas, truth), (brain, _) = (_brain(seed) for seed in range(2))
    found = defined["learnt"](atlas, truth, brain, epochs=1, device="cpu")
    assert found.shape == brain.shape and found.dtype == np.uint8 and found.max() <= 2


def test_what_cannot_be_learnt_from() -> None:
    slices = np.zeros((4, 1, 8, 8), np.float32)
    for labelled, masks, unlabelled in ((slices[:0], slices[:0], slices), (slices, slices[:3], slices)):
        with pytest.raises(InputError, match="takes slices with a mask each"):
            regions.train(Small(), regions.Slices(labelled=labelled, masks=masks, unlabelled=unlabelled))


def test_ceanet_learns_a_slice() -> None:
    """The published network through the objective: the loss of a batch falls."""
    torch.manual_seed(0)
    objective = regions.MeanTeacher(CEANet()).train()
    random = torch.Generator().manual_seed(1)
    slices = torch.rand(2, 1, 192, 192, generator=random)
    masks = torch.zeros(2, 2, 192, 192)
    masks[:, 0, 60:100, 40:90], masks[:, 1, 100:140, 110:150] = 1, 1
    slices += masks[:, :1] - masks[:, 1:]
    steps, values = regions.optimiser(objective), []
    for _ in range(3):
        loss = objective(slices, masks, slices)
        steps.zero_grad()
        loss.backward()
        steps.step()
        objective.follow()
        values.append(float(loss.detach()))
    assert values[-1] < 0.9 * values[0], values
