"""The simulator: experts succeed, recorded actions replay, instructions matter, the scene can be seen."""

import numpy as np
import pytest

pytestmark = pytest.mark.simulator

TASKS = ("transfer_cube", "insertion", "lift_left", "lift_right")


@pytest.fixture(scope="module")
def robots():
    """The simulator's modules, imported only where the marker is selected."""
    from motus_jax.robots import closed_loop, rollout, tasks

    class Modules:
        pass

    Modules.closed_loop, Modules.rollout, Modules.tasks = closed_loop, rollout, tasks
    return Modules


@pytest.fixture(scope="module")
def episodes(robots):
    return {name: robots.rollout.record_expert(name, np.random.SeedSequence([3, 1])) for name in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_the_expert_succeeds_and_its_actions_replay(robots, episodes, name):
    episode = episodes[name]
    assert episode.success
    assert episode.instruction in robots.tasks.TASKS[name].instructions
    assert robots.rollout.replay(name, np.random.SeedSequence([3, 1]), episode.action)
    # The command of row t is where the joints are at row t + 1, but for the servo's lag and for a held object.
    arms = [d for d in range(14) if d % 7 != 6]
    lag = np.abs(episode.action[:-1, arms] - episode.state[1:, arms])
    assert lag.max() < 0.15
    assert np.abs(np.diff(episode.action, axis=0))[:, arms].max() < 0.35


def test_the_pictures_move_and_differ(episodes):
    episode = episodes["transfer_cube"]
    assert episode.frames["top"].shape == (len(episode.state), 72, 96, 3)
    assert episode.frames["left_wrist"].shape == (len(episode.state), 36, 48, 3)
    moved = {name: np.abs(video[16].astype(int) - video[0]).max(-1) > 20 for name, video in episode.frames.items()}
    assert moved["top"].mean() > 0.08 and moved["right_wrist"].mean() > 0.3
    assert not np.array_equal(episode.frames["left_wrist"], episode.frames["right_wrist"])


def test_play_moves_both_arms_at_random_and_stays_on_its_side(robots):
    first, second = (robots.rollout.record_expert("play", np.random.SeedSequence([3, n])) for n in (1, 2))
    assert first.success and len(first.state) >= 10 * robots.tasks.PLAY_SECONDS
    for arm in (0, 7):
        assert np.ptp(first.state[:, arm : arm + 6], axis=0).max() > 0.3
    rows = min(len(first.action), len(second.action))
    assert np.abs(np.diff(first.action[:rows], axis=0) - np.diff(second.action[:rows], axis=0)).max() > 0.1
    again = robots.rollout.record_expert("play", np.random.SeedSequence([3, 1]))
    np.testing.assert_array_equal(first.action, again.action)
    np.testing.assert_array_equal(first.frames["top"], again.frames["top"])


def test_the_same_start_with_another_arm(robots):
    """Left and right lifts start alike; the left arm's motion is no success for the right arm's task."""
    seed = [3, 9]
    left, right = (robots.tasks.reset(n, np.random.default_rng(np.random.SeedSequence(seed)))[0] for n in TASKS[2:])
    np.testing.assert_array_equal(left.state(), right.state())
    np.testing.assert_array_equal(left.position("box"), right.position("box"))
    actions = robots.rollout.record_expert("lift_left", np.random.SeedSequence(seed)).action
    assert robots.rollout.replay("lift_left", np.random.SeedSequence(seed), actions)
    assert not robots.rollout.replay("lift_right", np.random.SeedSequence(seed), actions)


def test_closed_loop_counts_successes(robots):
    """A policy that knows the expert's actions succeeds; one that holds still does not."""
    loop, tasks, names = robots.closed_loop, robots.tasks, ["lift_left", "transfer_cube"]
    plans = {}
    for k, seed in enumerate(range(3)):
        world, _ = tasks.reset(names[k % 2], loop.unseen_start(seed))
        plans[world.state().tobytes()] = tasks.expert_targets(names[k % 2], world)
    calls = []

    def expert(frames, states, instructions):
        assert frames["top"].shape == (2, 72, 96, 3) and len(instructions) == 2
        chunks = np.repeat(states[:, None], 40, axis=1)
        for row, state in enumerate(states):
            plan = plans.get(state.tobytes())
            if plan is not None:
                chunks[row] = np.pad(plan, ((0, 40 - len(plan)), (0, 0)), mode="edge")
        calls.append(len(states))
        return chunks

    results = loop.evaluate_policy(expert, names, range(3), execute=None, batch_size=2)
    assert [(result.task, result.success, result.reward) for result in results] == [
        ("lift_left", True, 1.0),
        ("transfer_cube", True, 1.0),
        ("lift_left", True, 1.0),
    ]
    assert calls == [2, 2]
    found = loop.summarise(results)
    assert found["successes"] == 3 and found["low"] < 0.6 and found["tasks"]["lift_left"]["episodes"] == 2

    held = loop.evaluate_policy(loop.hold(), ["lift_left"], [0], seconds=1.0, batch_size=1)
    assert not held[0].success and held[0].steps == 10 and held[0].reward == 0


def test_bad_policies_and_rates_are_refused(robots):
    from motus_jax.errors import UserError

    loop = robots.closed_loop
    with pytest.raises(UserError, match=r"expected finite joint targets of shape \[1, T, 14\], found \[1, 8, 7\]"):
        loop.evaluate_policy(lambda f, s, i: np.zeros((1, 8, 7)), ["lift_left"], [0], batch_size=1)
    with pytest.raises(UserError, match="divisor of the control rate, 50 Hz"):
        loop.evaluate_policy(loop.hold(), ["lift_left"], [0], action_hz=15, batch_size=1)
    with pytest.raises(UserError, match="task 'juggle': expected one of transfer_cube"):
        loop.evaluate_policy(loop.hold(), ["juggle"], [0])


def test_sawyer_expert_succeeds():
    from motus_jax.robots import sawyer

    episode = sawyer.record_expert("drawer_open", np.random.SeedSequence([3, 2]))
    assert episode.success and episode.state.shape == episode.action.shape == (len(episode.state), 4)
    # The controller pulls the hand to the commanded place within a row or so.
    assert np.abs(episode.action[:-1, :3] - episode.state[1:, :3]).max() < 0.12
    assert (np.abs(episode.frames["front"][-1].astype(int) - episode.frames["front"][0]).max(-1) > 20).mean() > 0.03


def test_motion_is_random_bounded_and_touches_nothing(robots):
    """Task-agnostic motion: no arm touches anything but itself along the way that it really goes."""
    import mujoco

    from motus_jax.robots import motion

    episode = motion.record_motion("motion", np.random.SeedSequence([5, 1]))
    assert episode.success and not episode.instruction and len(episode.state) == round(motion.SECONDS * 10)
    assert all(len(video) == len(episode.state) for video in episode.frames.values())
    other = motion.record_motion("motion", np.random.SeedSequence([5, 2]))
    again = motion.record_motion("motion", np.random.SeedSequence([5, 1]))
    np.testing.assert_array_equal(episode.action, again.action)
    assert np.abs(episode.action - other.action).max() > 0.3
    arms = motion.ARM_COLUMNS
    for arm in (arms[:6], arms[6:]):
        assert np.ptp(episode.state[:, arm], axis=0).max() > 0.4
    # A leg's speed is highest in its middle: 1.5 times its mean.
    assert np.abs(np.diff(episode.action[:, arms], axis=0)).max() * 10 < 1.6 * motion.SPEED
    assert np.abs(episode.action[:-1, arms] - episode.state[1:, arms]).max() < 0.2, "the servos follow"

    rng = np.random.default_rng(np.random.SeedSequence([5, 1]))
    task = robots.tasks.TASKS["play"]
    world = motion.Aloha(task.layout, task.place(rng), rng)
    checker = mujoco.MjData(world.model)
    checker.qpos[:] = world.data.qpos
    low, high = world.model.jnt_range[np.concatenate(motion.ARM_JOINTS)].T
    assert (episode.action[:, arms] >= low - 1e-6).all() and (episode.action[:, arms] <= high + 1e-6).all()
    assert not any(motion._collides(world, checker, pose) for pose in episode.state)
    folded = np.concatenate([np.r_[0, 1.2, 0.9, 0, 0, 0, 0]] * 2)  # both hands on the table
    assert motion._collides(world, checker, folded), "the check can fail"
