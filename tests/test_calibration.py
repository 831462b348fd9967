"""Calibration: numbers by hand, ranges, the table and the picture."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgym.calibration import (
    as_confidence,
    brier_score,
    expected_calibration_error,
    log_loss,
    reliability,
    reliability_diagram,
    reliability_table,
    score_pairs,
)
from llmgym.intervals import wilson

P = [0.1, 0.2, 0.45, 0.8, 0.9, 1.0]
Y = [0, 1, 0, 1, 1, 1]


def test_bins_by_hand():
    low, middle, high = reliability(P, Y, bins=3)
    assert (low.count, low.low, low.high, low.frequency) == (2, 0.0, pytest.approx(1 / 3), 0.5)
    assert low.probability == pytest.approx(0.15) and low.interval == wilson(1, 2)
    assert (middle.count, middle.frequency, middle.probability) == (1, 0.0, 0.45)
    assert (high.count, high.frequency) == (3, 1.0) and high.probability == pytest.approx(0.9)
    error = expected_calibration_error(P, Y, bins=3)
    assert error == pytest.approx((2 * abs(0.5 - 0.15) + 0.45 + 3 * abs(1 - 0.9)) / 6)


def test_an_edge_belongs_to_the_bin_above_and_one_to_the_last():
    assert [b.count for b in reliability([0.0, 0.25, 0.5, 0.75, 1.0], [0] * 5, bins=4)] == [1, 1, 1, 2]
    assert [b.count for b in reliability([0.5, 0.6, 0.75, 1.0], [0] * 4, bins=2, low=0.5)] == [2, 2]


def test_an_empty_bin_has_no_share():
    empty = reliability([0.9], [1], bins=2)[0]
    assert empty.count == 0 and math.isnan(empty.probability) and math.isnan(empty.frequency)
    assert empty.interval == (0.0, 1.0)


def test_scores_by_hand():
    assert brier_score([0.5, 0.5], [0, 1]) == 0.25
    assert brier_score(P, Y) == pytest.approx((0.01 + 0.64 + 0.2025 + 0.04 + 0.01 + 0) / 6)
    assert log_loss([0.5, 0.5], [0, 1]) == pytest.approx(math.log(2))
    expected = -sum(math.log(p if y else 1 - p) for p, y in zip(P, Y, strict=True)) / 6
    assert log_loss(P, Y) == pytest.approx(expected)
    assert log_loss([0.0, 1.0], [0, 1]) == 0.0
    assert log_loss([1.0], [0]) == math.inf


def test_predictions_that_come_true_as_often_as_they_say_are_calibrated():
    p = np.repeat([0.2, 0.6, 0.9], 10)
    y = np.concatenate([np.arange(10) < 10 * q for q in (0.2, 0.6, 0.9)])
    assert expected_calibration_error(p, y) == pytest.approx(0.0, abs=1e-12)
    assert expected_calibration_error(np.ones(10), np.arange(10) < 6) == pytest.approx(0.4)  # certain, right six times


def test_perfect_predictions_of_a_large_sample_have_a_small_error():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    assert expected_calibration_error(p, rng.random(20_000) < p) < 0.012
    small = np.mean([expected_calibration_error(q, rng.random(200) < q) for q in rng.random((300, 200))])
    assert small == pytest.approx(math.sqrt(10 / (10 * 200)), rel=0.3)  # the bias that the docstring names


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=40))
def test_confidence_is_that_of_the_predicted_winner(margins):
    confidence, won = as_confidence(margins)
    assert ((confidence >= 0.5) & (confidence <= 1)).all()
    for margin, c, w in zip(margins, confidence, won, strict=True):
        p = 1 / (1 + math.exp(-margin))
        assert c == pytest.approx(max(p, 1 - p)) and w == (1.0 if margin > 0 else 0.0 if margin < 0 else 0.5)


def test_pairs_by_hand():
    margins = [2.0, -1.0, 0.0, 3.0]
    found = score_pairs(margins)
    p = [1 / (1 + math.exp(-m)) for m in margins]
    assert found["pairs"] == 4 and found["accuracy"] == 2.5 / 4 and found["margin"] == 1.0
    assert (found["accuracy_low"], found["accuracy_high"]) == wilson(2.5, 4)
    assert found["log_loss"] == pytest.approx(-sum(map(math.log, p)) / 4)
    assert found["brier"] == pytest.approx(sum((1 - q) ** 2 for q in p) / 4)
    # Confidences 0.5 (a tie), 0.731, 0.881 and 0.953, each in a bin of its own.
    gaps = [abs(0.5 - p[2]), 1 - p[1], 1 - p[0], 1 - p[3]]
    assert found["ece"] == pytest.approx((gaps[0] + abs(0 - (1 - p[1])) + gaps[2] + gaps[3]) / 4)


def test_swapping_all_pairs_turns_accuracy_round():
    margins = np.random.default_rng(0).normal(1, 2, 50)
    one, two = score_pairs(margins), score_pairs(-margins)
    assert one["accuracy"] == pytest.approx(1 - two["accuracy"]) and one["margin"] == -two["margin"]


def test_margins_beyond_all_numbers_of_a_float_do_not_overflow():
    found = score_pairs([1e4, -1e4])
    assert found["log_loss"] == 5e3 and found["brier"] == 0.5 and found["ece"] == 0.5


@pytest.mark.parametrize("margins", [[], [[1.0]], [math.nan], [math.inf, 1.0]])
def test_margins_that_are_none_are_said(margins):
    with pytest.raises(ValueError, match=r"margins must be finite numbers \[n\], at least one"):
        score_pairs(margins)


@pytest.mark.parametrize(
    ("p", "y", "low", "message"),
    [
        ([], [], 0.0, r"must both be \[n\], got shapes \(0,\) and \(0,\)"),
        ([0.5], [1, 0], 0.0, r"must both be \[n\], got shapes \(1,\) and \(2,\)"),
        ([1.5], [1], 0.0, r"probabilities must be in \[0.0, 1\], got 1.5"),
        ([0.4], [1], 0.5, r"probabilities must be in \[0.5, 1\], got 0.4"),
        ([math.nan], [1], 0.0, r"probabilities must be in \[0.0, 1\], got nan"),
        ([0.5], [2], 0.0, r"outcomes must be in \[0, 1\], got 2.0"),
    ],
)
def test_what_cannot_be_is_said(p, y, low, message):
    with pytest.raises(ValueError, match=message):
        reliability(p, y, low=low)


def test_at_least_one_bin():
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        reliability(P, Y, bins=0)


def test_the_table_leaves_empty_bins_out():
    lines = reliability_table(reliability(P, Y, bins=10)).splitlines()
    assert len(lines) == 2 + 5 and lines[2].startswith("| 10% to 20% | 1 | 10.0% | 0.0% | ")


def test_the_picture_is_written_in_one_step(tmp_path):
    rng = np.random.default_rng(0)
    confidence, won = as_confidence(rng.normal(1.5, 2, 400))
    path = tmp_path / "reliability.png"
    reliability_diagram(reliability(confidence, won, low=0.5), path, title="held-out pairs")
    assert path.read_bytes().startswith(b"\x89PNG") and [p.name for p in tmp_path.iterdir()] == ["reliability.png"]
    reliability_diagram(reliability([0.7], [1]), path)  # a single bin will do
