"""Few-shot drawing, splits without leaks, and the figures of a classifier."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from omlab.cards import DatasetCard, Licence
from omlab.cases import Image
from omlab.dataset import BoundDataset, Dataset, Item
from omlab.embeddings import Memory
from omlab.errors import InputError
from omlab.labelled import area, case_digest, figures, gather, without_duplicates
from omlab.results import Classification
from omlab.shots import draw


class _Listed(Dataset):
    """Cases as they are listed: (name, split, class index or row, patient)."""

    def __init__(self, rows, classes=("a", "b"), splits=("train", "val", "test"), exclusive=True):
        card = DatasetCard(
            name="listed", summary="s", modality=["any"], task=["classification"], inputs=["image"], splits=splits,
            licence=Licence(spdx="MIT"),
        )  # fmt: skip
        super().__init__(card)
        self.rows, self.names, self.exclusive = rows, classes, exclusive

    def classes(self, root=None):
        return self.names

    def items(self, files, *, split=None, root=None):
        for name, where, label, group in self.rows:
            if split in (None, where):
                row = np.eye(len(self.names), dtype=np.float32)[label] if np.ndim(label) == 0 else np.float32(label)
                truth = Classification(classes=self.names, probabilities=row, exclusive=self.exclusive)
                yield Item(name=name, split=where, read=None, reference=lambda truth=truth: truth, group=group)


def _bound(*args, **kwargs):
    return BoundDataset(dataset=_Listed(*args, **kwargs), files={})


def test_shots_are_drawn_by_class_and_seed():
    targets = np.eye(3)[[0] * 10 + [1] * 10 + [2] * 2]
    chosen, remarks = draw(targets, 4, 7, classes=("x", "y", "z"))
    assert targets[chosen].sum(axis=0).tolist() == [4, 4, 2]
    assert chosen == sorted(set(chosen))
    assert remarks == ["'z' has 2 training cases, fewer than 4 shots: all were taken"]
    assert draw(targets, 4, 7)[0] == chosen
    assert draw(targets, 4, 8)[0] != chosen
    with pytest.raises(ValueError, match="at least one shot"):
        draw(targets, 0, 7)


def test_a_shot_is_a_patient_where_they_are_known():
    targets = np.eye(2)[[0, 0, 0, 1, 1, 1, 0, 1]]
    groups = ["p", "p", "q", "p", "r", "r", "", ""]
    chosen, remarks = draw(targets, 2, 0, groups=groups)
    assert not remarks
    for label in (0, 1):
        own = [i for i in chosen if targets[i, label]]
        drawn = {groups[i] or str(i) for i in own}
        assert len(drawn) == 2
        every = [i for i in range(8) if targets[i, label] and (groups[i] or str(i)) in drawn]
        assert own == every  # all of a patient's cases of the class
    assert draw(targets, 4, 0, groups=groups)[1] == [
        f"'class {n}' has 3 training patients, fewer than 4 shots: all were taken" for n in (0, 1)
    ]


def test_a_patient_or_a_name_in_two_splits_is_refused():
    rows = [("1", "train", 0, "p1"), ("2", "train", 1, "p2"), ("3", "test", 0, "p1")]
    with pytest.raises(InputError, match="patient 'p1' is in the splits train and test"):
        gather(_bound(rows))
    rows[2] = ("1", "val", 0, "")
    with pytest.raises(InputError, match="case '1' is in the splits train and val"):
        gather(_bound(rows))


def test_without_val_a_fifth_is_held_back_and_no_patient_torn():
    rows = [(str(n), "train", n % 2, f"p{n // 4}") for n in range(80)]
    splits = gather(_bound(rows, splits=("train",)), seed=3)
    groups = [{item.group for item in split.items} for split in (splits.train, splits.val)]
    assert not groups[0] & groups[1]
    assert len(splits.val) == 16
    assert "16 of 80 training cases were held back (seed 3)" in splits.remarks[0]
    again = gather(_bound(rows, splits=("train",)), seed=3)
    assert [i.name for i in again.val.items] == [i.name for i in splits.val.items]
    everything = gather(_bound([(n, "all", c, g) for n, _, c, g in rows], splits=()), shots=2)
    assert len(everything.val) == 0
    assert everything.train.targets.sum() == 8  # two patients a class, two images each


def test_several_classes_at_once_and_none():
    rows = [("1", "train", (1, 1), ""), ("2", "train", (0, 0), ""), ("3", "val", (0, 1), ""), ("4", "test", (1, 0), "")]
    splits = gather(_bound(rows, exclusive=False))
    assert not splits.exclusive
    assert splits.train.targets.tolist() == [[1, 1], [0, 0]]
    with pytest.raises(InputError, match="has no training case with a class"):
        gather(_bound(rows[2:], exclusive=False))


def test_equal_content_is_refused_or_dropped():
    rows = [
        ("1", "train", 0, ""),
        ("2", "train", 1, ""),
        ("3", "train", 1, ""),
        ("4", "val", 0, ""),
        ("5", "test", 1, ""),
    ]
    splits = gather(_bound(rows))
    digests = {"train": ["x", "y", "z"], "val": ["y"], "test": ["z"]}
    with pytest.raises(InputError, match=r"2 train cases are also in the split val .* first '2', which is '4'"):
        without_duplicates(splits, digests, "refuse")
    left, keep = without_duplicates(splits, digests, "drop")
    assert [item.name for item in left.train.items] == ["1"]
    assert keep == {"train": [0], "val": [0], "test": [0]}


def test_the_digest_of_a_case_is_of_what_a_model_sees():
    image = Image(name="a", pixels=np.zeros((3, 4), np.uint8))
    assert case_digest(image) == case_digest(attrs.evolve(image, name="b"))
    assert case_digest(image) != case_digest(attrs.evolve(image, pixels=np.zeros((4, 3), np.uint8)))
    assert case_digest(image) != case_digest(attrs.evolve(image, bits=7))


def test_embeddings_of_two_processes_are_joined_and_what_is_damaged_is_left_out(tmp_path):
    first, second = Memory(tmp_path), Memory(tmp_path)
    first.put("aa" * 32, np.float32([1, 2]))
    second.put("bb" * 32, np.float32([3, 4]))
    first.write()
    second.write()
    (tmp_path / ".1-half.npz").write_bytes(b"being written")
    (tmp_path / "damaged.npz").write_bytes(b"PK")
    third = Memory(tmp_path)
    assert third.get("aa" * 32).tolist() == [1, 2]
    assert third.get("bb" * 32).tolist() == [3, 4]
    assert third.get("cc" * 32) is None
    assert sorted(p.name[0] for p in tmp_path.iterdir())[0] == "."  # another process's work is left alone
    assert not (tmp_path / "damaged.npz").exists()


def test_figures_agree_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 200)
    probabilities = generator.dirichlet([1, 1, 1], 200).round(1)  # many equal scores
    found = figures(probabilities, np.eye(3)[labels])
    areas = [sklearn.roc_auc_score(labels == c, probabilities[:, c]) for c in range(3)]
    assert found["auc"] == pytest.approx(np.mean(areas))
    assert found["accuracy"] == sklearn.accuracy_score(labels, probabilities.argmax(1))
    assert area(probabilities[:, 0], np.ones(200, bool)) is None
    assert "auc" not in figures(probabilities, np.eye(3)[np.zeros(200, int)])
