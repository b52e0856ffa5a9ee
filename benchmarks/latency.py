"""Latency of the sampler: each switch's milliseconds, and how far its answers are from the exact ones.

  python -m benchmarks.latency --workdir=runs/demo --steps=10 --out=benchmarks/results/NAME.json
  python -m benchmarks.latency --config=experiments/phase3.py --random --torch --out=benchmarks/results/NAME.json

The first measures a trained run on held-out chunks. The second draws random weights of an experiment's sizes, which an
accelerator needs no download for; its distances say what rounding does, not what a trained model loses. `--depth=2`
shrinks it, `--torch` adds the same computation in eager PyTorch (`benchmarks/torch_loop.py`).

Rows take turns, call by call, on the same observations and noise. A call starts with arrays of the host and ends with
them: copying is part of it. `loop` is the straightforward sampler (`benchmarks/plain_loop.py`). Work of other processes
meanwhile is measured too (`other_cores`): where it is not near 0, trust the ratios more than the milliseconds.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import machine
from benchmarks.latency_picture import draw
from benchmarks.latency_subject import Subject, from_random, from_run
from benchmarks.plain_loop import make_plain_sampler
from motus_jax import cli
from motus_jax.data import run_path
from motus_jax.errors import UserError
from motus_jax.sampling import precision
from motus_jax.sampling.sampler import make_sampler
from motus_jax.sampling.settings import Settings
from motus_jax.train import set_up_jax

MODES = ("joint", "vla")
LOOP, EXACT, TORCH = "loop", "exact", "torch loop"
Result = Mapping[str, np.ndarray]
Call = Callable[[int], Result]


def define_flags() -> None:
    """The command line."""
    cli.define_config()
    flags.DEFINE_string("workdir", None, "a trained run to measure")
    flags.DEFINE_bool("random", False, "random weights of the sizes of --config")
    flags.DEFINE_integer("depth", 0, "with --random: layers of the experts (default: the experiment's)", lower_bound=0)
    flags.DEFINE_integer("unroll", 0, "with --random: layers compiled one after another (default: the experiment's)")
    flags.DEFINE_integer("steps", 10, "denoising steps of the exact sampler, of both modalities", lower_bound=2)
    flags.DEFINE_integer("calls", 200, "timed calls of each row", lower_bound=1)
    flags.DEFINE_integer("observations", 16, "different observations, on which distances are measured", lower_bound=1)
    flags.DEFINE_float("reuse", 0.1, "threshold of the rows that reuse velocities")
    flags.DEFINE_list("modes", list(MODES), "modes to measure")
    flags.DEFINE_list("rows", [], "rows to measure beside `loop` and `exact` (default: all)")
    flags.DEFINE_bool("torch", False, "also eager PyTorch; needs torch, and transformers where the run has Qwen3-VL")
    flags.DEFINE_string("out", None, "JSON file to write; a picture of the same name stands beside it")


def main(argv: Sequence[str]) -> None:
    """Measures and writes."""
    define_flags()
    cli.parse_flags(argv, __doc__)
    given = flags.FLAGS
    if given.out is None:
        raise UserError("--out: missing; give the JSON file to write, e.g. --out=benchmarks/results/latency.json")
    if bool(given.workdir) == bool(given.random) or (given.random and given.config is None):
        raise UserError("expected either --workdir=RUN or --random --config=FILE")
    set_up_jax(platform="")
    if given.workdir:
        subject = from_run(run_path.of(given.workdir), given.observations)
    else:
        subject = from_random(given.config, given.observations, depth=given.depth, scan_unroll=given.unroll)
    report, path = describe(subject, argv[1:]) | {"modes": {}}, pathlib.Path(given.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    for mode in given.modes:
        report["modes"][mode] = measure(subject, mode, given)
        print(table(mode, report["modes"][mode]), flush=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
    draw(report, path.with_suffix(".png"))


def switches(steps: int, reuse: float, dtype: str) -> dict[str, dict[str, Any]]:
    """Row -> what it changes of the exact sampler's settings."""
    low = {} if dtype == "bfloat16" else {"dtype": "bfloat16"}
    fewer = max(1, steps // 2)
    rows = {
        EXACT: {},
        "half the steps": {"video_steps": fewer, "action_steps": fewer},
        "fewer video steps": {"video_steps": max(1, steps // 5)},
        "reuse": {"reuse": reuse},
        "tail after half": {"action_tail": fewer},
        "tail after 2": {"action_tail": 2},
        "tail after 2 and reuse": {"action_tail": 2, "reuse": reuse},
        "half the steps and tail after 1": {"video_steps": fewer, "action_steps": fewer, "action_tail": 1},
        "bfloat16": low,
        "int8": {"weights": "int8"},
        "tail after 2 and int8": {"action_tail": 2, "weights": "int8"},
    }
    return {name: change for name, change in rows.items() if change or name == EXACT}


def measure(subject: Subject, mode: str, given: flags.FlagValues) -> dict[str, Any]:
    """All rows of a mode."""
    shift = subject.config.sampling.grid_shift
    exact = Settings(given.steps, given.steps, grid_shift=shift)
    chosen = switches(given.steps, given.reuse, subject.system.motus_config.dtype)
    wanted = given.rows or list(chosen)
    unknown = set(wanted) - set(chosen)
    if unknown:
        raise UserError(f"--rows: expected some of {', '.join(chosen)}; found {', '.join(sorted(unknown))}")
    calls = {LOOP: as_call(subject, make_plain_sampler(subject.system, mode, exact), subject.params)}
    if given.torch:
        from benchmarks import torch_loop

        calls[TORCH] = torch_loop.as_call(subject, mode, exact)
    ready: dict[tuple[str, str], Any] = {}  # the weights in one precision are held once
    for name, change in chosen.items():
        if name == EXACT or name in wanted:
            settings = dataclasses.replace(exact, **change)
            numbers = settings.dtype, settings.weights
            if numbers not in ready:
                ready[numbers] = precision.prepared(subject.system, subject.params, settings)
            calls[name] = as_call(subject, make_sampler(subject.system, mode, settings), ready[numbers])
    answers = {name: [call(i) for i in range(len(subject.batches))] for name, call in calls.items()}
    times, others = in_turns(calls, given.calls)
    settings = {name: chosen.get(name, {}) for name in calls}
    return {
        "other_cores": others,
        "rows": {
            name: {"settings": settings[name], **quantiles(times[name]), "speed": speed(times, name),
                   **distance(subject, answers[name], answers[EXACT])}
            for name in calls
        },
    }  # fmt: skip


def as_call(subject: Subject, sample: Callable, params: Mapping) -> Call:
    """A sampler on the subject's observations: from arrays of the host to arrays of the host."""

    def call(i: int) -> Result:
        i %= len(subject.batches)
        result = sample(params, subject.frozen, subject.batches[i], jax.random.key(i))
        return {name: np.asarray(value) for name, value in result.items()}

    return call


def in_turns(calls: Mapping[str, Call], count: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of `count` calls of each row, each turn beginning with another, and cores that others kept busy."""
    times, names = {name: [] for name in calls}, list(calls)
    busy, cpu, began = machine.busy_seconds(), time.process_time(), time.perf_counter()
    for i in range(count):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            started = time.perf_counter()
            calls[name](i)
            times[name].append(time.perf_counter() - started)
    spent, total = time.process_time() - cpu, time.perf_counter() - began
    return times, max(0.0, machine.busy_seconds() - busy - spent) / total


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds that half, 95 and 99 % of the calls stay within."""
    return {f"p{q}_ms": round(float(np.percentile(seconds, q)) * 1000, 2) for q in (50, 95, 99)}


def speed(times: Mapping[str, Sequence[float]], name: str) -> float:
    """How many times as fast as the straightforward loop: the median over turns."""
    return round(float(np.median(np.array(times[LOOP]) / np.array(times[name]))), 2)


def distance(subject: Subject, found: Sequence[Result], exact: Sequence[Result]) -> dict[str, Any]:
    """How far a row's answers are from the exact ones: cosine and largest error of actions, PSNR of future frames."""
    measured: dict[str, Any] = {}
    if "actions" in exact[0]:
        ours, theirs = (np.concatenate([answer["actions"] for answer in each]) for each in (found, exact))
        products = [float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in zip(ours, theirs)]
        measured["action_cosine"] = {"mean": np.mean(products), "least": min(products)}
        measured["action_error"] = {"mean": np.abs(ours - theirs).mean(), "most": np.abs(ours - theirs).max()}
        for unit, errors in subject.in_robot_units(ours, theirs).items():
            measured[f"action_error_{unit.replace(' ', '_')}"] = {"mean": errors.mean(), "most": errors.max()}
    if "video" in exact[0]:
        squares = [np.mean(np.square(a["video"][:, 1:] - b["video"][:, 1:])) for a, b in zip(found, exact)]
        # Of equal videos there is none.
        psnr = -10 * np.log10(np.mean(squares)) if np.mean(squares) > 0 else None
        measured["video_psnr"] = psnr
    return jax.tree.map(lambda value: float(f"{value:.6g}"), measured)


def describe(subject: Subject, arguments: Sequence[str]) -> dict[str, Any]:
    """What was measured on what."""
    device = jax.devices()[0]
    return {
        "what": "sampling call from host arrays to host arrays; rows in turns on the same observations and noise",
        "arguments": list(arguments),
        "subject": subject.name,
        "parameters": {
            name: sum(leaf.size for leaf in jax.tree.leaves(tree))
            for name, tree in (("trained", subject.params), ("frozen", subject.frozen))
        },
        "machine": machine.describe(machine.cores()) | {"device": f"{device.platform}: {device.device_kind}"},
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
    }


def table(mode: str, measured: Mapping[str, Any]) -> str:
    """The rows of a mode as text."""
    lines = [f"{mode:30} {'p50':>8} {'p95':>8} {'p99':>8}  {'speed':>6}  {'cosine':>8} {'error':>8} {'psnr':>6}"]
    for name, row in measured["rows"].items():
        psnr = row.get("video_psnr")
        lines.append(
            f"  {name:28} {row['p50_ms']:8.1f} {row['p95_ms']:8.1f} {row['p99_ms']:8.1f}  {row['speed']:6.2f}"
            f"  {row['action_cosine']['least']:8.5f} {row['action_error']['most']:8.4f}"
            + (f" {psnr:6.1f}" if psnr is not None else "")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
