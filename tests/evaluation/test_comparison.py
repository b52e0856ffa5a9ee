"""From scores to a word: what chance may explain is no victory, and no defeat either."""

import numpy as np
import pytest

from motus_jax.evaluation import comparison

EPISODES = np.repeat(np.arange(20), 4)
SPREAD = np.random.default_rng(0).normal(size=20)[EPISODES]


def entry(metric, ahead, *, listens=True):
    """A mode whose model is better than its baseline by `ahead`, where episodes differ by about 1."""
    sign = 1 if comparison.METRICS[metric].better == "higher" else -1
    model, other = {metric: 5 + sign * (ahead + SPREAD - SPREAD.mean())}, {"hold": {metric: np.full(80, 5.0)}}
    found = comparison.compare(model, other, EPISODES, seed=0)
    return {**found, "beats_baselines": listens and comparison.all_primary_beaten(found["comparisons"])}


@pytest.mark.parametrize("metric", ["psnr", "normalised_mse"])
@pytest.mark.parametrize(("ahead", "expected"), [(2.0, "beats"), (0.1, "undecided"), (-0.1, "loses"), (-2.0, "loses")])
def test_better_beyond_chance_or_not(metric, ahead, expected):
    assert comparison.verdict(entry(metric, ahead)) == expected


def test_a_model_that_does_not_listen_to_its_actions_does_not_beat():
    assert comparison.verdict(entry("psnr", 2.0, listens=False)) == "undecided"


def test_what_does_not_exist_decides_nothing():
    found = entry("psnr", 0.1)
    found["comparisons"]["moving_psnr"] = found["comparisons"]["psnr"] | {"differences": {"hold": {"value": None}}}
    assert comparison.verdict(found) == "undecided"
