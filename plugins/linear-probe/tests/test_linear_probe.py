"""The fit behind the head; whole adaptations are tested with the other adapters."""

from __future__ import annotations

import numpy as np
import pytest

from omlab_linear_probe.adapter import NEVER, STRENGTHS, _Fit


@pytest.fixture
def clouds():
    """Three classes along two of six directions."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 90)
    centres = np.array([[2, 0], [-2, 0], [0, 3]])
    vectors = generator.standard_normal((90, 6))
    vectors[:, :2] += centres[labels]
    return (vectors * [5, 1, 1, 1, 1, 0.01] + 7).astype(np.float32), np.eye(3, dtype=np.float32)[labels]


def test_one_affine_map_holds_scaling_and_regression(clouds):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    vectors, targets = clouds
    weight, bias = _Fit(True, 0)(vectors, targets, 1.0)
    expected = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000)).fit(vectors, targets.argmax(1))
    np.testing.assert_allclose(vectors @ weight.T + bias, expected.decision_function(vectors), atol=1e-3)


def test_two_classes_of_three_and_one_never_seen(clouds):
    vectors, targets = clouds
    some = targets[:, 2] == 0
    weight, bias = _Fit(True, 0)(vectors[some], targets[some], 1.0)
    assert (weight[2] == 0).all()
    assert bias[2] == NEVER
    assert ((vectors[some] @ weight.T + bias).argmax(1) == targets[some].argmax(1)).mean() > 0.9


def test_classes_that_do_not_exclude_each_other(clouds):
    vectors, targets = clouds
    both = np.stack([targets[:, 0], targets[:, 0] + targets[:, 1], np.ones(90)], 1).astype(np.float32)
    weight, bias = _Fit(False, 0)(vectors, both, 1.0)
    assert (((vectors @ weight.T + bias) > 0) == (both > 0)).mean() > 0.9
    assert bias[2] == -NEVER


def test_the_strength_is_chosen(clouds):
    vectors, targets = clouds
    fit = _Fit(True, 0)
    assert fit.choose(vectors, targets, (vectors, targets)) in STRENGTHS
    assert fit.choose(vectors, targets, None) in STRENGTHS
    assert fit.choose(vectors[:2], np.eye(3, dtype=np.float32)[:2], None) == 1.0  # nothing to validate on
    folds = fit._folds(targets)
    assert sorted(np.concatenate(folds).tolist()) == list(range(90))
    assert all(targets[fold].any(axis=0).all() for fold in folds)
