"""Baselines: fitted on the training split only, and as strong as they claim to be."""

import dataclasses

import numpy as np
import pytest
import synthetic

from motus_jax.data.contract import Affine
from motus_jax.evaluation import baselines
from motus_jax.evaluation.held_out import ActionUnits


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


def test_who_stays_where_it_is():
    """Targets repeat the state, changes are zero; where nobody knows, there is no such baseline."""
    own, states = synthetic.contract(), np.float32([[0.3, -0.2, 1.0]])
    for space, hands, expected in (
        ("absolute", 3, states / np.float32(synthetic.SCALE)),
        ("delta", 3, np.zeros(3)),
        ("steps", 3, np.zeros(3)),
    ):
        units = ActionUnits.of(dataclasses.replace(own, action_space=space))
        np.testing.assert_allclose(units.hold(states), np.tile(expected, (1, own.chunk, 1)), atol=1e-6)
        assert len(units.units) == hands
    for space in ("steps_gripper", "latent"):
        assert ActionUnits.of(dataclasses.replace(own, action_space=space)).hold is None
    hand = dataclasses.replace(
        own, action_space="end_effector", state_dim=8, action_dim=10, action_names=(),
        state=Affine((0.0,) * 8, (1.0,) * 8), action=Affine((0.0,) * 10, (1.0,) * 10),
    )  # fmt: skip
    units, pose = ActionUnits.of(hand), np.float32([[0.1, 0.2, 0.3, 1, 0, 0, 0, 0.5]])
    assert len(units.names) == 8
    np.testing.assert_allclose(units.denormalise(units.hold(pose), pose)[0], np.tile(pose, (own.chunk, 1)), atol=1e-6)
