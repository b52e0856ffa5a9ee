"""Closed loop with answers that are late: what becomes of success, and of the jump where a new chunk begins.

  python -m motus_jax.train --config=experiments/realtime.py:lift --workdir=runs/realtime_lift
  python -m benchmarks.delays --workdir=runs/realtime_lift --out=benchmarks/results/NAME.json

Every way is `python -m motus_jax.evaluate --closed_loop --policies=vla` from the same unseen starts; the robot looks
every half chunk, and time goes on while it waits. `naive` goes on with the former chunk and jumps to the new one,
`blend` and `average` fade, the others are told what is executed meanwhile (`motus_jax.sampling.prefix.METHODS`).
`conditioned` needs a run that was trained so. Needs the simulator extra; run it again to go on.

`jump`: largest change of a joint [rad] from the last target of one chunk to the first of the next, mean over all seams;
`step`: the same between other targets.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from benchmarks import machine
from motus_jax import cli, evaluate
from motus_jax.data.contract import Contract
from motus_jax.evaluation import acting_record, acting_setup
from motus_jax.evaluation.held_out import RADIANS, ActionUnits
from motus_jax.models.system import System
from motus_jax.sampling.prefix import METHODS
from motus_jax.training.checkpoint import load_for_inference

POLICY = "vla"


def main(argv: Sequence[str]) -> None:
    """Acts in every way, prints a line each, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--episodes", type=int, default=50, help="unseen starts (default: 50)")
    parser.add_argument("--delays", default="2,4", help="in actions (default: 2,4)")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args(argv[1:])
    loaded = load_for_inference(arguments.workdir)
    contract, system = Contract.from_json(loaded.contract()), System(loaded.config)
    able = [name for name, method in METHODS.items() if system.prefixes.trained or not method.trained]
    found: dict[str, Any] = {}
    for delay in (0, *map(int, arguments.delays.split(","))):
        for way, flags in ways(delay, able).items():
            given = [f"--workdir={arguments.workdir}", f"--episodes={arguments.episodes}", f"--delay={delay}", *flags]
            evaluate.main(["evaluate", *given, "--modes=", "--closed_loop", f"--policies={POLICY}", "--videos=0"])
            jax.clear_caches()
            name = f"{way}, delay {delay}"
            found[name] = result(arguments.workdir, contract, delay)
            print(line(name, found[name]), flush=True)
            facts = {**machine.describe(machine.cores()), "prefixes_trained": system.prefixes._asdict(),
                     "step": loaded.step, "chunk": contract.chunk, "every": acting_setup.executed(contract),
                     "hz": contract.action_hz, "ways": found}  # fmt: skip
            arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


def ways(delay: int, able: Sequence[str]) -> dict[str, list[str]]:
    """Name -> flags of what is compared at a delay."""
    if not delay:
        return {"at once": []}
    told = {name: [f"--prefix={name}"] for name in able}
    return {"naive": [], "blend": ["--fusion=blend"], "average": ["--fusion=average"], **told}


def result(workdir: pathlib.Path, contract: Contract, delay: int) -> dict[str, Any]:
    """What came of the newest evaluation of a run."""
    folder = workdir / acting_record.FOLDER
    own = json.loads((folder / acting_record.RESULTS).read_text())["policies"][POLICY]
    key = json.loads((folder / acting_record.MANIFEST).read_text())["policies"][POLICY]
    joints, every = ActionUnits.of(contract).dimensions(RADIANS), acting_setup.executed(contract)
    seams, others = [], []
    for path in sorted((folder / "episodes").glob(f"{POLICY}_*_{key}.npz")):
        with np.load(path) as file:
            targets = commanded(file["chunks"], file["executed"])[:, joints]
        at_seams, within = changes(targets, every, delay)
        seams, others = [*seams, *at_seams], [*others, *within]
    return {
        **{name: own[name] for name in ("successes", "episodes", "interval", "reward")},
        "jump": float(np.mean(seams)), "step": float(np.mean(others)), "seams": len(seams),
    }  # fmt: skip


def commanded(chunks: Float[np.ndarray, "n T A"], executed: Sequence[int]) -> Float[np.ndarray, "ticks A"]:
    """What an episode's robot was told, tick by tick."""
    return np.concatenate([chunk[:count] for chunk, count in zip(chunks, executed, strict=True)])


def changes(
    targets: Float[np.ndarray, "ticks A"], every: int, delay: int
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " o"]]:
    """Largest change of a joint where a chunk takes over from the one before, and everywhere else."""
    steps = np.abs(np.diff(targets, axis=0)).max(1)
    begins = np.arange(every + delay, len(targets), every)
    return steps[begins - 1], np.delete(steps, begins - 1)


def line(name: str, row: Mapping[str, Any]) -> str:
    """One way, for people."""
    low, high = (100 * edge for edge in row["interval"])
    rate = f"{row['successes']} of {row['episodes']} ({low:.0f} to {high:.0f} %)"
    return f"{name:24} {rate:26} jump {row['jump']:.3f}   step {row['step']:.3f}"


if __name__ == "__main__":
    cli.run(main)
