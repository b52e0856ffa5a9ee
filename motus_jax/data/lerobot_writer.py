"""Writer of LeRobot v3.0 datasets with pyarrow and PyAV only.

The layout is that of the lerobot library's own v3.0 writer: one parquet row group an episode, the episodes of a camera
one after another in mp4 files, and meta tables that say where each begins. Pictures' statistics are in 0..1.
"""

import json
import pathlib
import shutil
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, UInt8

from motus_jax.data.feature_statistics import FeatureStatistics
from motus_jax.errors import UserError

CODEBASE_VERSION = "v3.0"
FILES_PER_CHUNK = 1000
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
IMAGE_PREFIX = "observation.images."
INDEX_COLUMNS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
# Every episode starts with a keyframe; with the encoder's default of 250 a long one would be slow to read at random.
KEYFRAME_INTERVAL = 24


class LeRobotWriter:
    """Writes episodes one by one; the dataset appears under `path` only when `finish` has succeeded.

    Use as a context manager: leaving it without `finish` removes what was written.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        *,
        fps: int,
        robot_type: str,
        cameras: dict[str, tuple[int, int]],
        state_names: tuple[str, ...],
        action_names: tuple[str, ...],
        crf: int = 22,
    ):
        """Prepares a temporary folder beside `path`.

        Args:
          path: folder of the new dataset; must not exist.
          fps: rows and frames per second.
          robot_type: word for `meta/info.json`.
          cameras: (height, width) in pixels by short name ("top"); both even, as yuv420p needs.
          state_names: one name a dimension of `observation.state`.
          action_names: one name a dimension of `action`.
          crf: quality of h264, lower is better and larger.

        Raises:
          UserError: `path` exists, or a camera's size is odd.
        """
        self.path = pathlib.Path(path)
        self._refuse_existing()
        for name, (height, width) in cameras.items():
            if height % 2 or width % 2:
                raise UserError(f"camera {name}: expected an even height and width, found {height}x{width}")
        self.fps, self.robot_type, self.crf = fps, robot_type, crf
        self.cameras = {IMAGE_PREFIX + name: size for name, size in cameras.items()}
        self._vectors = {"observation.state": state_names, "action": action_names}
        self._folder = self.path.with_name(f".{self.path.name}.writing")
        shutil.rmtree(self._folder, ignore_errors=True)
        (self._folder / "meta").mkdir(parents=True)
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._total = FeatureStatistics()
        self._rows = 0
        self._table = _TableFiles(self._folder, self._schema())
        self._videos = {key: _VideoFiles(self._folder, key, size, fps, crf) for key, size in self.cameras.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def episodes(self) -> int:
        """Episodes written so far."""
        return len(self._episodes)

    def add_episode(
        self,
        *,
        state: Float[np.ndarray, "T P"],
        action: Float[np.ndarray, "T A"],
        frames: dict[str, UInt8[np.ndarray, "T H W 3"]],
        task: str,
    ) -> None:
        """Appends an episode.

        Args:
          state: measured state at row t.
          action: command issued at row t.
          frames: pictures at row t by camera's short name.
          task: the instruction.

        Raises:
          UserError: shapes that contradict each other or the dataset's; nothing of the episode is written.
        """
        pictures = {IMAGE_PREFIX + name: video for name, video in frames.items()}
        self._check(state, action, pictures)
        length, index = len(state), len(self._episodes)
        task_index = self._tasks.setdefault(task, len(self._tasks))
        frame_index = np.arange(length, dtype=np.int64)
        columns = {
            "observation.state": state.astype(np.float32),
            "action": action.astype(np.float32),
            "timestamp": (frame_index / self.fps).astype(np.float32),
            "frame_index": frame_index,
            "episode_index": np.full(length, index, np.int64),
            "index": self._rows + frame_index,
            "task_index": np.full(length, task_index, np.int64),
        }
        statistics = FeatureStatistics()
        for key, values in (columns | pictures).items():
            statistics.add(key, values)
            self._total.add(key, values)
        row: dict[str, Any] = {"episode_index": index, "tasks": [task], "length": length}
        row |= {f"data/{name}": value for name, value in self._table.append(columns).items()}
        row |= {"dataset_from_index": self._rows, "dataset_to_index": self._rows + length}
        for key, video in pictures.items():
            row |= {f"videos/{key}/{name}": value for name, value in self._videos[key].append(video).items()}
        for key, named in statistics.summary().items():
            row |= {f"stats/{key}/{name}": value for name, value in named.items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        self._episodes.append(row)
        self._rows += length

    def finish(self, splits: dict[str, str]) -> None:
        """Writes the meta files and moves the dataset to its place.

        Args:
          splits: ranges of episodes by name, e.g. {"train": "0:240", "test": "240:288"}.

        Raises:
          UserError: no episodes, or `path` has come to exist meanwhile.
        """
        if not self._episodes:
            raise UserError(f"{self.path}: expected at least one episode to write, found none")
        self._close()
        meta = self._folder / "meta"
        (meta / "info.json").write_text(json.dumps(self._info(splits), indent=4) + "\n")
        (meta / "stats.json").write_text(json.dumps(self._total.summary(), indent=4) + "\n")
        pq.write_table(_task_table(self._tasks), meta / "tasks.parquet")
        file = meta / "episodes" / "chunk-000" / "file-000.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._episodes), file, compression="zstd")
        self._refuse_existing()
        self._folder.rename(self.path)

    def _refuse_existing(self) -> None:
        if self.path.exists():
            raise UserError(
                f"{self.path}: expected a new folder for the dataset, found an existing one; remove it first"
            )

    def _check(self, state: np.ndarray, action: np.ndarray, pictures: dict[str, np.ndarray]) -> None:
        for key, values in (("observation.state", state), ("action", action)):
            expected = (len(state), len(self._vectors[key]))
            if values.shape != expected or not len(values):
                raise UserError(f"episode {self.episodes}: expected {key} of shape {expected}, found {values.shape}")
            if not np.isfinite(values).all():
                raise UserError(f"episode {self.episodes}: expected finite {key}, found nan or infinity")
        if set(pictures) != set(self.cameras):
            raise UserError(
                f"episode {self.episodes}: expected frames of {sorted(self.cameras)}, found {sorted(pictures)}"
            )
        for key, video in pictures.items():
            expected = (len(state), *self.cameras[key], 3)
            if video.shape != expected or video.dtype != np.uint8:
                raise UserError(
                    f"episode {self.episodes}: expected {key} uint8 {expected}, found {video.dtype} {video.shape}"
                )

    def _close(self) -> None:
        self._table.close()
        for files in self._videos.values():
            files.close()

    def _schema(self) -> pa.Schema:
        """Columns of the data tables, with the description that the `datasets` library stores and reads."""
        fields, described = [], {}
        for key, names in self._vectors.items():
            fields.append(pa.field(key, pa.list_(pa.float32(), len(names))))
            described[key] = {
                "feature": {"dtype": "float32", "_type": "Value"}, "length": len(names), "_type": "List"
            }  # fmt: skip
        for key, dtype in INDEX_COLUMNS.items():
            fields.append(pa.field(key, pa.type_for_alias(dtype)))
            described[key] = {"dtype": dtype, "_type": "Value"}
        return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": described}})})

    def _info(self, splits: dict[str, str]) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for key, names in self._vectors.items():
            features[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
        for key, (height, width) in self.cameras.items():
            features[key] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "h264",
                    "video.pix_fmt": "yuv420p",
                    "video.is_depth_map": False,
                    "video.fps": self.fps,
                    "video.channels": 3,
                    "has_audio": False,
                },
            }
        features |= {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in INDEX_COLUMNS.items()}
        return {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": self.robot_type,
            "total_episodes": len(self._episodes),
            "total_frames": self._rows,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": self.fps,
            "splits": splits,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": features,
        }


def _task_table(tasks: dict[str, int]) -> pa.Table:
    """Task texts as the pandas index, which is where the lerobot library looks for them."""
    index = "__index_level_0__"
    column = {"numpy_type": "object", "pandas_type": "unicode", "metadata": None}
    pandas = {
        "index_columns": [index],
        "column_indexes": [{"name": None, "field_name": None} | column | {"metadata": {"encoding": "UTF-8"}}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64",
             "metadata": None},
            {"name": None, "field_name": index} | column,
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.3",
    }  # fmt: skip
    schema = pa.schema(
        [pa.field("task_index", pa.int64()), pa.field(index, pa.large_string())],
        metadata={"pandas": json.dumps(pandas)},
    )
    return pa.table({"task_index": list(tasks.values()), index: list(tasks)}, schema=schema)


class _Position:
    """Chunk and file number that count up together."""

    def __init__(self, limit_mb: int):
        self.file = -1
        self._limit = limit_mb * 2**20

    def next(self) -> None:
        self.file += 1

    def full(self, path: pathlib.Path) -> bool:
        # The encoder keeps the first frames to itself for a while; until then there is no file.
        return path.exists() and path.stat().st_size >= self._limit

    def indices(self) -> dict[str, int]:
        return {"chunk_index": self.file // FILES_PER_CHUNK, "file_index": self.file % FILES_PER_CHUNK}

    def path(self, folder: pathlib.Path, suffix: str) -> pathlib.Path:
        chunk, file = self.indices().values()
        path = folder / f"chunk-{chunk:03d}" / f"file-{file:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class _TableFiles:
    """The data tables: a row group an episode, a new file when one is full."""

    def __init__(self, folder: pathlib.Path, schema: pa.Schema):
        self._folder, self._schema = folder / "data", schema
        self._position = _Position(DATA_FILE_MB)
        self._writer: pq.ParquetWriter | None = None
        self._file = folder

    def append(self, columns: dict[str, np.ndarray]) -> dict[str, int]:
        if self._writer is None or self._position.full(self._file):
            self.close()
            self._position.next()
            self._file = self._position.path(self._folder, "parquet")
            # Joint values hardly repeat, so a dictionary would only add to the file; split bytes compress better.
            options = dict(compression="zstd", use_dictionary=False, use_byte_stream_split=True)
            self._writer = pq.ParquetWriter(self._file, self._schema, **options)
        arrays = [
            pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
            if values.ndim == 2
            else pa.array(values)
            for values in (columns[field.name] for field in self._schema)
        ]
        self._writer.write_table(pa.table(arrays, schema=self._schema))
        return self._position.indices()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _VideoFiles:
    """The videos of one camera: episodes one after another, a new file when one is full."""

    def __init__(self, folder: pathlib.Path, key: str, size: tuple[int, int], fps: int, crf: int):
        self._folder, self._size, self._fps, self._crf = folder / "videos" / key, size, fps, crf
        self._position = _Position(VIDEO_FILE_MB)
        self._container: av.container.OutputContainer | None = None
        self._file = folder
        self._frames = 0

    def append(self, video: UInt8[np.ndarray, "T H W 3"]) -> dict[str, int | float]:
        if self._container is None or self._position.full(self._file):
            self._open()
        begin = self._frames
        for picture in video:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts = self._frames
            if self._frames == begin:
                frame.pict_type = av.video.frame.PictureType.I
            self._container.mux(self._stream.encode(frame))
            self._frames += 1
        times = {"from_timestamp": begin / self._fps, "to_timestamp": self._frames / self._fps}
        return self._position.indices() | times

    def _open(self) -> None:
        self.close()
        self._position.next()
        self._file = self._position.path(self._folder, "mp4")
        self._container = av.open(str(self._file), "w", options={"movflags": "faststart"})
        options = {"crf": str(self._crf), "g": str(KEYFRAME_INTERVAL), "bf": "0", "preset": "veryslow"}
        # One thread: with more the encoder's output depends on the machine.
        options |= {"threads": "1"}
        self._stream = self._container.add_stream("libx264", rate=self._fps, options=options)
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = "yuv420p"
        self._frames = 0

    def close(self) -> None:
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._container = None
