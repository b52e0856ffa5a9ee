"""EgoDex and AgiBot World in their published layouts, with numbers that a test can predict."""

import json

import h5py
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_videos import even, grey, write

from motus_jax.data.source import BrokenData
from motus_jax.data.sources import egodex, open_source
from motus_jax.errors import UserError

LENGTH = 20


def poses(joint, length=LENGTH):
    """[n, 4, 4]: joint number k stands at (k, row, 0) + a turn about z that grows with the row."""
    found = np.tile(np.eye(4), (length, 1, 1))
    found[:, :3, 3] = np.stack([np.full(length, joint), np.arange(length) / 10, np.zeros(length)], 1)
    found[:, :3, :3] = Rotation.from_rotvec(np.arange(length)[:, None] * [[0.0, 0.0, 0.1]]).as_matrix()
    return found


def write_egodex(root, task="fold", number=0, length=LENGTH, confidence=None, **attributes):
    folder = root / "part1" / task
    folder.mkdir(parents=True, exist_ok=True)
    joints = ["camera", *(f"{side}{name}" for side in egodex.SIDES
                          for name in ("Hand", *(f"{finger}Tip" for finger in egodex.FINGERS)))]  # fmt: skip
    with h5py.File(folder / f"{number}.hdf5", "w") as file:
        for k, joint in enumerate(joints):
            file[f"transforms/{joint}"] = poses(k, length).astype(np.float32)
            if confidence is not None:
                file[f"confidences/{joint}"] = np.full(length, confidence, np.float32)
        file.attrs.update({"llm_description": "folds a towel", **attributes})
    write(folder / f"{number}.mp4", even(length, 30))
    return folder / f"{number}.hdf5"


def test_egodex_as_video(tmp_path):
    write_egodex(tmp_path, number=10)
    write_egodex(tmp_path, number=2, length=12, which_llm_description="2", llm_description2="unfolds  a towel")
    found = open_source("egodex", tmp_path)
    assert [episode.length for episode in found.episodes] == [12, LENGTH]  # 2 comes before 10
    assert found.texts(0) == ("unfolds a towel",) and found.texts(1) == ("folds a towel",)
    assert (found.robot, found.fps, found.action_dim) == ("human", 30.0, 0)
    assert abs(found.frames(1, "video", [7]).mean() - grey(7)) < 2


def test_egodex_hands(tmp_path):
    write_egodex(tmp_path)
    world = open_source("egodex", tmp_path, {"hands": True, "frame": "world"})
    assert world.state_dim == world.action_dim == 48 and world.state_names[24] == "right wrist x"
    rows = world.rows(0)
    np.testing.assert_array_equal(rows.state, rows.action)
    np.testing.assert_array_equal(rows.action_times, rows.times)
    left, right = rows.state[:, :24], rows.state[:, 24:]
    np.testing.assert_allclose(left[5, :3], [1, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(left[5, 3:9], poses(1)[5, :3, :2].T.ravel(), atol=1e-6)
    np.testing.assert_allclose(right[5, 9:12], [8, 0.5, 0], atol=1e-6)  # the right thumb, after its hand, is joint 8
    start = open_source("egodex", tmp_path, {"hands": True})
    np.testing.assert_allclose(start.rows(0).state[0, :3], np.linalg.solve(poses(0)[0], poses(1)[0])[:3, 3], atol=1e-6)
    moved = np.linalg.solve(poses(0)[0], poses(1)[9])
    np.testing.assert_allclose(start.rows(0).state[9, 3:9], moved[:3, :2].T.ravel(), atol=1e-6)


def test_egodex_faults(tmp_path, caplog):
    write_egodex(tmp_path, number=0, confidence=0.3)
    good = write_egodex(tmp_path, number=1)
    write_egodex(tmp_path, number=2).with_suffix(".mp4").unlink()
    (tmp_path / "part1" / "fold" / "3.hdf5").write_bytes(good.read_bytes()[:500])
    found = open_source("egodex", tmp_path, {"hands": True, "confidence": 0.5})
    assert len(found.episodes) == 2 and "2 episodes left out" in caplog.text and found.left_out == [2, 3]
    with pytest.raises(BrokenData, match=r"leftHand of episode 0 in .*0\.hdf5: expected a confidence .* found 0\.30"):
        found.rows(0)
    with h5py.File(good, "a") as file:
        del file["transforms/rightHand"]
        file["transforms/rightHand"] = poses(1)[:, :3].astype(np.float32)
    with pytest.raises(BrokenData, match=r"transforms/rightHand of episode 1 .* expected shape \(20, 4, 4\)"):
        open_source("egodex", tmp_path, {"hands": True}).rows(1)
    with pytest.raises(UserError, match="option frame: expected one of start, world; found 'camera'"):
        open_source("egodex", tmp_path, {"frame": "camera"})


def number(episode, row, dim):
    return np.float32(0.01 * episode + 0.1 * row + dim)


def write_agibot(root, task=327, episodes=(648642, 648700), length=LENGTH, hands=2, commands=True, cameras=None):
    records = []
    for k, episode in enumerate(episodes):
        steps = [{"start_frame": 0, "end_frame": 8, "action_text": "reach", "skill": "Pick"},
                 {"start_frame": 8, "end_frame": 15, "action_text": "grasp", "skill": "Pick"}]  # fmt: skip
        records.append({"episode_id": episode, "task_name": "pick fruit", "label_info": {"action_config": steps}})
        folder = root / "proprio_stats" / str(task) / str(episode)
        folder.mkdir(parents=True)
        with h5py.File(folder / "proprio_stats.h5", "w") as file:
            rows = np.arange(length)[:, None]
            file["state/joint/position"] = number(k, rows, np.arange(14)[None])
            file["state/effector/position"] = number(k, rows, 20 + np.arange(hands)[None])
            file["state/end/position"] = np.tile(number(k, rows, np.arange(6)).reshape(length, 2, 3), 1)
            file["state/end/orientation"] = np.tile(np.float32([0, 0, 0, 1]), (length, 2, 1))
            given = length if commands else 0
            file["action/joint/position"] = number(k, rows[:given], 100 + np.arange(14)[None])
            file["action/effector/position"] = np.zeros((0, hands), np.float32)
        for camera in cameras or ("head_color", "hand_left_color"):
            write(root / "observations" / str(task) / str(episode) / "videos" / f"{camera}.mp4", even(length, 30))
    (root / "task_info").mkdir(exist_ok=True)
    (root / "task_info" / f"task_{task}.json").write_text(json.dumps(records))
    return root


def test_agibot(tmp_path):
    found = open_source("agibot", write_agibot(tmp_path))
    assert [episode.length for episode in found.episodes] == [LENGTH, LENGTH] and found.state_dim == 16
    rows = found.rows(1)
    assert rows.state[3, 2] == number(1, 3, 2) and rows.state[3, 15] == number(1, 3, 21)
    assert rows.action[3, 2] == number(1, 3, 102), "a command that is given"
    assert rows.action[3, 15] == number(1, 4, 21) and rows.action[-1, 15] == rows.state[-1, 15], "one that is not"
    np.testing.assert_allclose(rows.action_times - rows.times, 1 / 30)
    assert [found.texts(0, row) for row in (0, 7, 8, 15)] == [("reach",), ("reach",), ("grasp",), ("pick fruit",)]
    assert found.all_texts() == ["grasp", "pick fruit", "reach"]
    assert list(found.cameras) == ["hand_left_color", "head_color"]
    assert abs(found.frames(0, "head_color", [4]).mean() - grey(4)) < 2


def test_agibot_groups_and_words(tmp_path):
    found = open_source("agibot", write_agibot(tmp_path, hands=12), {"groups": ("end", "effector"), "words": "task"})
    assert found.state_dim == 6 + 8 + 12 and found.texts(0, 0) == ("pick fruit",)
    assert found.rows(0).state[2, :3].tolist() == [number(0, 2, k) for k in range(3)]


def test_agibot_faults(tmp_path, caplog):
    write_agibot(tmp_path, episodes=(1, 2, 3))
    table = tmp_path / "proprio_stats" / "327" / "2" / "proprio_stats.h5"
    table.write_bytes(table.read_bytes()[:900])
    with h5py.File(tmp_path / "proprio_stats" / "327" / "3" / "proprio_stats.h5", "a") as file:
        file["state/joint/position"][4, 4] = np.nan
    (tmp_path / "observations" / "327" / "1" / "videos" / "hand_left_color.mp4").unlink()
    found = open_source("agibot", tmp_path)
    assert len(found.episodes) == 2 and "1 episodes left out" in caplog.text and "327/2" in caplog.text
    assert found.left_out == [1]
    with pytest.raises(BrokenData, match=r"state of episode 1 .*: expected finite numbers; found NaN or inf in row 4"):
        found.rows(1)
    assert not found.has_camera(0, "hand_left_color") and found.has_camera(1, "hand_left_color")
    with pytest.raises(BrokenData, match=r"hand_left_color of episode 0 .*expected a video of this camera"):
        found.frames(0, "hand_left_color", [0])
    write_agibot(tmp_path, task=400, episodes=(9,), hands=12)
    with pytest.raises(UserError, match=r"one robot, with .*'effector': 2.* found .*'effector': 12.* in 400/9"):
        open_source("agibot", tmp_path)
    assert len(open_source("agibot", tmp_path, {"tasks": (400,)}).episodes) == 1
    with pytest.raises(UserError, match=r"expected tasks \[5\]; found \[327, 400\]"):
        open_source("agibot", tmp_path, {"tasks": (5,)})
