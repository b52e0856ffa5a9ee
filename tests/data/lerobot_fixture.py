"""A tiny LeRobot dataset with numbers that a test can predict: v3.0 by our writer, v2.1 in a few lines here.

State k of episode e at row t is `value(e, t, k)`; the action of row t is the state of row t + 1. Pictures are flat
grey, brighter with t, each camera with its own offset, so that a decoded frame tells which row it is.
"""

import json
import pathlib

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from motus_jax.data.lerobot_writer import LeRobotWriter

LENGTHS = (30, 41, 26, 35, 12)
CAMERAS = {"top": (72, 96), "left_wrist": (36, 48), "right_wrist": (36, 48)}
TASKS = ("lift the cube", "insert the peg")


def value(episode: int, row: int, dim: int) -> float:
    """State: every dim moves at its own pace."""
    return float(np.float32(0.1 * dim + 0.01 * episode + 0.02 * (dim + 1) * row))


def grey(camera: int, row: int) -> int:
    """Brightness of a picture."""
    return 40 + 4 * row + 8 * camera


def write(
    path: pathlib.Path,
    version: str = "v3.0",
    lengths=LENGTHS,
    cameras=CAMERAS,
    dim: int = 14,
    fps: int = 10,
    splits=None,
) -> pathlib.Path:
    """Writes the dataset and returns its folder."""
    splits = splits or {"train": f"0:{len(lengths) - 1}", "test": f"{len(lengths) - 1}:{len(lengths)}"}
    episodes = [_episode(e, length, cameras, dim) for e, length in enumerate(lengths)]
    names = tuple(f"joint_{k}" for k in range(dim))
    if version == "v3.0":
        facts = dict(fps=fps, robot_type="test", cameras=cameras, state_names=names, action_names=names)
        with LeRobotWriter(path, crf=10, **facts) as writer:
            for episode in episodes:
                writer.add_episode(**episode)
            writer.finish(splits)
    else:
        _write_v2(path, episodes, cameras, names, fps, splits)
    return path


def _episode(index: int, length: int, cameras: dict, dim: int) -> dict:
    states = np.array([[value(index, t, k) for k in range(dim)] for t in range(length + 1)], np.float32)
    frames = {
        name: np.stack([np.full((*size, 3), grey(camera, t), np.uint8) for t in range(length)])
        for camera, (name, size) in enumerate(cameras.items())
    }
    return {"state": states[:-1], "action": states[1:], "frames": frames, "task": TASKS[index % 2]}


def _write_v2(
    path: pathlib.Path, episodes: list[dict], cameras: dict, names: tuple[str, ...], fps: int, splits
) -> None:
    keys = {f"observation.images.{name}": size for name, size in cameras.items()}
    pictures = {
        key: {"dtype": "video", "shape": [*size, 3], "names": ["height", "width", "channels"]}
        for key, size in keys.items()
    }
    info = {
        "codebase_version": "v2.1",
        "robot_type": "test",
        "fps": fps,
        "splits": splits,
        "chunks_size": 1000,
        "total_episodes": len(episodes),
        "total_frames": sum(len(episode["state"]) for episode in episodes),
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "observation.state": {"dtype": "float32", "shape": [len(names)], "names": {"motors": list(names)}},
            "action": {"dtype": "float32", "shape": [len(names)], "names": None},
            **pictures,
        },
    }
    (path / "meta").mkdir(parents=True)
    (path / "meta" / "info.json").write_text(json.dumps(info))
    lines = [{"task_index": k, "task": task} for k, task in enumerate(TASKS)]
    (path / "meta" / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"episode_index": e, "tasks": [x["task"]], "length": len(x["state"])} for e, x in enumerate(episodes)]
    (path / "meta" / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "data" / "chunk-000").mkdir(parents=True)
    for index, episode in enumerate(episodes):
        pq.write_table(_table(index, episode), path / "data" / "chunk-000" / f"episode_{index:06d}.parquet")
        for key, frames in zip(keys, episode["frames"].values()):
            _write_video(path / "videos" / "chunk-000" / key / f"episode_{index:06d}.mp4", frames, fps)


def _table(index: int, episode: dict) -> pa.Table:
    length, dim = episode["state"].shape
    columns = {"observation.state": episode["state"], "action": episode["action"]}
    return pa.table(
        {key: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dim) for key, values in columns.items()}
        | {"episode_index": np.full(length, index), "task_index": np.full(length, index % 2)}
    )


def _write_video(path: pathlib.Path, frames: np.ndarray, fps: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "g": "12", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
