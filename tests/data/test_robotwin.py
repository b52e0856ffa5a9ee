"""RoboTwin episodes written as RoboTwin writes them, with numbers that a test can predict; and damaged ones."""

import json
import logging
import pathlib

import cv2
import h5py
import numpy as np
import pytest

from motus_jax.data.source import BrokenData
from motus_jax.data.sources import open_source
from motus_jax.errors import UserError

CAMERAS = ("head_camera", "left_camera", "right_camera")
CONFIG = "aloha-agilex_clean_50"


def value(episode: int, row: int, dim: int) -> float:
    return 0.1 * dim + episode + 0.01 * row


def colour(camera: int, row: int) -> np.ndarray:
    """RGB of a flat picture: red tells the row, blue the camera."""
    return np.array([60 + 20 * row, 90, 30 + 40 * camera], np.uint8)


def write(folder: pathlib.Path, episode: int, length: int, joints=(6, 6), cameras=CAMERAS, swapped=True, texts=True):
    """One episode; `swapped`: the RGB array goes to cv2.imencode as it is, as RoboTwin's pkl2hdf5 does."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    width = sum(joints) + 2
    vector = np.array([[value(episode, t, k) for k in range(width)] for t in range(length)])
    left = joints[0]
    with h5py.File(folder / "data" / f"episode{episode}.hdf5", "w") as file:
        for c, name in enumerate(cameras):
            frames = [np.full((24, 32, 3), colour(c, t), np.uint8) for t in range(length)]
            codes = [cv2.imencode(".jpg", x if swapped else x[..., ::-1])[1].tobytes() for x in frames]
            view = file.create_group(f"observation/{name}")
            view.create_dataset("rgb", data=codes, dtype=f"S{max(map(len, codes))}")
            view["intrinsic_cv"] = np.zeros((length, 3, 3), np.float32)
        action = file.create_group("joint_action")
        action["left_arm"], action["left_gripper"] = vector[:, :left], vector[:, left]
        action["right_arm"], action["right_gripper"] = vector[:, left + 1 : -1], vector[:, -1]
        action["vector"] = vector
        pose = file.create_group("endpose")
        for k, arm in enumerate(("left", "right")):
            pose[f"{arm}_endpose"] = np.arange(7) + 10 * k + np.arange(length)[:, None]
            pose[f"{arm}_gripper"] = np.linspace(0, 1, length) + k
        file["pointcloud"] = np.zeros((length, 0))
    if texts:
        (folder / "instructions").mkdir(exist_ok=True)
        words = {"seen": [f"lift {episode}", "lift it"], "unseen": [f"raise {episode}"]}
        (folder / "instructions" / f"episode{episode}.json").write_text(json.dumps(words))


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    """Two tasks: episodes 0, 2, 10 and 1."""
    for episode, length in ((0, 5), (2, 4), (10, 3)):
        write(tmp_path / "root" / "beat_block_hammer" / CONFIG, episode, length)
    write(tmp_path / "root" / "stack_bowls" / CONFIG, 1, 6)
    (tmp_path / "root" / "README.md").write_text("not a task")
    return tmp_path / "root"


def opened(path, **options):
    return open_source("robotwin", str(path), options)


def complaint(call, kind=UserError) -> str:
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_episodes_in_order_of_their_numbers(root):
    dataset = opened(root)
    assert [(e.task, e.file.stem, e.length) for e in dataset.episodes] == [
        ("beat_block_hammer", "episode0", 5),
        ("beat_block_hammer", "episode2", 4),
        ("beat_block_hammer", "episode10", 3),
        ("stack_bowls", "episode1", 6),
    ]
    assert dataset.cameras == dict.fromkeys(CAMERAS, (24, 32)) and dataset.fps == 30
    assert dataset.state_names[5:8] == ("left joint 5", "left gripper", "right joint 0")
    assert dataset.state_names == dataset.action_names and dataset.state_dim == 14
    for path, count in ((root / "stack_bowls", 1), (root / "beat_block_hammer" / CONFIG, 3)):
        assert len(opened(path).episodes) == count
    assert [e.file.stem for e in opened(root, tasks="stack_bowls").episodes] == ["episode1"]
    assert "found none" in complaint(lambda: opened(root, configs=("randomized",)))


def test_rows_are_measured_positions(root):
    rows = opened(root, fps=250 / 15).rows(1)
    expected = np.float32([[value(2, t, k) for k in range(14)] for t in range(4)])
    assert np.array_equal(rows.state, expected) and np.array_equal(rows.action, expected)
    assert np.allclose(rows.times, np.arange(4) * 0.06) and np.array_equal(rows.action_times, rows.times)


def test_poses_of_hands(root):
    dataset = opened(root, quantity="endpose")
    rows = dataset.rows(0)
    assert dataset.state_names[:4] == ("left x", "left y", "left z", "left qw") and dataset.state_dim == 16
    assert rows.state[3].tolist() == [*(np.arange(7) + 3), 0.75, *(np.arange(7) + 13), 1.75]


def test_robots_of_other_widths(root, tmp_path):
    write(tmp_path / "franka" / "demo", 0, 4, joints=(7, 7))
    dataset = opened(tmp_path / "franka", robot="franka")
    assert dataset.state_dim == 16 and dataset.state_names[7] == "left gripper" and dataset.robot == "franka"
    write(root / "beat_block_hammer" / CONFIG, 11, 4, joints=(7, 7))
    line = complaint(lambda: opened(root))
    assert "expected robots of one width; found 14 in" in line and "and 16 in" in line


@pytest.mark.parametrize("swapped, colours", [(True, "rgb_encoded_as_bgr"), (False, "standard")])
def test_colours(tmp_path, swapped, colours):
    write(tmp_path / "demo", 0, 6, swapped=swapped)
    dataset = opened(tmp_path, colours=colours)
    for c, camera in enumerate(CAMERAS):
        rows = [5, 0, 3, 5]
        frames = dataset.frames(0, camera, rows).astype(int)
        assert frames.shape == (4, 24, 32, 3)
        assert np.abs(frames - np.array([colour(c, row) for row in rows])[:, None, None]).max() <= 4
    wrong = {"standard": "rgb_encoded_as_bgr", "rgb_encoded_as_bgr": "standard"}[colours]
    swapped_frame = opened(tmp_path, colours=wrong).frames(0, "head_camera", [5])[0]
    assert np.abs(swapped_frame[..., ::-1].astype(int) - colour(0, 5)).max() <= 4


def test_instructions(root):
    assert opened(root).texts(2) == ("lift 10", "lift it")
    assert opened(root, texts="unseen").all_texts() == ["raise 0", "raise 1", "raise 10", "raise 2"]
    assert opened(root, texts="both").texts(0) == ("lift 0", "lift it", "raise 0")
    file = root / "stack_bowls" / CONFIG / "instructions" / "episode1.json"
    file.write_text("{}")
    line = complaint(lambda: opened(root), BrokenData)
    assert "instructions of episode 3 in" in line and "found KeyError('seen')" in line
    file.unlink()
    assert opened(root).texts(3) == ()


def test_cameras_that_only_some_episodes_have(root):
    write(root / "stack_bowls" / CONFIG, 7, 3, cameras=("head_camera", "front_camera"))
    dataset = opened(root)
    assert set(dataset.cameras) == {*CAMERAS, "front_camera"}
    assert dataset.has_camera(3, "left_camera") and not dataset.has_camera(4, "left_camera")
    assert dataset.frames(4, "front_camera", [2]).shape == (1, 24, 32, 3)
    line = complaint(lambda: dataset.frames(4, "left_camera", [0]), BrokenData)
    assert line.startswith("observation/left_camera/rgb of episode 4 in") and "expected this dataset" in line


def test_one_row(tmp_path):
    write(tmp_path / "demo", 0, 1)
    dataset = opened(tmp_path / "demo")
    assert dataset.rows(0).state.shape == (1, 14) and dataset.frames(0, "head_camera", [0, 0]).shape[0] == 2


def test_files_that_cannot_be_read_are_left_out_and_counted(root, caplog):
    folder = root / "beat_block_hammer" / CONFIG / "data"
    data = (folder / "episode2.hdf5").read_bytes()
    (folder / "episode2.hdf5").write_bytes(data[: len(data) // 2])
    (folder / "episode10.hdf5").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        dataset = opened(root)
    assert [e.file.stem for e in dataset.episodes] == ["episode0", "episode1"]
    assert "2 episodes left out that cannot be read; first: file of episode episode2" in caplog.text
    assert dataset.left_out == [1, 2]


def edit(root, change) -> None:
    """Changes the last episode's file."""
    with h5py.File(root / "stack_bowls" / CONFIG / "data" / "episode1.hdf5", "r+") as file:
        change(file)


def test_faults_inside_an_episode(root):
    dataset = opened(root)
    view = "observation/left_camera/rgb"

    def nan(file):
        file["joint_action/vector"][2, 3] = np.nan

    edit(root, nan)
    line = complaint(lambda: dataset.rows(3), BrokenData)
    assert line.startswith("state of episode 3") and line.endswith("NaN or inf in row 2")

    def shape(file):
        del file["joint_action/vector"]
        file["joint_action/vector"] = np.zeros((6, 13))

    edit(root, shape)
    line = complaint(lambda: dataset.rows(3), BrokenData)
    assert "expected 6 rows of 14 numbers; found shape (6, 13) of float64" in line

    def no_picture(file):
        codes = file[view][()]
        codes[4], codes[5] = b"no picture", codes[5][:200]
        file[view][...] = codes

    edit(root, no_picture)
    line = complaint(lambda: dataset.frames(3, "left_camera", [0, 4]), BrokenData)
    assert line.startswith(f"{view} of episode 3") and "a JPEG or PNG picture in row 4; found 10 bytes" in line
    assert "without its end" in complaint(lambda: dataset.frames(3, "left_camera", [5]), BrokenData)
    assert dataset.frames(3, "left_camera", [3]).shape[0] == 1

    def other_size(file):
        codes = file[view][()]
        codes[0] = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
        file[view][...] = codes

    edit(root, other_size)
    line = complaint(lambda: dataset.frames(3, "left_camera", [0]), BrokenData)
    assert "expected pictures of 32x24; found 8x8 in row 0" in line

    edit(root, lambda file: file.pop("joint_action"))
    line = complaint(lambda: dataset.rows(3), BrokenData)
    assert "joint_action/vector of episode 3" in line and "expected this dataset; found endpose, observation" in line
    dataset.episodes[3].file.unlink()
    assert "expected this file; found no such file" in complaint(lambda: dataset.rows(3), BrokenData)


def test_wrong_options(root, tmp_path):
    assert "option colours: expected one of standard, rgb_encoded_as_bgr; found 'bgr'" in complaint(
        lambda: opened(root, colours="bgr")
    )
    assert "option fps: expected rows per second, above 0; found 0" in complaint(lambda: opened(root, fps=0))
    assert "option quantity: expected one of joint, endpose" in complaint(lambda: opened(root, quantity="pose"))
    assert "found nothing there" in complaint(lambda: opened(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "expected folders TASK/CONFIG/data with episodeN.hdf5" in complaint(lambda: opened(tmp_path / "empty"))
