"""The video VAE: ours against diffusers' `AutoencoderKLWan`, same weights, video and cores, float32.

  python -m benchmarks.video_vae --size=small --out=benchmarks/results/NAME.json

Needs PyTorch and diffusers (`pip install torch==2.13.0 diffusers==0.42.0`). Each side is a process of its own with as
many threads as cores; they take turns, encoding and decoding the clip once a turn, in alternating order, and one waits
while the other computes. A pair is two neighbouring turns; its ratio is diffusers' time over ours. Where
`other_cores`, the cores kept busy by other processes meanwhile, is not near 0, trust the processor times more than the
wall times.
"""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from absl import flags
from scipy import stats

from benchmarks.machine import busy_seconds, cpu_model
from motus_jax import cli
from motus_jax.errors import UserError
from motus_jax.models.video_vae import VideoVaeConfig

SIDES, WAYS = ("jax", "torch"), ("encode", "decode")
CONFIDENCE = 0.95
SMALL = VideoVaeConfig(width=32, decoder_width=48, channels=16, latent_mean=(0.0,) * 16, latent_std=(1.0,) * 16)
SIZES = {"small": (SMALL, (1, 9, 64, 96, 3)), "release": (VideoVaeConfig(), (1, 5, 192, 160, 3))}
"""Word -> network and video [B, T, H, W, 3]; `release` has the release's widths."""
SIZE = flags.DEFINE_enum("size", "small", list(SIZES), "network and video")
OUT = flags.DEFINE_string("out", None, "JSON file to write")
CORES = flags.DEFINE_integer("cores", 2, "cores and threads of each side")
PAIRS = flags.DEFINE_integer("pairs", 8, "pairs of turns")
SIDE = flags.DEFINE_enum("side", None, SIDES, "set by the benchmark itself: be one side, obeying standard input")


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark, or one side of it."""
    cli.parse_flags(argv, __doc__)
    if SIDE.value:
        serve(*_side(SIDE.value))
        return
    if OUT.value is None:
        raise UserError("--out: missing; give the JSON file to write, e.g. --out=benchmarks/results/video_vae.json")
    available = sorted(os.sched_getaffinity(0))
    if len(available) < CORES.value:
        raise UserError(f"--cores: expected at most the {len(available)} cores of this process, found {CORES.value}")
    report = measure([*argv[1:]], set(available[: CORES.value]))
    path = pathlib.Path(OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({way: {name: report[way][name] for name in ("median_s", "ratio", "cpu_ratio")} for way in WAYS}))


def _side(side: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What encodes and what decodes; both sides have the weights that PyTorch draws."""
    import torch

    torch.set_num_threads(CORES.value)
    config, shape = SIZES[SIZE.value]
    model = _diffusers_model(config)
    video = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    return _jax_side(config, model, video) if side == "jax" else _torch_side(model, video)


def _diffusers_model(config: VideoVaeConfig) -> Any:
    import diffusers
    import torch

    torch.manual_seed(0)
    return diffusers.AutoencoderKLWan(
        base_dim=config.width, decoder_base_dim=config.decoder_width, z_dim=config.channels,
        dim_mult=list(config.multipliers), num_res_blocks=config.blocks, temperal_downsample=list(config.temporal),
        latents_mean=list(config.latent_mean), latents_std=list(config.latent_std), is_residual=True,
        in_channels=3 * config.patch**2, out_channels=3 * config.patch**2, patch_size=config.patch,
        scale_factor_spatial=config.pixels,
    ).eval()  # fmt: skip


def _torch_side(model: Any, video: np.ndarray) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import torch

    clip = torch.tensor(video).permute(0, 4, 1, 2, 3).contiguous()
    encode = torch.inference_mode()(lambda: model.encode(clip).latent_dist.mode())
    latents = encode()
    return encode, torch.inference_mode()(lambda: model.decode(latents).sample)


def _jax_side(config: VideoVaeConfig, model: Any, video: np.ndarray) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import jax

    from motus_jax.models.video_vae import VideoVae
    from motus_jax.weights import wan_vae
    from motus_jax.weights.name_map import to_tree

    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    params = jax.device_put(to_tree(state, wan_vae.rules(config, wan_vae.DIFFUSERS), 0))
    vae, clip = VideoVae(config), jax.device_put(video)
    latents = vae.encode(params, clip)
    return (
        lambda: vae.encode(params, clip).block_until_ready(),
        lambda: vae.decode(params, latents).block_until_ready(),
    )


def serve(*functions: Callable[[], Any]) -> None:
    """One side: answers each line of standard input with the times of one turn, as JSON."""
    for function in functions * 2:
        function()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps({way: turn(function) for way, function in zip(WAYS, functions, strict=True)}), flush=True)


def turn(function: Callable[[], Any]) -> dict[str, float]:
    """Wall and processor time of a call [s], and cores kept busy by other processes meanwhile."""
    busy, cpu, wall = busy_seconds(), time.process_time(), time.perf_counter()
    function()
    spent, total = time.process_time() - cpu, time.perf_counter() - wall
    return {"wall_s": total, "cpu_s": spent, "other_cores": max(0.0, busy_seconds() - busy - spent) / total}


def measure(arguments: list[str], cores: set[int]) -> dict[str, Any]:
    """Runs both sides in turns and sums up."""
    os.sched_setaffinity(0, cores)  # Inherited by the sides.
    processes = {side: _start(side, arguments) for side in SIDES}
    try:
        for side in SIDES:
            _answer(processes[side], side)
        pairs = [
            {side: _ask(processes[side], side) for side in (SIDES if i % 2 == 0 else SIDES[::-1])}
            for i in range(PAIRS.value)
        ]
    finally:
        for process in processes.values():
            process.stdin.close()
            process.wait()
    config, shape = SIZES[SIZE.value]
    return {
        "what": "Wan2.2 video VAE, encode and decode of one clip; float32, compiled beforehand",
        "sizes": {"width": config.width, "decoder_width": config.decoder_width, "video": list(shape)},
        "machine": {"cpu": cpu_model(), "cores": len(cores)},
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "torch", "diffusers")}
        | {"python": platform.python_version()},
        **{way: dict(_summary(way, pairs)) for way in WAYS},
        "pairs": pairs,
    }


def _summary(way: str, pairs: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name in ("wall_s", "cpu_s", "other_cores"):
        medians = {side: statistics.median(pair[side][way][name] for pair in pairs) for side in SIDES}
        yield {"wall_s": "median_s", "cpu_s": "median_cpu_s"}.get(name, name), medians
    for name, source in (("ratio", "wall_s"), ("cpu_ratio", "cpu_s")):
        yield name, _ratio([pair[side][way][source] for side in SIDES] for pair in pairs)


def _ratio(times: Any) -> dict[str, float]:
    """Geometric mean of diffusers' time over ours, with its 95 % t interval over pairs."""
    logs = np.array([np.log(torch_time / jax_time) for jax_time, torch_time in times])
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    return {name: float(np.exp(value)) for name, value in
            (("torch_over_jax", logs.mean()), ("low", logs.mean() - half), ("high", logs.mean() + half))}  # fmt: skip


def _start(side: str, arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": str(CORES.value), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.video_vae", *arguments, f"--side={side}"]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(process: subprocess.Popen, side: str) -> dict[str, Any]:
    process.stdin.write("turn\n")
    process.stdin.flush()
    return json.loads(_answer(process, side))


def _answer(process: subprocess.Popen, side: str) -> str:
    line = process.stdout.readline()
    if not line:
        raise UserError(f"the {side} side ended with exit code {process.wait()}; its error stands above")
    return line


if __name__ == "__main__":
    cli.run(main)
