"""How fast examples come: from stored features, and from mp4 files beside PyAV alone and lerobot's own reader.

  python -m benchmarks.data_loading --out=benchmarks/results/data_loading.json [--lerobot_python=PYTHON]

Features: those of `experiments/demo.py`, made on the fly; batches as training gets them. Videos: a LeRobot set of
224x224 pictures at 30 frames/s (h264, key frame every 12), from which random chunks of 9 frames at 5 frames/s are read
with nothing kept in memory. PyAV's side decodes exactly the same frames with as many threads and keeps the same
pictures, nothing else. lerobot's side is its `LeRobotDataset` with the same `delta_timestamps`, in torch's DataLoader
with as many workers and its default decoder (torchcodec where that is installed, which needs FFmpeg's libraries); it
runs under a Python that has it (`--lerobot_python`), on the same folder. The sides take turns.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import av
import numpy as np
from absl import flags
from av.video.reformatter import VideoReformatter

from benchmarks.machine import describe
from motus_jax import cli
from motus_jax.data.lerobot_writer import LeRobotWriter
from motus_jax.data.mixture import Mixture, make_mixture
from motus_jax.data.pipeline import make_iterator
from motus_jax.errors import UserError

SIZE, FPS, EPISODES, LENGTH = 224, 30, 24, 240
BATCH, FRAMES, HZ = 16, 9, 5.0
TURNS, SECONDS, WARM_UP = 5, 8.0, 8
CAMERA = "observation.images.top"
LEROBOT = """
import sys, time, json, torch
from torch import library
lib = library.Library("torchvision", "DEF")  # torchvision's C++ part may not fit the CPU build of torch
for name in ("nms(Tensor a, Tensor b, float c) -> Tensor", "qnms(Tensor a, Tensor b, float c) -> Tensor"):
    lib.define(name)
from lerobot.datasets.lerobot_dataset import LeRobotDataset
root, camera, frames, hz, batch, workers, seconds, warm_up = json.loads(sys.argv[1])
data = LeRobotDataset("local/set", root=root, delta_timestamps={camera: [k / hz for k in range(frames)]})
loader = torch.utils.data.DataLoader(data, batch_size=batch, shuffle=True, num_workers=workers, drop_last=True,
                                     persistent_workers=False)
from importlib import metadata
versions = {name: metadata.version(name) for name in ("lerobot", "torch", "torchcodec")}
print(json.dumps(versions | {"backend": data.video_backend}), flush=True)
for line in sys.stdin:
    for number, item in enumerate(loader):
        if number == warm_up:  # what the workers made ahead while they started would count for nothing
            found, begun = 0, time.monotonic()
        elif number > warm_up:
            found += len(item[camera])
            if time.monotonic() - begun > seconds:
                break
    print(json.dumps(found / (time.monotonic() - begun)), flush=True)
"""


def main(argv: Sequence[str]) -> None:
    """Measures and writes the report."""
    out_flag = flags.DEFINE_string("out", None, "JSON file to write")
    python_flag = flags.DEFINE_string("lerobot_python", None, "a Python with lerobot; without it that side is left out")
    cores_flag = flags.DEFINE_integer("cores", 2, "cores, threads and workers of each side")
    cli.parse_flags(argv, __doc__)
    if out_flag.value is None:
        raise UserError("--out: missing; give the JSON file to write")
    cores = sorted(os.sched_getaffinity(0))[: cores_flag.value]
    os.sched_setaffinity(0, cores)
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "machine": describe(len(cores)),
            "versions": {name: metadata.version(name) for name in ("av", "grain", "array-record", "numpy")},
            "features": features(pathlib.Path(folder), len(cores)),
            "mp4": videos(pathlib.Path(folder), len(cores), python_flag.value),
        }
    path = pathlib.Path(out_flag.value)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def features(folder: pathlib.Path, cores: int) -> dict[str, Any]:
    """Examples a second from record files of features, and how many the demo needs."""
    from experiments import demo
    from motus_jax.data.features import Features, encoder_settings

    where = folder / "features"
    command = [sys.executable, "-m", "motus_jax.data", "encode", "--config=experiments/demo.py", f"--out={where}"]
    subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, stdout=sys.stderr)
    config = demo.get_config()
    config.data.threads = cores
    stored = Features(where, encoder_settings(config.model), 2**28)
    mixture = make_mixture(config.data, "train", features={"data": stored})
    rates = [rate(make_iterator(mixture, BATCH, seed)) for seed in range(TURNS)]
    return {"examples_per_second": float(np.median(rates)), "turns": rates}


def rate(batches: Any, seconds: float = SECONDS) -> float:
    """Examples a second, after a start."""
    for _ in range(20):
        next(batches)
    begun, found = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        found += len(next(batches)["episode"])
    passed = time.monotonic() - begun
    batches.close()
    return found / passed


def videos(folder: pathlib.Path, cores: int, python: str | None) -> dict[str, Any]:
    """Clips a second of each side, in turns."""
    where = write_set(folder / "set")
    settings = {
        "path": str(where), "cameras": ("top",), "image_size": (SIZE, SIZE), "cache_gib": 0.0, "threads": cores,
        "video_hz": HZ, "video_frames": FRAMES - 1, "chunk": 16, "action_hz": 10.0, "state_dim": 14, "action_dim": 14,
    }  # fmt: skip
    mixture = make_mixture(settings, "train")
    sides: dict[str, Callable[[int], float]] = {
        "ours": lambda turn: rate(make_iterator(mixture, BATCH, turn)),
        "pyav": lambda turn: pyav_rate(mixture, cores, turn),
    }
    versions = {}
    if python:
        sides["lerobot"], versions = _lerobot(python, where, cores)
    turns = [{name: side(turn) for name, side in sides.items()} for turn in range(TURNS)]
    median = {name: float(np.median([turn[name] for turn in turns])) for name in sides}
    return {
        "clips_per_second": median,
        "frames_per_second": {name: FRAMES * value for name, value in median.items()},
        "ours_over": {name: float(np.median([t["ours"] / t[name] for t in turns])) for name in sides if name != "ours"},
        "turns": turns,
        **({"lerobot": versions} if versions else {}),
    }


def write_set(path: pathlib.Path) -> pathlib.Path:
    """Moving, textured pictures: flat ones would decode faster than real ones."""
    rng = np.random.default_rng(0)
    canvas = rng.integers(0, 256, (80, 80, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    names = tuple(f"joint_{k}" for k in range(14))
    facts = dict(fps=FPS, robot_type="test", cameras={"top": (SIZE, SIZE)}, state_names=names, action_names=names)
    with LeRobotWriter(path, crf=22, **facts) as writer:
        for _ in range(EPISODES):
            way = np.cumsum(rng.integers(-3, 4, (LENGTH, 2)), 0) % (canvas.shape[0] - SIZE)
            frames = np.stack([canvas[y : y + SIZE, x : x + SIZE] for y, x in way])
            numbers = rng.normal(size=(LENGTH, 14)).astype(np.float32)
            writer.add_episode(state=numbers, action=numbers, frames={"top": frames}, task="move")
        writer.finish({"train": f"0:{EPISODES - 2}", "test": f"{EPISODES - 2}:{EPISODES}"})
    return path


def pyav_rate(mixture: Mixture, cores: int, seed: int) -> float:
    """Clips a second of decoding alone: the same frames, with nothing around it."""
    dataset = mixture.primary
    order = np.random.default_rng(seed).integers(0, len(dataset), 100_000)

    def clip(chunk: int) -> list[np.ndarray]:
        episode, row = dataset.place(int(chunk))
        wanted = set(dataset.timing.frame_rows(row, dataset.source.times(episode)).tolist())
        path, begin = dataset.source.episode(episode).videos[CAMERA]
        first, found = round(begin * FPS), []
        with av.open(os.fspath(path)) as container:
            stream, to_rgb = container.streams.video[0], VideoReformatter()  # the fastest way that PyAV has
            stream.thread_type = "NONE"
            container.seek(int((first + row) / FPS / stream.time_base), stream=stream, backward=True)
            for frame in container.decode(stream):
                number = round(float(frame.pts * stream.time_base) * FPS) - first
                if number in wanted:
                    found.append(to_rgb.reformat(frame, format="rgb24").to_ndarray())
                if number >= max(wanted):
                    return found
        return found

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(clip, order[:40]))
        begun, done = time.monotonic(), 40
        while time.monotonic() - begun < SECONDS:
            done += len(list(pool.map(clip, order[done : done + 40])))
        return (done - 40) / (time.monotonic() - begun)


def _lerobot(python: str, where: pathlib.Path, cores: int) -> tuple[Callable[[int], float], dict[str, str]]:
    arguments = json.dumps([str(where), CAMERA, FRAMES, HZ, BATCH, cores, SECONDS, WARM_UP])
    command = [python, "-c", LEROBOT, arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if not (line := process.stdout.readline()).startswith("{"):
        raise UserError(f"--lerobot_python={python}: expected it to open the set; found {line!r} (its error is above)")

    def side(turn: int) -> float:
        process.stdin.write(f"{turn}\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    return side, json.loads(line)


if __name__ == "__main__":
    cli.run(main)
