"""The layouts of the public Motus code, with numbers that a test can predict; and damaged ones."""

import logging
import pathlib
import shutil

import av
import ml_dtypes
import numpy as np
import pytest
import torch_fixture

from motus_jax.data.prompt import build_prompt
from motus_jax.data.source import BrokenData
from motus_jax.data.sources import open_source
from motus_jax.errors import UserError

STEP = 6
"""Grey levels from one row's picture to the next."""
VIEWS = {"head": ((0, 64), (0, 96), 40), "left": ((64, 96), (0, 48), 90), "right": ((64, 96), (48, 96), 140)}
"""View of the tiled picture -> (rows of pixels, columns, grey of its first picture)."""


def value(name: int, row: int, dim: int) -> float:
    return float(np.float32(0.1 * dim - 0.01 * row + name))


def table(name: int, rows: int, width: int = 14) -> np.ndarray:
    return np.array([[value(name, t, k) for k in range(width)] for t in range(rows)], np.float32)


def write_video(path: pathlib.Path, frames: int, fps: int = 30) -> None:
    """Head above, wrists below: MPEG-4 part 2, as the release's converter writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps, options={"qscale": "1"})
        stream.height, stream.width, stream.pix_fmt = 96, 96, "yuv420p"
        for t in range(frames):
            picture = np.zeros((96, 96, 3), np.uint8)
            for (top, bottom), (first, last), grey in VIEWS.values():
                picture[top:bottom, first:last] = grey + STEP * t
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write(leaf: pathlib.Path, name: int, frames: int, rows=None, folder="qpos", width=14, lines=2, fps=30, umt5=None):
    """One episode: video, table, texts and embeddings."""
    write_video(leaf / "videos" / f"{name}.mp4", frames, fps)
    shorter = folder != "qpos"
    torch_fixture.save(leaf / folder / f"{name}.pt", table(name, frames - shorter if rows is None else rows, width))
    (leaf / "metas").mkdir(exist_ok=True)
    prompt = build_prompt("{}", "scene") if folder == "qpos" else "{}"
    texts = [prompt.format(f"stack bowl {name} way {k}") for k in range(lines)]
    (leaf / "metas" / f"{name}.txt").write_text("\n".join(texts) + "\n")
    embeddings = [np.zeros((3 + k, 8), ml_dtypes.bfloat16) for k in range(lines if umt5 is None else umt5)]
    torch_fixture.save(leaf / "umt5_wan" / f"{name}.pt", embeddings)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("motus") / "root"
    for name, frames in ((0, 12), (10, 5), (2, 9)):
        write(root / "clean" / "stack_bowls" / "", name, frames)
    write(root / "randomized" / "adjust_bottle", 0, 7)
    return root


@pytest.fixture
def root(written, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(written, tmp_path / "root"))


@pytest.fixture
def latents(tmp_path) -> pathlib.Path:
    for name, frames, fps in ((0, 8, 30), (1, 5, 30), (2, 6, 10)):
        leaf = tmp_path / "latents" / "part" / ("a" if name < 2 else "b")
        write(leaf, name, frames, folder="latent_action_dim14", fps=fps)
    return tmp_path / "latents"


def opened(path, kind="motus", **options):
    return open_source(kind, str(path), options)


def complaint(call, kind=UserError) -> str:
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_episodes_in_order_of_their_numbers(root):
    dataset = opened(root)
    names = [(e.video.parent.parent.name, e.video.stem, e.length) for e in dataset.episodes]
    assert names == [("stack_bowls", n, k) for n, k in (("0", 12), ("2", 9), ("10", 5))] + [("adjust_bottle", "0", 7)]
    assert dataset.cameras == {"tiled": (96, 96)} and dataset.fps == 30 and dataset.robot == "aloha-agilex"
    assert dataset.state_names == dataset.action_names and dataset.state_names[6:8] == ("left gripper", "right joint 0")
    assert [len(opened(root / part).episodes) for part in ("clean", "randomized", "clean/stack_bowls")] == [3, 1, 3]


def test_rows_are_measured_positions(root):
    rows = opened(root).rows(2)
    assert np.array_equal(rows.state, table(10, 5)) and np.array_equal(rows.action, rows.state)
    assert np.allclose(rows.times, np.arange(5) / 30) and np.array_equal(rows.action_times, rows.times)
    assert rows.latent.shape == (5, 0)
    assert np.allclose(opened(root, fps=250 / 15).rows(2).times, np.arange(5) * 0.06)


@pytest.mark.parametrize("fps", [0, 10])
def test_tiled_frames(root, fps):
    dataset = opened(root, fps=fps)  # another rate of rows does not change which picture a row has
    wanted = [8, 0, 3, 8]
    frames = dataset.frames(1, "tiled", wanted)
    assert frames.shape == (4, 96, 96, 3)
    for (top, bottom), (first, last), grey in VIEWS.values():
        inside = frames[:, top + 8 : bottom - 8, first + 8 : last - 8].astype(float)
        assert np.abs(inside.mean((1, 2, 3)) - [grey + STEP * t for t in wanted]).max() < STEP / 2


def test_instructions(root):
    assert opened(root).texts(1) == ("stack bowl 2 way 0", "stack bowl 2 way 1")
    kept = opened(root, prefix="keep").texts(1)[1]
    assert kept == build_prompt("stack bowl 2 way 1", "scene") and kept.startswith("The whole scene")
    assert len(opened(root).all_texts()) == 6  # two episodes are called 0
    shutil.rmtree(root / "clean" / "stack_bowls" / "metas")
    assert opened(root).texts(0) == () and opened(root).all_texts() == ["stack bowl 0 way 0", "stack bowl 0 way 1"]


def test_incomplete_and_broken_episodes_are_left_out_and_counted(root, caplog):
    leaf = root / "clean" / "stack_bowls"
    (leaf / "qpos" / "0.pt").unlink()
    (leaf / "metas" / "2.txt").unlink()
    video = root / "randomized" / "adjust_bottle" / "videos" / "0.mp4"
    video.write_bytes(video.read_bytes()[:300])
    with caplog.at_level(logging.WARNING):
        dataset = opened(root)
    assert [e.video.stem for e in dataset.episodes] == ["10"]
    assert "3 episodes left out" in caplog.text and "qpos/0.pt: no such file" in caplog.text
    assert dataset.left_out == [0, 1, 3]  # in order of folders and numbers
    table = leaf / "qpos" / "10.pt"
    table.write_bytes(table.read_bytes()[:-40])
    line = complaint(lambda: opened(root))
    assert "expected episodes; found none that is whole" in line


def test_lengths_that_differ(root, caplog):
    write(root / "clean" / "stack_bowls", 11, 6, rows=8)
    write(root / "clean" / "stack_bowls", 12, 6, rows=4)
    with caplog.at_level(logging.WARNING):
        dataset = opened(root)
    assert [e.length for e in dataset.episodes] == [12, 9, 5, 6, 4, 7]
    assert "2 episodes whose video and qpos differ in length" in caplog.text
    assert "qpos/11.pt: expected 6 rows, found 8" in caplog.text
    assert np.array_equal(dataset.rows(3).state, table(11, 6)) and len(dataset.rows(4).state) == 4


def test_embeddings_are_only_counted(root, caplog):
    write(root / "clean" / "stack_bowls", 11, 4, lines=3, umt5=2)
    with caplog.at_level(logging.INFO):
        assert len(opened(root).episodes) == 5
    assert "stored text embeddings are not used" in caplog.text
    assert "1 episodes whose embeddings are not one for each line of text" in caplog.text
    assert "umt5_wan/11.pt: expected 3, found 2" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        opened(root, check_embeddings=False)
    assert "embeddings" not in caplog.text


def test_faults_inside_an_episode(root):
    dataset = opened(root)
    file = root / "clean" / "stack_bowls" / "qpos" / "2.pt"
    bad = table(2, 9)
    bad[4, 1] = np.inf
    torch_fixture.save(file, bad)
    line = complaint(lambda: dataset.rows(1), BrokenData)
    assert line.startswith("state of episode 1") and line.endswith("NaN or inf in row 4")
    torch_fixture.save(file, table(2, 3))
    line = complaint(lambda: dataset.rows(1), BrokenData)
    assert "qpos of episode 1" in line and "expected at least 9 rows of 14 numbers; found shape (3, 14)" in line
    torch_fixture.save(file, [bad, bad])
    assert "expected one tensor" in complaint(lambda: dataset.rows(1), BrokenData)
    file.write_bytes(b"no archive")
    assert "expected the zip format of torch.save" in complaint(lambda: dataset.rows(1), BrokenData)
    file.unlink()
    assert "no such file" in complaint(lambda: dataset.rows(1), BrokenData)
    video = root / "clean" / "stack_bowls" / "videos" / "2.mp4"
    video.unlink()
    assert "found no such file" in complaint(lambda: dataset.frames(1, "tiled", [0]), BrokenData)
    assert len(dataset.rows(0).state) == 12


def test_widths(tmp_path):
    write(tmp_path / "a" / "task", 0, 4, width=7)
    dataset = opened(tmp_path / "a")
    assert dataset.state_names == tuple(f"joint {k}" for k in range(7))
    write(tmp_path / "a" / "task", 1, 4, width=14)
    line = complaint(lambda: opened(tmp_path / "a"))
    assert "expected tables of one width; found 7 numbers in" in line and "and 14 in" in line


def test_latent_actions(latents):
    dataset = opened(latents, "motus_latent", robot="human")
    assert [e.length for e in dataset.episodes] == [7, 4, 5]  # one less than pictures
    assert (dataset.state_dim, dataset.action_dim, dataset.latent_dim, dataset.robot) == (0, 0, 14, "human")
    rows = dataset.rows(0)
    assert np.array_equal(rows.latent, table(0, 7)) and rows.state.shape == rows.action.shape == (7, 0)
    assert dataset.fps == 30 and np.allclose(dataset.rows(2).times, np.arange(5) / 10)
    assert np.array_equal(dataset.times(2), dataset.rows(2).times)
    frames = dataset.frames(2, "tiled", [4, 1]).astype(float)
    assert np.abs(frames[:, 8:56, 8:88].mean((1, 2, 3)) - [40 + 4 * STEP, 40 + STEP]).max() < STEP / 2
    assert dataset.texts(2) == ("stack bowl 2 way 0", "stack bowl 2 way 1")


def test_one_picture_has_no_latent_action(latents, caplog):
    write(latents / "part" / "a", 3, 1, rows=1, folder="latent_action_dim14")
    with caplog.at_level(logging.WARNING):
        assert [e.length for e in opened(latents, "motus_latent").episodes] == [7, 4, 5]
    assert "expected more than 1 frames; found 1" in caplog.text


def test_folders_of_another_layout(latents, tmp_path):
    line = complaint(lambda: opened(latents))
    assert "expected folders with videos and qpos; found none" in line
    assert "found nothing there" in complaint(lambda: opened(tmp_path / "nowhere"))
    line = complaint(lambda: opened(latents, "motus_latent", prefix="drop"))
    assert "option prefix: expected one of strip, keep; found 'drop'" in line
    assert "option fps" in complaint(lambda: opened(latents, "motus_latent", fps=-3))
