"""Training step of the experts: ours against plain PyTorch, on the same cores and batch, both with AdamW.

  python -m benchmarks.train_step --config=experiments/demo.py --out=benchmarks/results/NAME.json

Needs PyTorch (`pip install torch==2.13.0`). Each side is a process of its own, bound to the same cores with as many
threads; they take turns in blocks of steps, in alternating order, and one waits while the other computes. A pair is
two neighbouring blocks; the ratio of a pair is PyTorch's time over ours. Work of other processes during a block is
measured too (`other_cores`): where it is not near 0, trust the processor times more than the wall times.
"""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
from absl import flags
from scipy import stats

from benchmarks.machine import busy_seconds, cpu_model
from motus_jax import cli
from motus_jax.errors import UserError

SIDES = ("jax", "torch")
SETTINGS = {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Of both sides; large pages as `launch/environment.sh` has them."""
CONFIDENCE = 0.95
CONFIG = cli.define_config()
OUT = flags.DEFINE_string("out", None, "JSON file to write")
CORES = flags.DEFINE_integer("cores", 2, "cores and threads of each side")
PAIRS = flags.DEFINE_integer("pairs", 8, "pairs of blocks")
STEPS = flags.DEFINE_integer("block_steps", 5, "steps in a block")
SIDE = flags.DEFINE_enum("side", None, SIDES, "set by the benchmark itself: be one side, obeying standard input")


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark, or one side of it."""
    cli.parse_flags(argv, __doc__)
    if CONFIG.value is None:
        raise UserError("--config: missing; give an experiment file, e.g. --config=experiments/demo.py")
    if SIDE.value:
        serve(SIDE.value)
        return
    if OUT.value is None:
        raise UserError("--out: missing; give the JSON file to write, e.g. --out=benchmarks/results/train_step.json")
    available = sorted(os.sched_getaffinity(0))
    if len(available) < CORES.value:
        raise UserError(f"--cores: expected at most the {len(available)} cores of this process, found {CORES.value}")
    report = measure([*argv[1:]], set(available[: CORES.value]))
    path = pathlib.Path(OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({name: report[name] for name in ("median_step_s", "ratio", "cpu_ratio")}, indent=1))


def serve(side: str) -> None:
    """One side: builds its step, then answers each line of standard input with the times of one block, as JSON."""
    from benchmarks import experts

    batch = experts.make_batch(CONFIG.value)
    if side == "torch":
        import torch

        from benchmarks import torch_step

        torch.set_num_threads(CORES.value)
        step = torch_step.make_step(CONFIG.value, batch)
    else:
        step = experts.make_step(CONFIG.value, batch)
    for _ in range(2):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(block(step)), flush=True)


def block(step: Any) -> dict[str, Any]:
    """Wall time of every step [s], processor time a step [s], cores kept busy by other processes meanwhile."""
    busy, cpu, walls = busy_seconds(), time.process_time(), [time.perf_counter()]
    for _ in range(STEPS.value):
        step()
        walls.append(time.perf_counter())
    spent, total = time.process_time() - cpu, walls[-1] - walls[0]
    others = max(0.0, busy_seconds() - busy - spent) / total
    return {"wall_s": np.diff(walls).tolist(), "cpu_s": spent / STEPS.value, "other_cores": others}


def measure(arguments: list[str], cores: set[int]) -> dict[str, Any]:
    """Runs both sides in turns and sums up."""
    os.sched_setaffinity(0, cores)  # Inherited by the sides.
    processes = {side: _start(side, arguments) for side in SIDES}
    try:
        for side in SIDES:
            _answer(processes[side], side)
        pairs = []
        for i in range(PAIRS.value):
            order = SIDES if i % 2 == 0 else SIDES[::-1]
            pairs.append({side: _ask(processes[side], side) for side in order})
    finally:
        for process in processes.values():
            process.stdin.close()
            process.wait()
    return {
        "what": "training step of the three experts, encodings given: loss, gradient, clipping, AdamW, EMA; float32",
        "arguments": [argument for argument in arguments if not argument.startswith("--out")],
        "batch_size": CONFIG.value.batch_size,
        "settings": SETTINGS,
        "machine": {"cpu": cpu_model(), "cores": len(cores)},
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "torch")}
        | {"python": platform.python_version()},
        "median_step_s": {
            side: statistics.median(wall for pair in pairs for wall in pair[side]["wall_s"]) for side in SIDES
        },
        "ratio": _ratio([statistics.median(pair[side]["wall_s"]) for side in SIDES] for pair in pairs),
        "cpu_ratio": _ratio([pair[side]["cpu_s"] for side in SIDES] for pair in pairs),
        "other_cores": {side: statistics.median(pair[side]["other_cores"] for pair in pairs) for side in SIDES},
        "pairs": pairs,
    }


def _ratio(times: Any) -> dict[str, float]:
    """Geometric mean of PyTorch's time over ours, with its 95 % t interval over pairs."""
    logs = np.array([np.log(torch_time / jax_time) for jax_time, torch_time in times])
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    return {name: float(np.exp(value)) for name, value in
            (("torch_over_jax", logs.mean()), ("low", logs.mean() - half), ("high", logs.mean() + half))}


def _start(side: str, arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, **SETTINGS, "OMP_NUM_THREADS": str(CORES.value)}
    command = [sys.executable, "-m", "benchmarks.train_step", *arguments, f"--side={side}"]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(process: subprocess.Popen, side: str) -> dict[str, Any]:
    process.stdin.write("block\n")
    process.stdin.flush()
    return json.loads(_answer(process, side))


def _answer(process: subprocess.Popen, side: str) -> str:
    line = process.stdout.readline()
    if not line:
        raise UserError(f"the {side} side ended with exit code {process.wait()}; its error stands above")
    return line


if __name__ == "__main__":
    cli.run(main)
