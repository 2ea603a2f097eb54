"""Intervals and paired differences by resampling, against all possible resamples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from stages.evaluate import bootstrap, word_errors


def every_resample(stats_NK: np.ndarray) -> np.ndarray:
    """`sums_SK` of all N ** N equally likely resamples."""
    items = range(len(stats_NK))
    return np.array([stats_NK[list(drawn)].sum(0) for drawn in itertools.product(items, repeat=len(items))])


def test_an_interval_is_that_of_all_possible_resamples() -> None:
    stats_N2 = np.array([[1.0, 4.0], [0.0, 9.0], [5.0, 7.0]])
    exact_S = word_errors.rate(every_resample(stats_N2))
    found = bootstrap.interval(stats_N2, word_errors.rate, 40_000, seed=0)
    assert found
    assert found.stderr == pytest.approx(exact_S.std(), rel=0.02)
    # with so few items the percentiles are the extremes: one item drawn three times
    assert (found.low, found.high) == (pytest.approx(0.0), pytest.approx(100 * 5 / 7))


def test_the_standard_error_of_clips_of_one_length_is_the_closed_form() -> None:
    draw = np.random.default_rng(3)
    errors_N, words = draw.integers(0, 5, 200).astype(float), 8.0
    stats_N2 = np.stack([errors_N, np.full(200, words)], axis=1)
    found = bootstrap.interval(stats_N2, word_errors.rate, 20_000, seed=1)
    assert found
    closed = 100 / words * errors_N.std() / math.sqrt(200)
    assert found.stderr == pytest.approx(closed, rel=0.03)
    mean = 100 * errors_N.mean() / words
    assert (found.low, found.high) == (
        pytest.approx(mean - 1.96 * closed, abs=0.4),
        pytest.approx(mean + 1.96 * closed, abs=0.4),
    )


def test_resamples_follow_from_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stats_NK = np.arange(20.0).reshape(10, 2)
    whole = bootstrap.resampled(stats_NK, 50, seed=7)
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 30)
    assert np.array_equal(whole, bootstrap.resampled(stats_NK, 50, seed=7))
    assert not np.array_equal(whole, bootstrap.resampled(stats_NK, 50, seed=8))
    assert bootstrap.interval(stats_NK[:1], word_errors.rate, 100, seed=0) is None


def test_a_paired_difference_is_that_of_all_possible_resamples() -> None:
    a_N2 = np.array([[3.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
    b_N2 = np.array([[0.0, 5.0], [2.0, 5.0], [1.0, 5.0]])
    exact_S = word_errors.rate(every_resample(b_N2)) - word_errors.rate(every_resample(a_N2))
    found = bootstrap.paired([a_N2], [b_N2], word_errors.rate, 40_000, seed=0)
    assert found.value == pytest.approx(-20.0)
    assert found.p == pytest.approx((exact_S >= -1e-9).mean(), abs=0.01)
    assert (found.low, found.high) == (pytest.approx(exact_S.min()), pytest.approx(exact_S.max()))
    turned = bootstrap.paired([b_N2], [a_N2], word_errors.rate, 40_000, seed=0)
    assert (turned.value, turned.low, turned.high, turned.p) == (-found.value, -found.high, -found.low, found.p)


def test_seeds_are_resampled_in_pairs_beside_the_items() -> None:
    a_RN2 = [np.array([[3.0, 5.0], [1.0, 5.0], [2.0, 5.0]]), np.array([[4.0, 5.0], [4.0, 5.0], [1.0, 5.0]])]
    b_RN2 = [np.array([[0.0, 5.0], [2.0, 5.0], [1.0, 5.0]]), np.array([[5.0, 5.0], [4.0, 5.0], [2.0, 5.0]])]
    one_S, two_S = (
        word_errors.rate(every_resample(b)) - word_errors.rate(every_resample(a))
        for a, b in zip(a_RN2, b_RN2, strict=True)
    )
    exact_S = np.concatenate([one_S, two_S, (one_S + two_S) / 2, (one_S + two_S) / 2])
    low, high = np.quantile(exact_S, [0.025, 0.975], method="inverted_cdf")
    found = bootstrap.paired(a_RN2, b_RN2, word_errors.rate, 40_000, seed=0)
    assert found.value == pytest.approx((-20.0 + 40 / 3) / 2)
    assert found.p == pytest.approx((exact_S >= -1e-9).mean(), abs=0.01)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_models_that_differ_alike_on_every_item_differ_for_certain() -> None:
    a_N2 = np.stack([np.arange(30.0), np.full(30, 40.0)], axis=1)
    found = bootstrap.paired([a_N2], [a_N2 + np.array([1.0, 0.0])], word_errors.rate, 500, seed=0)
    assert (found.low, found.value, found.high, found.p) == (*[pytest.approx(2.5)] * 3, 0.0)
    same = bootstrap.paired([a_N2], [a_N2], word_errors.rate, 500, seed=0)
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
