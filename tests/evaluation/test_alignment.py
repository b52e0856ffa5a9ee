"""Probes of latent actions: what they explain, and what equal numbers of other features do."""

import numpy as np

from motus_jax.evaluation import alignment
from motus_jax.evaluation.intervals import mean_interval


def world(seed=0, count=600):
    """14 features of which three make the targets; episodes of 20."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, 14))
    targets = features[:, :3] @ np.array([[1.0, 0], [0, 2], [0.5, -1]]) + 3
    return features, targets, np.repeat(np.arange(count // 20), 20)


def test_what_a_linear_reading_explains():
    features, targets, _ = world()
    held, held_targets, held_episodes = world(1)
    assert alignment.explained(features, targets, held, held_targets).min() > 0.999
    noise = np.random.default_rng(2).normal(size=held_targets.shape) * held_targets.std(0)
    half = mean_interval(alignment.explained(features, targets, held, held_targets + noise), held_episodes)
    assert abs(half.value - 0.5) < 0.07 and half.low < 0.5 < half.high
    assert -0.1 < alignment.explained(features[:, 5:], targets, held[:, 5:], held_targets).mean() < 0.05


def test_the_best_projection_without_labels():
    random = np.random.default_rng(3)
    rows = random.normal(size=(500, 6)) * [5, 3, 1, 0.1, 0.1, 0.1] + 7
    project = alignment.principal(rows[:400], 3)
    kept = project(rows[400:])
    assert kept.shape == (100, 3)
    np.testing.assert_allclose(kept.var(0).sum(), rows[400:].var(0)[:3].sum(), rtol=0.05)


def test_means_of_flow():
    flow = np.zeros((2, 16, 24, 2), np.float32)
    flow[0, :2, :3] = 4, -2
    flow[1] = 1, 3
    np.testing.assert_allclose(alignment.flow_mean(flow), [[4 * 6 / 384, -2 * 6 / 384], [1, 3]], rtol=1e-6)
    cells = alignment.flow_cells(flow).reshape(2, 8, 8, 2)
    assert cells[0, 0, 0].tolist() == [4, -2] and not cells[0, 1:].any() and not cells[0, 0, 1:].any()
    assert (cells[1] == [1, 3]).all()
