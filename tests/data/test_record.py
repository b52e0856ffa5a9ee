"""The record command: what it refuses without a simulator, what it writes with one."""

import sys

import numpy as np
import pytest

from motus_jax.data import record
from motus_jax.data.sources.lerobot import LeRobotDataset
from motus_jax.errors import UserError
from motus_jax.robots import catalogue
from motus_jax.robots.episode import Episode

CAMERAS = {"top": (16, 16)}


def _fake_episode(task: str, seed: np.random.SeedSequence) -> Episode:
    """Succeeds about half of the time."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(12, 2)).astype(np.float32)
    frames = {"top": rng.integers(0, 255, (12, 16, 16, 3), np.uint8)}
    return Episode(state, state, frames, f"please {task}", task, bool(rng.random() < 0.5))


@pytest.fixture
def fake_robot(monkeypatch):
    robot = catalogue.Robot("fake", 10, CAMERAS, ("x", "y"), ("x", "y"), ("left", "right"), _fake_episode)
    monkeypatch.setattr(catalogue, "robot", lambda name: robot)


def test_tasks_take_turns_and_only_successes_are_kept(fake_robot, tmp_path, capsys):
    argv = ["record", "--episodes=6", "--test_episodes=4", "--workers=1", f"--out={tmp_path / 'set'}"]
    record.main(argv)
    read = LeRobotDataset(tmp_path / "set")
    assert [episode.tasks[0] for episode in read.episodes[:3]] == ["please left", "please right", "please left"]
    assert (len(read.split("train")), read.split("test")) == (6, [6, 7, 8, 9])
    played = [int(line.split(" of ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert sum(played) > 10  # failures were played again
    first = [read.rows(number).state[0, 0] for number in range(10)]
    assert len(set(first)) == 10  # training and test starts all differ

    record.main([*argv[:-1], f"--out={tmp_path / 'again'}"])
    again = LeRobotDataset(tmp_path / "again")
    assert [again.rows(number).state[0, 0] for number in range(10)] == first
    with pytest.raises(UserError, match="existing"):
        record.main(argv)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes=0"], "--episodes: expected at least 1, found 0"),
        (["--tasks=left,juggle"], "task 'juggle': expected one of left, right"),
    ],
)
def test_bad_arguments_are_refused(fake_robot, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        record.main(["record", f"--out={tmp_path / 'set'}", *arguments])
    assert list(tmp_path.iterdir()) == []


def test_unknown_robot(tmp_path):
    with pytest.raises(UserError, match="robot 'hal': expected one of aloha, aloha_disturbed, aloha_motion, sawyer"):
        record.main(["record", "--robot=hal", f"--out={tmp_path / 'set'}"])


@pytest.mark.parametrize("robot", ["aloha", "sawyer"])
def test_without_mujoco_it_says_what_to_install(robot, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith("motus_jax.robots.")]:
        if name not in ("motus_jax.robots.catalogue", "motus_jax.robots.episode"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(UserError, match=r"mujoco, which is not installed: run pip install -e '\.\[simulator\]'"):
        record.main(["record", f"--robot={robot}", f"--out={tmp_path / 'set'}"])


@pytest.mark.simulator
def test_two_workers_record_what_one_records(tmp_path):
    for workers in (1, 2):
        out = tmp_path / str(workers)
        record.main(
            ["record", "--episodes=2", "--test_episodes=1", "--tasks=lift_left", f"--workers={workers}", f"--out={out}"]
        )
    one, two = (LeRobotDataset(tmp_path / str(workers)) for workers in (1, 2))
    assert one.cameras == two.cameras and len(one.cameras) == 3
    for number in range(3):
        np.testing.assert_array_equal(one.rows(number).action, two.rows(number).action)
        key = one.camera_key("top")
        np.testing.assert_array_equal(one.frames(number, key, [0, 20]), two.frames(number, key, [0, 20]))
