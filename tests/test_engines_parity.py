"""The figures of the parity gate, on tensors whose answers are known by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from omlab.engines.base import EngineInfo
from omlab.engines.parity import ParityRecord, compare, compare_output
from omlab.graphs import Graph, Judge, TensorSpec, Tolerance
from omlab.vocabulary import Precision


def graph(judge, **tolerance):
    spec = TensorSpec("y", "float32", ("n",))
    tolerances = {Precision.FLOAT32: Tolerance(**tolerance)} if tolerance else {}
    return Graph(name="g", inputs=(spec,), outputs=(spec,), judge=judge, tolerances=tolerances)


def judged(judge, expected, found, **tolerance):
    a, b = np.asarray(expected, np.float32), np.asarray(found, np.float32)
    return compare_output(graph(judge, **tolerance), "y", Precision.FLOAT32, a, b)


def test_labels_count_flips_and_overlap():
    expected = np.zeros((1, 2, 10, 10), np.float32)
    expected[0, 1, :5] = 1.0  # 50 of 100 are class 1
    found = expected.copy()
    found[0, 1, 0, :2] = -1.0  # two of them turn to class 0
    row = judged(Judge.LABELS, expected, found)
    assert row.flips_ppm == pytest.approx(2e4)
    assert row.dice == pytest.approx(2 * 48 / (50 + 48))
    assert not row.admitted and "flips_ppm 20000, at most 100 is admitted" in row.why_not
    assert row.deviation.size == 2.0 and row.deviation.index == (0, 1, 0, 0)
    assert judged(Judge.LABELS, expected, expected * 3 + 0.1).admitted  # other scores, same labels


def test_a_single_channel_is_judged_by_sign():
    expected = np.array([[[-1.0, 2.0, 3.0, -4.0]]])
    row = judged(Judge.LABELS, expected, -expected)
    assert row.flips_ppm == 1e6 and row.dice == 0.0
    assert judged(Judge.LABELS, expected, expected * 0.01).admitted


def test_probabilities_are_cut_at_a_half():
    row = judged(Judge.PROBABILITY, [0.2, 0.6, 0.9, 0.4], [0.49, 0.51, 0.7, 0.51])
    assert row.flips_ppm == 250_000 and row.dice == pytest.approx(2 * 2 / 5)
    assert judged(Judge.PROBABILITY, [0.2, 0.3], [0.1, 0.4]).dice == 1.0  # nothing labelled in either


def test_masks_that_overlap_are_judged_one_by_one():
    expected = np.array([[[-1.0, 2.0], [3.0, -4.0]], [[1.0, 1.0], [-1.0, -1.0]]])[None]  # two masks on axis 1
    assert judged(Judge.MASKS, expected, expected * 0.01).admitted
    row = judged(Judge.MASKS, expected, np.where(expected == 3, -0.1, expected))
    assert row.flips_ppm == pytest.approx(1e6 / 8) and row.dice == pytest.approx(2 * 3 / 7)


def test_embeddings():
    row = judged(Judge.EMBEDDING, [[3.0, 4.0], [1.0, 0.0]], [[3.0, 4.0], [0.0, 1.0]])
    assert row.cosine == pytest.approx(0.0)
    assert row.relative == pytest.approx(np.sqrt(2 / 26))
    assert not row.admitted
    assert judged(Judge.EMBEDDING, [[0.0, 0.0]], [[0.0, 0.0]]).admitted
    assert not judged(Judge.EMBEDDING, [[0.0, 0.0]], [[0.0, 1e-3]]).admitted


def test_logits_are_soft_maxed():
    row = judged(Judge.LOGITS, [[0.0, 0.0]], [[np.log(3.0), 0.0]])
    assert row.gap == pytest.approx(0.25, abs=1e-6)
    assert judged(Judge.LOGITS, [[1.0, 2.0]], [[101.0, 102.0]]).admitted  # a common shift changes nothing


def test_a_single_logit_is_not_soft_maxed_to_one():
    row = judged(Judge.LOGITS, [[0.0]], [[np.log(3.0)]])
    assert row.gap == pytest.approx(0.25, abs=1e-6)
    assert not row.admitted


def test_values():
    assert judged(Judge.VALUES, [3.0, 4.0], [3.0, 4.05]).relative == pytest.approx(0.01, rel=1e-3)
    assert judged(Judge.VALUES, [0.0, 0.0], [0.0, 1e-9]).relative == np.inf
    assert judged(Judge.VALUES, [0.0], [0.0]).admitted


@pytest.mark.parametrize("judge", list(Judge))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_admitted(judge, bad):
    expected = np.ones((1, 2, 3), np.float32)
    found = expected.copy()
    found[0, 1, 2] = bad
    row = judged(judge, expected, found, relative=np.inf, flips_ppm=1e9, gap=np.inf, cosine=-1, dice=0)
    assert not row.admitted
    assert "the engine gave 1 numbers that are not finite, the first at [0, 1, 2]" in row.why_not
    assert not judged(judge, found, expected, relative=np.inf).admitted


def test_shape_and_dtype_must_agree():
    assert "shape (2,), the reference has (3,)" in judged(Judge.VALUES, [1, 2, 3], [1, 2]).why_not
    row = compare_output(graph(Judge.VALUES), "y", Precision.FLOAT32, np.zeros(2, np.float32), np.zeros(2))
    assert "dtype float64" in row.why_not
    assert "empty" in judged(Judge.VALUES, [], []).why_not


def test_a_tolerance_that_judges_nothing_admits_nothing():
    row = judged(Judge.VALUES, [1.0], [1.0], cosine=0.5)
    assert not row.admitted and "judges nothing" in row.why_not


class Replay:
    info = EngineInfo("double", "1", Precision.FLOAT32, "cpu")

    def __init__(self, *answers):
        self.answers = list(answers)

    def __call__(self, inputs):
        return {"y": np.asarray(self.answers.pop(0), np.float32)}


def test_the_worst_of_all_examples_counts_and_the_first_failure_is_kept():
    inputs = {"y": np.zeros(2, np.float32)}
    one = {"y": np.array([3.0, 4.0], np.float32)}
    record, kept = compare(Replay([3, 4], [3, 4.5], [3, 4.1]), graph(Judge.VALUES), [(inputs, one)] * 3)
    (row,) = record.outputs
    assert record.examples == 3 and not record.admitted
    assert row.relative == pytest.approx(0.1) and row.deviation.example == 1 and row.deviation.index == (1,)
    np.testing.assert_array_equal(kept["engine/y"], np.array([3, 4.5], np.float32))
    assert set(kept) == {"input/y", "reference/y", "engine/y"}
    record, kept = compare(Replay([3, 4]), graph(Judge.VALUES), [(inputs, one)])
    assert record.admitted and kept is None


def test_no_example_admits_nothing():
    record, _ = compare(Replay(), graph(Judge.VALUES), [])
    assert not record.admitted and record.why_not == "no example was compared"


def test_records_survive_json_and_are_judged_again():
    for found in ([3.0, 4.05], [np.nan, 4.0]):
        inputs = {"y": np.zeros(2, np.float32)}
        expected = {"y": np.array([3.0, 4.0], np.float32)}
        record, _ = compare(Replay(found), graph(Judge.VALUES), [(inputs, expected)])
        text = json.dumps(record.as_json(), allow_nan=False)
        again = ParityRecord.from_json(json.loads(text))
        assert not again.admitted and again.why_not == record.why_not
        assert again.judged(graph(Judge.VALUES, relative=0.5)).admitted is bool(np.isfinite(found[0]))
