"""Neighbours and prototypes: what they compute, by hand; whole adaptations are tested with the other adapters."""

from __future__ import annotations

import numpy as np
import pytest

from omlab.cards import AdapterCard
from omlab.embeddings import Embedded
from omlab.errors import UsageError
from omlab.labelled import Split, Splits
from omlab_nearest.adapter import Neighbours, Prototypes
from omlab_nearest.model import logits_of_shares, shares, unit

CARD = AdapterCard(name="nearest", summary="s", base_outputs=["embedding"], task=["classification"])


def _found(vectors, targets, val=None, exclusive=True):
    def split(rows):
        return Split(items=(None,) * len(rows), targets=np.asarray(rows, np.float32))

    rows = {"train": np.asarray(vectors, np.float32)} | ({"val": np.asarray(val[0], np.float32)} if val else {})
    splits = Splits(
        train=split(targets), val=split(val[1] if val else np.zeros((0, 2))), test=split(np.zeros((0, 2))),
        classes=("a", "b"), exclusive=exclusive,
    )  # fmt: skip
    return Embedded(splits=splits, vectors=rows, failed={}, computed=0, cached=0), rows


def test_votes_are_weighted_by_similarity():
    similarity = np.array([[0.9, 0.8, 0.1, -1.0]], np.float32)
    targets = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    assert shares(similarity, targets, 1, 0.1)[0].tolist() == [1, 0]
    first, second = np.exp(0.9 / 0.1), np.exp(0.8 / 0.1)
    assert shares(similarity, targets, 2, 0.1)[0] == pytest.approx(
        [first / (first + second), second / (first + second)]
    )
    assert shares(similarity, targets, 4, 1e6)[0] == pytest.approx([0.25, 0.75], abs=1e-4)


def test_logits_give_the_shares_back():
    found = np.array([[0.2, 0.8], [1.0, 0.0]], np.float32)
    exclusive = np.exp(logits_of_shares(found, True))
    assert exclusive == pytest.approx(found, abs=1e-5)
    assert 1 / (1 + np.exp(-logits_of_shares(found, False))) == pytest.approx(found, abs=1e-5)


def test_k_is_chosen_on_validation():
    generator = np.random.default_rng(0)
    targets = np.eye(2, dtype=np.float32)[generator.integers(0, 2, 200)]
    signal = np.where(targets[:, :1] > 0, 1.0, -1.0) + generator.normal(0, 1.5, (200, 1))
    vectors = unit(np.concatenate([signal, generator.normal(0, 1, (200, 3))], 1).astype(np.float32), np.zeros(4))
    found, rows = _found(vectors[:120], targets[:120], (vectors[120:], targets[120:]))
    _, chosen, _ = Neighbours(CARD).fit(found, rows, {"k": None, "temperature": 0.07})
    assert chosen["k"] > 1  # one neighbour is not enough in such noise
    with pytest.raises(UsageError, match="k lies between 1 and the 120 training cases, found 121"):
        Neighbours(CARD).fit(found, rows, {"k": 121, "temperature": 0.07})


def test_prototypes_are_unit_means_and_an_unseen_class_is_never_called():
    found, rows = _found([[1, 0], [0, 1]], [[1, 0], [1, 0]])
    tensors, _, logits = Prototypes(CARD).fit(found, rows, {"temperature": 0.5})
    assert tensors["centres"][0] == pytest.approx([0.5**0.5, 0.5**0.5])
    assert logits(np.array([[0.0, 1.0]], np.float32))[0] == pytest.approx([0.5**0.5 / 0.5, -1e4])


def test_prototypes_of_several_classes_at_once_part_at_one_half():
    vectors, targets = [[1, 0], [0, 1], [-1, 0]], [[1, 0], [1, 1], [0, 0]]
    found, rows = _found(vectors, targets, exclusive=False)
    tensors, _, logits = Prototypes(CARD).fit(found, rows, {"temperature": None})
    given = logits(rows["train"])
    assert ((given > 0) == (np.array(targets) > 0)).all()
    folded = rows["train"] @ tensors["centres"].T / tensors["temperature"] + tensors["bias"]
    assert folded == pytest.approx(given, abs=1e-5)


def test_networks_are_the_same_as_the_heads():
    torch = pytest.importorskip("torch")
    from omlab_nearest.network import Neighbours as Voting
    from omlab_nearest.network import Prototypes as Centres

    generator = np.random.default_rng(1)
    bank = unit(generator.standard_normal((30, 8)).astype(np.float32), np.zeros(8, np.float32))
    targets = np.eye(3, dtype=np.float32)[generator.integers(0, 3, 30)]
    mean = generator.standard_normal(8).astype(np.float32)
    given = generator.standard_normal((5, 8)).astype(np.float32)
    held = {"bank": bank, "targets": targets, "mean": mean, "k": np.array([7]), "temperature": np.array([0.1])}
    expected = logits_of_shares(shares(unit(given, mean) @ bank.T, targets, 7, 0.1), True)
    assert Voting(held, True)(torch.from_numpy(given)).numpy() == pytest.approx(expected, abs=1e-4)
    held = {
        "centres": bank[:3], "mean": mean, "bias": np.zeros(3, np.float32), "temperature": np.array([0.1], np.float32),
    }  # fmt: skip
    assert Centres(held)(torch.from_numpy(given)).numpy() == pytest.approx(
        unit(given, mean) @ bank[:3].T / 0.1, abs=1e-4
    )
