"""A tiny LeRobot dataset written in a few lines, v3.0 or v2.1, with numbers that a test can predict.

State k of episode e at row t is `value(e, t, k)`; the action of row t is the state of row t + 1. Pictures are flat
grey, brighter with t, each camera with its own offset, so that a decoded frame tells which row it is.
"""

import json
import pathlib

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
    tables = [_table(e, length, dim, fps) for e, length in enumerate(lengths)]
    keys = {f"observation.images.{name}": size for name, size in cameras.items()}
    v3 = version == "v3.0"
    info = {
        "codebase_version": version, "robot_type": "test", "fps": fps, "splits": splits, "chunks_size": 1000,
        "total_episodes": len(lengths), "total_frames": sum(lengths),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet" if v3
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4" if v3
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "observation.state": {"dtype": "float32", "shape": [dim], "names": [f"joint_{k}" for k in range(dim)]},
            "action": {"dtype": "float32", "shape": [dim], "names": None},
            **{key: {"dtype": "video", "shape": [*size, 3], "names": ["height", "width", "channels"]}
               for key, size in keys.items()},
        },
    }  # fmt: skip
    meta = path / "meta"
    meta.mkdir(parents=True)
    (meta / "info.json").write_text(json.dumps(info))
    (_write_v3 if v3 else _write_v2)(path, tables, keys, fps)
    return path


def _write_v3(path, tables, keys, fps) -> None:
    tasks = {"task_index": list(range(len(TASKS))), "__index_level_0__": list(TASKS)}
    pq.write_table(pa.table(tasks), path / "meta" / "tasks.parquet")
    (path / "data" / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables), path / "data" / "chunk-000" / "file-000.parquet")
    rows, begin = [], 0
    for e, table in enumerate(tables):
        row = {"episode_index": e, "tasks": [TASKS[e % 2]], "length": len(table)}
        row |= {"data/chunk_index": 0, "data/file_index": 0, "stats/action/min": [0.0]}
        for key in keys:
            row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": 0}
            row |= {f"videos/{key}/from_timestamp": begin / fps}
        rows.append(row)
        begin += len(table)
    (path / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    levels = [t for table in tables for t in range(len(table))]
    for camera, (key, size) in enumerate(keys.items()):
        _write_video(path / "videos" / key / "chunk-000" / "file-000.mp4", camera, levels, size, fps)


def _write_v2(path, tables, keys, fps) -> None:
    meta = path / "meta"
    lines = [{"episode_index": e, "tasks": [TASKS[e % 2]], "length": len(table)} for e, table in enumerate(tables)]
    (meta / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"task_index": k, "task": task} for k, task in enumerate(TASKS)]
    (meta / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "data" / "chunk-000").mkdir(parents=True)
    for e, table in enumerate(tables):
        pq.write_table(table, path / "data" / "chunk-000" / f"episode_{e:06d}.parquet")
        for camera, (key, size) in enumerate(keys.items()):
            file = path / "videos" / "chunk-000" / key / f"episode_{e:06d}.mp4"
            _write_video(file, camera, range(len(table)), size, fps)


def _table(episode: int, length: int, dim: int, fps: int) -> pa.Table:
    states = np.array([[value(episode, t, k) for k in range(dim)] for t in range(length + 1)], np.float32)
    column = lambda values: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dim)  # noqa: E731
    return pa.table(
        {
            "observation.state": column(states[:-1]),
            "action": column(states[1:]),
            "timestamp": pa.array(np.arange(length, dtype=np.float32) / fps),
            "frame_index": pa.array(np.arange(length)),
            "episode_index": pa.array(np.full(length, episode)),
            "task_index": pa.array(np.full(length, episode % 2)),
        }
    )


def _write_video(path: pathlib.Path, camera: int, rows, size, fps: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "g": "12", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for row in rows:
            picture = np.full((*size, 3), grey(camera, row), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
