"""What the sampler's switches cost in closed loop: success of `vla` with each row of the ladder, from the same starts.

  python -m motus_jax.train --config=experiments/lift.py --workdir=runs/lift
  python -m benchmarks.switches --workdir=runs/lift --out=benchmarks/results/NAME.json

`benchmarks/latency.py` says how long the rows take. Each is `python -m motus_jax.evaluate --closed_loop` with the flags
of that name, in a folder of its own under the run. Needs the simulator extra; run it again to go on.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from benchmarks import machine
from benchmarks.latency import EXACT, switches
from benchmarks.phases import ahead, outcomes
from motus_jax import cli, evaluate
from motus_jax.errors import UserError
from motus_jax.evaluation import results

POLICY, ERROR = "vla", "normalised_mse"


def main(argv: Sequence[str]) -> None:
    """Evaluates the rows, prints a line each, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--episodes", type=int, default=100, help="unseen starts (default: 100)")
    parser.add_argument("--steps", type=int, default=10, help="of both modalities, exactly (default: 10)")
    parser.add_argument("--reuse", type=float, default=0.1, help="threshold of the rows that reuse (default: 0.1)")
    parser.add_argument("--rows", default="", help="some of the ladder's, comma-separated (default: all)")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args(argv[1:])
    known = switches(arguments.steps, arguments.reuse, "")
    wanted = [name.strip() for name in arguments.rows.split(",") if name.strip()] or list(known)
    for name in wanted:
        if name not in known:
            raise UserError(f"--rows: expected some of {', '.join(known)}; found {name!r}")
    found: dict[str, Any] = {}
    exact = folder(arguments.workdir, EXACT)
    for name in (EXACT, *(name for name in wanted if name != EXACT)):
        out = folder(arguments.workdir, name)
        given = [f"--workdir={arguments.workdir}", f"--out={out}", *flags(known[name], arguments.steps)]
        acting = ["--closed_loop", f"--policies={POLICY}", "--videos=0", f"--episodes={arguments.episodes}"]
        evaluate.main(["evaluate", *given, f"--modes={POLICY}", *acting])
        jax.clear_caches()
        metrics = results.read_metrics(out / results.METRICS_FILE)
        found[name] = result(metrics) | {"ahead": ahead([outcomes(out)], [outcomes(exact)])._asdict()}
        print(line(name, found[name]), flush=True)
        facts = {**machine.describe(machine.cores()), "policy": POLICY, "step": metrics["facts"]["step"], "rows": found}
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


def folder(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Of one row's evaluation."""
    return workdir / "switches" / name.replace(" ", "_")


def flags(change: Mapping[str, Any], steps: int) -> list[str]:
    """A row's sampling as flags of `motus_jax.evaluate`."""
    sampling = {"video_steps": steps, "action_steps": steps} | change
    return [f"--{name}={value}" for name, value in sampling.items()]


def result(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Of one row: its sampling, error on held-out chunks and successes."""
    own = metrics["closed_loop"]["policies"][POLICY]
    return {
        "sampling": metrics["facts"]["sampling"], ERROR: metrics["modes"][POLICY]["metrics"][ERROR]["value"],
        **{name: own[name] for name in ("successes", "episodes", "interval", "reward")},
    }  # fmt: skip


def line(name: str, row: Mapping[str, Any]) -> str:
    """One row, for people."""
    low, high = (100 * edge for edge in row["interval"])
    rate = f"{row['successes']} of {row['episodes']} ({low:.0f} to {high:.0f} %)"
    value, low, high = (100 * row["ahead"][name] for name in ("value", "low", "high"))
    return f"{name:34} {rate:28} {value:+.0f} ({low:+.0f} to {high:+.0f})   error {row[ERROR]:.4f}"


if __name__ == "__main__":
    cli.run(main)
