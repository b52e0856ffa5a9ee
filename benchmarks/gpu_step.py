"""Training step of the full-width experts on one GPU in bfloat16: ours against PyTorch with torch.compile.

  pip install 'jax[cuda12]' torch
  python -m benchmarks.gpu_step --out=benchmarks/results/gpu_step_h100.json      [--config.batch_size=8] [--depth=12]

`experiments/phase3.py` by default: the public release's sizes, encodings given, loss, gradient, clipping, AdamW and
running average; master weights in float32, products in bfloat16, layers checkpointed (`model.overrides.remat` full, or
none on both sides). No token is padding, so that PyTorch may take its fastest attention. The depth is the greatest that
both sides hold, by the compiler's count and by trying, unless `--depth` says it.

Sides take turns, each in a process that has the GPU to itself: ours with either attention kernel, PyTorch with a layer
compiled once for all (`torch layer`), or the whole loss (`torch whole`, minutes to compile: `--sides`). MFU is the
gradient's operations without recomputation over the documented peak.
"""

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import flags

from benchmarks import experts, machine
from motus_jax import cli
from motus_jax.errors import UserError
from motus_jax.models.system import System
from motus_jax.training import absent, flops
from motus_jax.training.chips import CHIPS

OURS = {"jax xla": "xla", "jax cudnn": "cudnn"}
"""Side -> `model.overrides.attention`."""
TORCH = {"torch layer": "layer", "torch whole": "whole", "torch eager": ""}
"""Side -> what torch.compile is given."""
SIDES = ("torch layer", "jax cudnn", "jax xla")  # what needs most memory first
NO_ROOM = 17
"""Exit code of a side that did not fit."""
FREE = 0.04
"""Share of the memory that must stay free at the depth that is tried first."""
ENVIRONMENT = {
    "jax": {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.97"},
    "torch": {"JAX_PLATFORMS": "cpu", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
}


def define_flags() -> None:
    """The command line."""
    cli.define_config()
    flags.DEFINE_string("out", None, "JSON file to write")
    flags.DEFINE_integer("depth", 0, "layers (default: the greatest that fits)", lower_bound=0)
    flags.DEFINE_list("sides", list(SIDES), f"some of {', '.join([*OURS, *TORCH])}")
    flags.DEFINE_integer("turns", 2, "of all sides", lower_bound=1)
    flags.DEFINE_integer("block_steps", 10, "timed steps of a turn", lower_bound=1)
    flags.DEFINE_string("side", None, "set by the benchmark itself: be one side, or `fit`")


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark, or one side of it."""
    define_flags()
    if not any(argument.startswith("--config=") for argument in argv):
        argv = [argv[0], "--config=experiments/phase3.py", *argv[1:]]
    cli.parse_flags(argv, __doc__)
    given = flags.FLAGS
    unknown = set(given.sides) - {*OURS, *TORCH}
    if unknown:
        raise UserError(f"--sides: expected some of {', '.join([*OURS, *TORCH])}; found {', '.join(sorted(unknown))}")
    if given.config.model.overrides.remat not in ("full", "none"):
        raise UserError("--config.model.overrides.remat: expected full or none, which PyTorch has too; found "
                        f"{given.config.model.overrides.remat!r}")  # fmt: skip
    if given.side:
        be(given.side, given.config, given.depth, given.block_steps)
        return
    if given.out is None:
        raise UserError("--out: missing; give the JSON file to write, e.g. --out=benchmarks/results/gpu_step.json")
    jax.config.update("jax_platforms", "cpu")  # the GPU is the sides'
    report = measure(argv[1:], given)
    path = pathlib.Path(given.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def measure(arguments: Sequence[str], given: flags.FlagValues) -> dict[str, Any]:
    """All sides at the greatest depth that all of them hold."""
    depth = given.depth or run("fit", arguments, 0)["depth"]
    while True:
        blocks: dict[str, list[dict[str, Any]]] = {side: [] for side in given.sides}
        try:
            for turn in range(given.turns):
                for side in given.sides if turn % 2 == 0 else given.sides[::-1]:
                    blocks[side].append(run(side, arguments, depth))
                    print(f"depth {depth}, {side}: {blocks[side][-1]['step_s']:.4f} s a step", flush=True)
        except NoRoomError as error:
            if given.depth or depth == 1:
                raise UserError(f"{error}: {depth} layers do not fit; try fewer, or a smaller batch") from error
            depth -= max(1, depth // 12)
            print(f"{error}: does not fit; {depth} layers instead", flush=True)
            continue
        return summary(arguments, given, depth, blocks)


class NoRoomError(Exception):
    """A side ran out of the GPU's memory; says which."""


def run(side: str, arguments: Sequence[str], depth: int) -> dict[str, Any]:
    """What a side says, in a process of its own."""
    own = ENVIRONMENT["torch" if side in TORCH else "jax"]
    command = [sys.executable, "-m", "benchmarks.gpu_step", *arguments, f"--side={side}", f"--depth={depth}"]
    done = subprocess.run(command, env={**os.environ, **own}, stdout=subprocess.PIPE, text=True)
    if done.returncode == NO_ROOM:
        raise NoRoomError(side)
    if done.returncode:
        raise UserError(f"the side {side} ended with exit code {done.returncode}; its error stands above")
    return json.loads(done.stdout.splitlines()[-1])


def be(side: str, config: ml_collections.ConfigDict, depth: int, steps: int) -> None:
    """One side: prints its times and memory as JSON, or ends with `NO_ROOM`."""
    if side == "fit":
        print(json.dumps({"depth": greatest_depth(config)}), flush=True)
        return
    config = with_depth(config, depth, OURS.get(side, "xla"))
    try:
        step, memory = (torch_side(config, TORCH[side]) if side in TORCH else our_side(config))
        begun = time.perf_counter()
        losses = [step() for _ in range(3)]
        warm, walls = time.perf_counter() - begun, []
        for _ in range(steps):
            begun = time.perf_counter()
            step()
            walls.append(time.perf_counter() - begun)
    except Exception as error:
        if "out of memory" in str(error).lower() or "RESOURCE_EXHAUSTED" in str(error):
            sys.exit(NO_ROOM)
        raise
    print(json.dumps({"step_s": statistics.median(walls), "walls_s": walls, "warm_up_s": warm, "losses": losses,
                      **memory()}), flush=True)  # fmt: skip


def with_depth(config: ml_collections.ConfigDict, depth: int, kernel: str) -> ml_collections.ConfigDict:
    """The experiment with so many layers and an attention kernel, optimized by AdamW at one rate."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.overrides.update(attention=kernel, **({"depth": depth} if depth else {}))
        config.optimizer.name = "adamw"
    return config


def make_batch(config: ml_collections.ConfigDict) -> experts.Batch:
    """As `experts.make_batch` of any vision-language model, without padding: it has no masks."""
    masks = ("text_mask", "vlm_mask")
    if config.model.vlm.kind == "compact":
        return {name: value for name, value in experts.make_batch(config).items() if name not in masks}
    rng, system, data, b = np.random.default_rng(0), System(config), config.data, config.batch_size
    seen = absent.batch_shapes(config, system, features=True)
    video, actions = (b, *system.latent_shape), (b, data.chunk, data.action_dim)
    shapes = {
        "latents": video, "video_noise": video, "actions": actions, "action_noise": actions,
        "state": (b, data.state_dim), "vlm_states": seen["vlm_states"].shape,
        "text_states": (b, data.instruction_length, system.motus_config.video.text_width),
    }  # fmt: skip
    batch = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    taus = {f"tau_{name}": rng.random(b, np.float32) for name in ("video", "action")}
    return batch | taus | {"action_mask": np.ones(actions, bool)}


def our_side(config: ml_collections.ConfigDict) -> tuple[Callable[[], float], Callable[[], dict[str, Any]]]:
    """Our step, and what it took of the device's memory."""
    update = experts.make_step(config, make_batch(config))

    def memory() -> dict[str, Any]:
        stats = jax.devices()[0].memory_stats() or {}
        return {"peak_bytes": stats.get("peak_bytes_in_use"), "device": jax.devices()[0].device_kind}

    return update, memory


def torch_side(
    config: ml_collections.ConfigDict, compiled: str
) -> tuple[Callable[[], float], Callable[[], dict[str, Any]]]:
    """PyTorch's step with weights drawn on the device, whose values cost no time, and what it took of the memory."""
    import torch
    from torch.utils import checkpoint

    from benchmarks import torch_motus, torch_step

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    motus_config = experts.Experts(config).system.motus_config
    with device:
        model = torch_motus.TorchMotus(motus_config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    tensors = {name: value.to(device) for name, value in torch_step.to_torch(make_batch(config)).items()}
    dtype, layer = getattr(torch, motus_config.dtype), torch_motus.joint_layer
    if compiled == "layer":
        layer = torch.compile(layer)
    if motus_config.remat == "full":
        inner = layer

        def layer(*given: Any) -> Any:
            return checkpoint.checkpoint(inner, *given, use_reentrant=False)

    model.run_layer, model.complex_rope = layer, not compiled

    def loss() -> torch.Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return torch_step.loss(model, tensors)

    shapes = jax.eval_shape(experts.Experts(config).init, jax.random.key(0))
    update = torch_step.update_of(config, model, shapes, torch.compile(loss) if compiled == "whole" else loss)

    def step() -> float:
        found = float(update())  # waits for the device
        if device.type == "cuda":
            torch.cuda.synchronize()
        return found

    def memory() -> dict[str, Any]:
        if device.type != "cuda":
            return {"peak_bytes": None, "device": "cpu"}
        return {"peak_bytes": torch.cuda.max_memory_allocated(), "device": torch.cuda.get_device_name()}

    return step, memory


def greatest_depth(config: ml_collections.ConfigDict) -> int:
    """Layers of which our step fits the device, by the compiler's count of two depths: memory grows with each layer."""
    stats = jax.devices()[0].memory_stats()
    if not stats:
        raise UserError("--depth: missing; without a GPU nothing says how many layers fit")
    few, more = 2, 4
    used = {depth: experts.bytes_of_step(with_depth(config, depth, "xla"), make_batch(config)) for depth in (few, more)}
    a_layer = (used[more] - used[few]) / (more - few)
    room = stats["bytes_limit"] * (1 - FREE) - used[few]
    return max(1, min(System(config).motus_config.depth, few + int(room / a_layer)))


def summary(
    arguments: Sequence[str], given: flags.FlagValues, depth: int, blocks: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """The report: medians, MFU, PyTorch's best time over ours."""
    config = with_depth(given.config, depth, "xla")
    shapes = jax.eval_shape(experts.Experts(config).init, jax.random.key(0))
    useful = flops.of_training(experts.Experts, config, shapes, {}, make_batch(config), jax.random.key(0))
    kind = next((rows[0]["device"] for side, rows in blocks.items() if side in OURS), "")
    peak = CHIPS[kind].peak if kind in CHIPS else None
    found = {}
    for side, rows in blocks.items():
        seconds = statistics.median(wall for row in rows for wall in row["walls_s"])
        found[side] = {
            "step_s": seconds, "mfu": useful / seconds / peak if peak else None,
            "examples_per_second": config.batch_size / seconds, "turns": list(rows),
        }  # fmt: skip
    best = {name: min((found[side]["step_s"] for side in found if side in own), default=None)
            for name, own in (("jax", OURS), ("torch", TORCH))}  # fmt: skip
    versions = {}
    for package in ("jax", "jaxlib", "flax", "torch", "jax-cuda12-plugin", "jax-cuda13-plugin", "triton"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "what": "training step of the three experts, encodings given: loss, gradient, clipping, AdamW, EMA",
        "arguments": [argument for argument in arguments if not argument.startswith("--out")],
        "device": kind, "machine": machine.describe(machine.cores()), "versions": versions,
        "depth": depth, "batch_size": config.batch_size, "dtype": System(config).motus_config.dtype,
        "remat": config.model.overrides.remat, "trained_parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        "model_operations": useful, "peak": peak,
        "torch_over_jax": best["torch"] / best["jax"] if None not in best.values() else None, "sides": found,
    }  # fmt: skip


def table(report: Mapping[str, Any]) -> str:
    """A line a side."""
    lines = [f"{report['device']}, {report['depth']} layers, batch {report['batch_size']}, remat {report['remat']}"]
    for side, row in report["sides"].items():
        mfu = f"   MFU {row['mfu']:.1%}" if row["mfu"] else ""
        lines.append(f"  {side:12} {1000 * row['step_s']:9.1f} ms a step{mfu}")
    ratio = report["torch_over_jax"]
    return "\n".join([*lines, *([f"  PyTorch's time over ours: {ratio:.2f}"] if ratio else [])])


if __name__ == "__main__":
    cli.run(main)
