"""The simulator: experts succeed, recorded actions replay, instructions matter, the scene can be seen."""

import dataclasses

import av
import numpy as np
import pytest

from tests.robots.playing import answered

pytestmark = pytest.mark.simulator

TASKS = ("transfer_cube", "insertion", "lift_left", "lift_right")


@pytest.fixture(scope="module")
def robots():
    """The simulator's modules, imported only where the marker is selected."""
    from motus_jax.robots import rollout, tasks

    class Modules:
        pass

    Modules.rollout, Modules.tasks = rollout, tasks
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


def test_a_disturbed_expert_is_pushed_and_its_own_targets_are_recorded(robots, episodes):
    from motus_jax.robots import disturbed

    own, pushed = episodes["lift_left"], disturbed.record_expert("lift_left", np.random.SeedSequence([3, 1]))
    assert pushed.instruction == own.instruction
    rows = min(len(own.action), len(pushed.action))
    np.testing.assert_array_equal(pushed.action[:rows], own.action[:rows])
    arms = [d for d in range(14) if d % 7 != 6]
    apart = (pushed.state[:rows] - own.state[:rows])[2:, arms]
    assert 0.3 * disturbed.PUSH < apart.std() < 2 * disturbed.PUSH
    again = disturbed.record_expert("lift_left", np.random.SeedSequence([3, 1]))
    np.testing.assert_array_equal(again.state, pushed.state)


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


@pytest.fixture
def setting(loaded, tmp_path):
    """Of the ALOHA robot, with the chunks and rates of the debug experiment."""
    from motus_jax.data.contract import Contract
    from motus_jax.robots.closed_loop import Setting

    contract = dataclasses.replace(Contract.from_json(loaded.contract()), robot="aloha")
    return Setting("motus_jax.robots.rollout", contract, contract.cameras, 40, 6.0, 0, tmp_path)


@pytest.mark.parametrize("name", ["lift_left", "transfer_cube"])
def test_who_knows_the_experts_actions_succeeds_and_can_be_filmed(robots, setting, name):
    from motus_jax.robots.closed_loop import Actor, Episode, unseen_start
    from motus_jax.robots.film import Film, make_film

    plan = robots.tasks.expert_targets(name, robots.tasks.reset(name, unseen_start(1))[0])
    asked = []

    def expert(observation):
        asked.append({camera: picture.shape for camera, picture in observation["images"].items()})
        return {"actions": plan}

    episode = Episode(Actor("vla", "k", mode="vla"), name, 1)
    result = answered(episode.start(setting), expert)
    assert (result.success, result.reward, result.answers) == (True, 1.0, 1)
    assert result.instruction in robots.tasks.TASKS[name].instructions and result.steps <= len(plan)
    assert asked == [{"top": (72, 96, 3), "left_wrist": (36, 48, 3), "right_wrist": (36, 48, 3)}]
    film = answered(make_film(Film(episode, ""), dataclasses.replace(setting, contract=long(setting.contract))), None)
    with av.open(str(film)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert len(frames) == 1 + -(-result.steps // 2)
    assert (np.abs(frames[-1].astype(int) - frames[0]).max(-1) > 40).mean() > 0.02, "the arms have moved"


def long(contract):
    """The contract with as many frames as an expert's whole plan takes."""
    return dataclasses.replace(contract, video_frames=20)


def test_who_holds_still_does_not_succeed_and_rates_are_checked(setting):
    from motus_jax.errors import UserError
    from motus_jax.robots import baselines
    from motus_jax.robots.closed_loop import Actor, Episode

    episode = Episode(Actor("hold_the_state", "k", begin=baselines.hold_the_state), "lift_left", 0)
    still = answered(episode.start(dataclasses.replace(setting, seconds=1.0)), None)
    assert (still.success, still.steps, still.reward) == (False, 10, 0)
    wrong = dataclasses.replace(setting, contract=dataclasses.replace(setting.contract, action_hz=15.0))
    with pytest.raises(UserError, match="divisor of the control rate, 50 Hz"):
        answered(episode.start(wrong), None)


def test_a_model_acts_through_the_server_and_is_filmed_with_its_imagination(loaded, tmp_path):
    """The smallest model there is, untrained; one episode in a process of its own."""
    from motus_jax.data.contract import Contract
    from motus_jax.evaluation import acting
    from motus_jax.evaluation.acting_setup import Model, Options
    from motus_jax.robots.policy import Policy, describe

    contract = dataclasses.replace(Contract.from_json(loaded.contract()), robot="aloha")
    options = Options(policies=("vla",), episodes=1, workers=1, lanes=1, videos=1)

    def serve():
        return Policy(loaded, modes=options.modes, max_batch=1, ahead=False)

    model = Model(contract, np.zeros((8, 14), np.float32), {}, {}, serve, describe(contract, loaded.step))
    entry = acting.success_rates(model, ("lift_left",), options, tmp_path, lambda line: None)
    assert entry["policies"]["vla"]["episodes"] == 1 and entry["beats_baselines"] is None
    (film,) = entry["videos"]
    with av.open(str(tmp_path / film["file"])) as container:
        stream = container.streams.video[0]
        assert stream.width == 2 * 3 * contract.image_size[1] + 6 and stream.frames == 1 + 30


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
