"""Names of the classes of a user's own weights, and probabilities out of logits."""

from __future__ import annotations

import numpy as np
import pytest

from omlab.cards import LabelCard
from omlab.errors import UsageError
from omlab.results import Classification
from omlab.results.naming import class_names


def test_given_names_win_over_the_cards_and_these_over_numbers() -> None:
    labels = [LabelCard(value=1, name="polyp")]
    assert class_names(2) == ("class 0", "class 1")
    assert class_names(2, labels) == ("class 0", "polyp")
    assert class_names(2, labels, "normal, tumour") == ("normal", "tumour")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("a,b,c", "3 names are given, the network tells 2 classes apart"),
        ("a,", "empty or there twice"),
        ("a,a", "empty or there twice"),
    ],
)
def test_names_that_do_not_fit_are_refused(given: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        class_names(2, given=given)


def test_soft_max_of_great_logits() -> None:
    found = Classification.of_logits(np.array([1000.0, 1000.0 + np.log(3), -1000.0], np.float32), ("a", "b", "c"))
    np.testing.assert_allclose(found.probabilities, [0.25, 0.75, 0.0], atol=1e-4)
    assert found.probabilities.dtype == np.float32
    assert found.best == "b"
