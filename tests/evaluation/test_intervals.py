"""Intervals must hold what they promise when chunks of an episode are alike."""

import numpy as np
import pytest

from motus_jax.evaluation.intervals import mean_interval, wilson_interval


def test_coverage_with_correlated_chunks():
    """With 12 episodes of 8 nearly equal chunks, about 95 of 100 intervals hold the true mean."""
    rng = np.random.default_rng(0)
    episodes = np.repeat(np.arange(12), 8)
    hits = 0
    for trial in range(300):
        values = rng.normal(size=12)[episodes] + 0.1 * rng.normal(size=96)
        estimate = mean_interval(values, episodes, seed=trial)
        hits += estimate.low < 0 < estimate.high
    assert 0.91 <= hits / 300 <= 0.98


def test_equals_the_normal_interval_when_chunks_are_independent():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=2000)
    estimate = mean_interval(values, np.arange(2000))
    half = 1.96 * values.std() / np.sqrt(2000)
    np.testing.assert_allclose([estimate.low, estimate.high], [values.mean() - half, values.mean() + half], atol=0.01)


def test_same_seed_same_interval_and_missing_values_are_left_out():
    values = np.array([1.0, 2.0, np.nan, 4.0, np.nan])
    episodes = np.array([0, 0, 1, 2, 3])
    assert mean_interval(values, episodes, seed=5) == mean_interval(values, episodes, seed=5)
    assert mean_interval(values, episodes).value == pytest.approx(7 / 3)


def test_one_episode_has_no_interval():
    estimate = mean_interval(np.array([1.0, 3.0]), np.array([4, 4]))
    assert estimate.value == 2.0
    assert np.isnan([estimate.low, estimate.high]).all()


def test_wilson_interval_of_known_case():
    """8 of 10: 0.4902 to 0.9433 (Wilson score without continuity correction)."""
    assert wilson_interval(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 50).low == 0.0
    assert wilson_interval(50, 50).high == 1.0
    assert wilson_interval(0, 50).high == pytest.approx(0.0713, abs=1e-3)
