"""ALOHA episodes as ACT, Mobile ALOHA and RDT write them, with numbers that a test can predict; and damaged ones."""

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

CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")


def table(episode: int, rows: int, width: int, shift: float = 0) -> np.ndarray:
    return np.arange(width) / 8 + np.arange(rows)[:, None] + 100.0 * episode + shift


def colour(camera: int, row: int) -> np.ndarray:
    """RGB of a flat picture: red tells the row, blue the camera."""
    return np.array([60 + 20 * row, 90, 30 + 40 * camera], np.uint8)


def write(
    file: pathlib.Path, episode: int, rows: int, width=14, cameras=CAMERAS, stored="raw", base=False, **attributes
):
    """One episode; `stored`: raw pictures, "padded" as ACT's recorder compresses them, "lengths" each of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as content:
        content.attrs.update({"sim": False, "compress": stored != "raw"} | attributes)
        content["observations/qpos"] = table(episode, rows, width)
        content["observations/qvel"] = np.zeros((rows, width))
        content["action"] = table(episode, rows, width, shift=0.5)
        if base:
            content["base_action"] = table(episode, rows, 2, shift=-7)
        lengths = []
        for c, name in enumerate(cameras):
            frames = [np.full((24, 32, 3), colour(c, t), np.uint8) for t in range(rows)]
            place = f"observations/images/{name}"
            if stored == "raw":
                content[place] = np.stack(frames)
                continue
            codes = [cv2.imencode(".jpg", frame)[1].ravel() for frame in frames]  # RGB given as BGR, as recorders do
            if stored == "padded":
                content[place] = np.stack([np.pad(code, (0, 900 - len(code))) for code in codes])
                lengths.append([len(code) for code in codes])
                continue
            found = content.create_dataset(place, (rows,), h5py.vlen_dtype(np.uint8))
            for t, code in enumerate(codes):
                found[t] = code
        if lengths:
            content["compress_len"] = np.array(lengths)


@pytest.fixture
def act(tmp_path) -> pathlib.Path:
    for episode, rows in ((0, 6), (10, 4), (2, 5)):
        write(tmp_path / "act" / f"episode_{episode}.hdf5", episode, rows)
    return tmp_path / "act"


def opened(path, **options):
    return open_source("aloha_hdf5", str(path), options)


def complaint(call, kind=UserError) -> str:
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_episodes_and_rows(act):
    dataset = opened(act)
    assert [(e.file.stem, e.length) for e in dataset.episodes] == [
        ("episode_0", 6),
        ("episode_2", 5),
        ("episode_10", 4),
    ]
    assert dataset.cameras == dict.fromkeys(CAMERAS, (24, 32)) and dataset.fps == 50
    assert dataset.state_names[6:8] == ("left gripper", "right joint 0") and dataset.action_dim == 14
    rows = dataset.rows(2)
    assert np.array_equal(rows.state, table(10, 4, 14)) and np.array_equal(rows.action, table(10, 4, 14, 0.5))
    assert np.allclose(rows.times, np.arange(4) * 0.02) and np.allclose(rows.action_times, rows.times + 0.02)
    assert opened(act, fps=25).rows(0).times[5] == 0.2


@pytest.mark.parametrize("stored", ["raw", "padded", "lengths"])
def test_pictures(tmp_path, stored):
    write(tmp_path / "episode_0.hdf5", 0, 6, stored=stored)
    dataset = opened(tmp_path)
    for c, camera in enumerate(CAMERAS):
        rows = [5, 0, 3, 5]
        frames = dataset.frames(0, camera, rows).astype(int)
        assert frames.shape == (4, 24, 32, 3)
        expected = np.array([colour(c, row) for row in rows])[:, None, None]
        assert np.abs(frames - expected).max() <= (0 if stored == "raw" else 4)
    standard = opened(tmp_path, colours="standard").frames(0, "cam_high", [5])[0]
    standard = standard if stored == "raw" else standard[..., ::-1]  # the option is for compressed ones
    assert np.abs(standard.astype(int) - colour(0, 5)).max() <= 4


@pytest.mark.parametrize("width", [7, 14, 20])
def test_widths(tmp_path, width):
    write(tmp_path / "a.hdf5", 3, 4, width=width)
    dataset = opened(tmp_path)
    assert dataset.state_dim == width and np.array_equal(dataset.rows(0).state, table(3, 4, width))
    assert dataset.state_names[0] == ("left joint 0" if width == 14 else "joint 0")


def test_mobile_base(tmp_path, act):
    write(tmp_path / "mobile" / "episode_0.hdf5", 1, 3, base=True)
    assert opened(tmp_path / "mobile").action_dim == 14
    dataset = opened(tmp_path / "mobile", base_action=True)
    expected = np.concatenate([table(1, 3, 14, 0.5), table(1, 3, 2, -7)], 1)
    assert np.array_equal(dataset.rows(0).action, expected) and dataset.action_names[14:] == ("base 0", "base 1")
    assert "option base_action: expected base_action in the files" in complaint(lambda: opened(act, base_action=True))


def test_instructions_of_the_file_itself(tmp_path):
    write(tmp_path / "episode_0.hdf5", 0, 3, language_instruction="fold the towel")
    write(tmp_path / "episode_1.hdf5", 0, 3, instruction=np.bytes_(b"open it"))
    write(tmp_path / "episode_2.hdf5", 0, 3)
    with h5py.File(tmp_path / "episode_2.hdf5", "r+") as content:
        content["language_instruction"] = [b"wipe", b"clean the table"]
    write(tmp_path / "episode_3.hdf5", 0, 3)
    dataset = opened(tmp_path)
    found = [dataset.texts(k) for k in range(4)]
    assert found == [("fold the towel",), ("open it",), ("wipe", "clean the table"), ()]
    assert opened(tmp_path, instruction="work").all_texts() == ["work"]
    assert opened(tmp_path, instruction=["a", "b"]).texts(3) == ("a", "b")


def test_instructions_beside_the_file(tmp_path):
    for task in ("pour", "stack"):
        write(tmp_path / "rdt" / task / "episode_0.hdf5", 0, 3, stored="lengths")
    rdt = {"instruction": "Pour.", "simplified_instruction": ["Pour."], "expanded_instruction": ["Pour it all.", "Go."]}
    (tmp_path / "rdt" / "pour" / "expanded_instruction_gpt-4-turbo.json").write_text(json.dumps(rdt))
    own = tmp_path / "rdt" / "stack" / "episode_0.json"
    own.write_text(json.dumps("Stack."))
    dataset = opened(tmp_path / "rdt")
    assert dataset.texts(0) == ("Pour.", "Pour it all.", "Go.") and dataset.texts(1) == ("Stack.",)
    own.write_text(json.dumps({"words": "Stack."}))
    line = complaint(lambda: opened(tmp_path / "rdt"), BrokenData)
    assert "instruction of episode 1 in" in line and "expected a text, a list of texts, or one of" in line
    own.write_text("Stack.")
    assert "expected JSON" in complaint(lambda: opened(tmp_path / "rdt"), BrokenData)


def test_cameras_that_only_some_episodes_have(act):
    write(act / "episode_11.hdf5", 11, 3, cameras=("cam_high",))
    dataset = opened(act)
    assert [dataset.has_camera(k, "cam_left_wrist") for k in (0, 3)] == [True, False]
    line = complaint(lambda: dataset.frames(3, "cam_left_wrist", [0]), BrokenData)
    assert line.startswith("observations/images/cam_left_wrist of episode 3 in") and "expected this dataset" in line
    write(act / "episode_12.hdf5", 12, 3, cameras=())
    assert not opened(act).has_camera(4, "cam_high") and len(opened(act).rows(4).state) == 3


def test_without_states_or_without_actions(tmp_path):
    for name, gone in (("a", "action"), ("b", "observations/qpos")):
        write(tmp_path / name / "episode_0.hdf5", 0, 3)
        with h5py.File(tmp_path / name / "episode_0.hdf5", "r+") as content:
            del content[gone]
    assert (opened(tmp_path / "a").state_dim, opened(tmp_path / "a").action_dim) == (14, 0)
    rows = opened(tmp_path / "b").rows(0)
    assert rows.state.shape == (3, 0) and np.array_equal(rows.action, table(0, 3, 14, 0.5))
    assert "expected observations/qpos of one width; found 14" in complaint(lambda: opened(tmp_path))


def test_files_that_cannot_be_read_are_left_out_and_counted(act, caplog):
    file = act / "episode_2.hdf5"
    file.write_bytes(file.read_bytes()[:3000])
    write(act / "empty.hdf5", 0, 0, cameras=())
    with caplog.at_level(logging.WARNING):
        dataset = opened(act)
    assert [e.file.stem for e in dataset.episodes] == ["episode_0", "episode_10"]
    assert "2 episodes left out that cannot be read" in caplog.text and len(dataset.left_out) == 2


def test_faults_inside_an_episode(tmp_path):
    write(tmp_path / "episode_0.hdf5", 0, 5, stored="padded")
    write(tmp_path / "episode_1.hdf5", 1, 4)
    dataset = opened(tmp_path)
    with h5py.File(tmp_path / "episode_0.hdf5", "r+") as content:
        content["action"][1, 2] = np.nan
        content["observations/images/cam_high"][2, :4] = 0
        content["observations/images/cam_high"][3, 300:] = 0
        content["observations/images/cam_left_wrist"][4, 2:20] = 1
    line = complaint(lambda: dataset.rows(0), BrokenData)
    assert line.startswith("action of episode 0") and line.endswith("NaN or inf in row 1")
    line = complaint(lambda: dataset.frames(0, "cam_high", [2]), BrokenData)
    assert line.startswith("observations/images/cam_high of episode 0") and "JPEG or PNG picture in row 2" in line
    assert "without its end (truncated)" in complaint(lambda: dataset.frames(0, "cam_high", [3]), BrokenData)
    assert "in row 4" in complaint(lambda: dataset.frames(0, "cam_left_wrist", [0, 4]), BrokenData)
    assert dataset.frames(0, "cam_high", [0, 4]).shape[0] == 2
    with h5py.File(tmp_path / "episode_0.hdf5", "r+") as content:
        del content["action"]
        content["action"] = np.zeros((4, 14))
    line = complaint(lambda: dataset.rows(0), BrokenData)
    assert "expected 5 rows of 14 numbers; found shape (4, 14) of float64" in line
    with h5py.File(tmp_path / "episode_1.hdf5", "r+") as content:
        del content["observations/images/cam_high"]
        content["observations/images/cam_high"] = np.zeros((4, 8, 8, 3), np.uint8)
    line = complaint(lambda: dataset.frames(1, "cam_high", [0]), BrokenData)
    assert "expected pictures of 32x24; found 8x8" in line
    assert "a picture of row 4" in complaint(lambda: dataset.frames(1, "cam_left_wrist", [4]), BrokenData)


def test_wrong_places_and_options(act, tmp_path):
    assert "found nothing there" in complaint(lambda: opened(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "expected HDF5 files of episodes; found none" in complaint(lambda: opened(tmp_path / "empty"))
    assert "option fps: expected rows per second" in complaint(lambda: opened(act, fps="fast"))
    assert "option colours" in complaint(lambda: opened(act, colours="rgb"))
