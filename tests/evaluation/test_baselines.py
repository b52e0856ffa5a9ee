"""Baselines: fitted on the training split only, and as strong as they claim to be."""

import numpy as np
import pytest
import synthetic

from motus_jax.evaluation import baselines


@pytest.fixture(scope="module")
def train():
    return synthetic.chunks(episodes=20, per_episode=10, seed=4)


@pytest.fixture(scope="module")
def memory(train):
    return baselines.remember(
        [{key: value[:77] for key, value in train.items()}, {key: value[77:] for key, value in train.items()}]
    )


def test_mean_chunk_uses_existing_values(train, memory):
    np.testing.assert_allclose(memory.mean_chunk, train["actions"].mean(axis=0), rtol=1e-5, atol=1e-6)
    masked = {**train, "action_mask": train["action_mask"] & (train["actions"] > 0)}
    expected = np.ma.masked_array(train["actions"], train["actions"] <= 0).mean(axis=0)
    np.testing.assert_allclose(baselines.remember([masked]).mean_chunk, expected, rtol=1e-5)


def test_mean_residual_is_the_mean_change(train, memory):
    frames = train["frames"].astype(float) / 255
    np.testing.assert_allclose(memory.mean_residual, (frames[:, 1:] - frames[:, :1]).mean(axis=0), atol=1e-6)


def test_copy_last_repeats_the_condition_frame(train):
    copied = baselines.copy_last(train["frames"])
    assert copied.shape == (200, 2, 32, 32, 3)
    np.testing.assert_array_equal(np.round(copied[:, 1] * 255), train["frames"][:, 0])


def test_neighbour_of_a_training_chunk_is_itself(train, memory):
    found = baselines.NearestNeighbour(memory, ("state", "picture")).predict(train)
    np.testing.assert_array_equal(found, train["actions"])


def test_seeing_the_motion_helps(memory):
    test = synthetic.chunks(episodes=10, per_episode=5, seed=9)
    blind = baselines.NearestNeighbour(memory, ("state", "picture"))
    seeing = baselines.NearestNeighbour(memory, ("state", "picture", "motion"))
    errors = [np.square(neighbour.predict(test) - test["actions"]).mean() for neighbour in (blind, seeing)]
    assert errors[1] < 0.9 * errors[0]


def test_neighbour_has_the_same_robot_and_the_instruction_counts_where_it_helps(train):
    rng = np.random.default_rng(0)
    words, robot = rng.integers(0, 2, (2, 200))
    marked = {
        **train,
        "instruction": np.repeat(1 + words[:, None], 5, axis=1).astype(np.int32),
        "embodiment": robot.astype(np.int32),
        "actions": np.broadcast_to((words + 10 * robot)[:, None, None], (200, 4, 3)).astype(np.float32),
    }
    query = {**marked, "state": marked["state"][::-1], "frames": marked["frames"][::-1]}
    neighbour = baselines.NearestNeighbour(baselines.remember([marked]), ("state", "picture"))
    np.testing.assert_array_equal(neighbour.predict(query), marked["actions"])
    # With actions that do not depend on the words, other words must not shut out a better neighbour.
    plain = {**marked, "actions": train["actions"]}
    neighbour = baselines.NearestNeighbour(baselines.remember([plain]), ("state", "picture"))
    assert neighbour.other_instruction == 0.0
    unknown = {**plain, "instruction": np.full((200, 5), 77, np.int32)}
    np.testing.assert_array_equal(neighbour.predict(unknown), train["actions"])
