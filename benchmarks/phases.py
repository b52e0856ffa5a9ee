"""Do the phases help? Phase 3 on few labelled episodes, started from more and more of what comes before it.

  launch/recipe.sh                                          once: makes runs/phase1_demo and runs/phase2_demo
  python -m motus_jax.train --config=experiments/phase1.py:demo --workdir=runs/phase1_demo_long --config.steps=1600
  python -m motus_jax.train --config=experiments/phase2.py:demo --workdir=runs/phase2_demo_delta \\
      --config.data.action_space=latent_delta
  python -m benchmarks.phases --workdir=runs/phases         a few minutes a run; run it again to go on

Every arm is `experiments/phase3.py:demo` with the same episodes, steps, rates and batches, three seeds each; only what
it starts from differs. An arm's frozen video codec is fitted to the same data. Phase 1 for as many steps as both phases
tells what latent actions add to more training; two arms vary how they are handed on. Action errors are those of
`evaluate` on held-out chunks.

`--size=lift` does the same with `experiments/phase3.py:lift` (`launch/recipe.sh lift`, runs of that name), whose tasks
a model of this size can do: with `--closed_loop=50`, in the simulator (its extra), success counts as well.
"""

import argparse
import json
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import machine, phases_picture
from experiments import phase3
from motus_jax import cli, evaluate
from motus_jax.errors import UserError
from motus_jax.evaluation import acting_record
from motus_jax.evaluation.intervals import Estimate, mean_interval, wilson_interval
from motus_jax.models.system import System
from motus_jax.train import set_up_jax
from motus_jax.training import loop
from motus_jax.training.inputs import open_data

Outcomes = Mapping[tuple[str, int], bool]
"""Start (task, seed) -> success."""
VIDEO = "motus/(layers/)?video/.*"
ENDS = ("motus/action/(action_encoder|decoder)/.*", "new")


def after_phase1(run: str) -> tuple[tuple[str, str], ...]:
    """What phase 3 takes from a run of phase 1."""
    return (VIDEO, run), phase3.encoders(run)


def after_phase2(run: str, *rows: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """What phase 3 takes from a run of phase 2; `rows` go before."""
    experts = tuple((regex, source.replace("runs/phase2", run)) for regex, source in phase3.EXPERTS)
    return *rows, *experts, phase3.encoders(run)


ARMS: dict[str, tuple[tuple[str, str], ...]] = {
    "scratch": (("video_codec/.*", "runs/phase1_SIZE"),),
    "phase 1": after_phase1("runs/phase1_SIZE"),
    "phase 1, steps of both": after_phase1("runs/phase1_SIZE_long"),
    "phases 1 and 2": after_phase2("runs/phase2_SIZE"),
    "both, action ends new": after_phase2("runs/phase2_SIZE", ENDS),
    "both, latents added up": after_phase2("runs/phase2_SIZE_delta"),
}
"""Name -> `config.init_from`, for a size of the phases."""
ERRORS = {"vla": "normalised_mse", "inverse_dynamics": "normalised_mse", "world_model": "psnr"}
"""Mode -> what is reported of it."""
SUCCESS = "closed loop, success"


def main(argv: Sequence[str]) -> None:
    """Trains and evaluates what is missing, then writes and prints the table.

    Raises:
      UserError: the runs to start from are not there.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/phases"))
    parser.add_argument("--size", choices=("demo", "lift"), default="demo", help="of the phases (default: demo)")
    parser.add_argument("--arms", default=",".join(map(str, range(len(ARMS)))), help="numbers, from 0 (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="of phase 3 (default: the experiment's)")
    parser.add_argument("--episodes", type=int, default=0, help="that phase 3 sees (default: the experiment's)")
    parser.add_argument("--closed_loop", type=int, default=0, help="unseen starts in the simulator (default: none)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results/phases.json"))
    parser.add_argument("--picture", type=pathlib.Path, help="a PNG of the table (default: none)")
    arguments = parser.parse_args(argv[1:])
    chosen = [list(ARMS)[int(number)] for number in arguments.arms.split(",")]
    for _, run in (row for arm in chosen for row in starts(arm, arguments.size)):
        if run != "new" and not pathlib.Path(run).exists():
            raise UserError(f"{run}: expected the run that an arm starts from; found none (see --help)")
    set_up_jax(platform="")
    found: dict[str, list[dict[str, Any]]] = {}
    played: dict[str, list[Outcomes]] = {}
    for seed in range(arguments.seeds):
        for arm in chosen:
            found.setdefault(arm, []).append(run_arm(arm, seed, arguments))
            if arguments.closed_loop:
                played.setdefault(arm, []).append(outcomes(folder(arm, seed, arguments)))
            report = summary(found, arguments.closed_loop, played)
            print(describe(report), flush=True)
    config = settings(chosen[0], 0, arguments)
    facts = {"size": arguments.size, "steps": config.steps, "batch_size": config.batch_size}
    facts["episodes"] = config.data.episodes
    text = json.dumps({**machine.describe(machine.cores()), **facts, "arms": report}, indent=1)
    arguments.out.write_text(text + "\n")
    if arguments.picture:
        phases_picture.draw(report, arguments.picture)


def starts(arm: str, size: str) -> tuple[tuple[str, str], ...]:
    """`config.init_from` of an arm."""
    return tuple((regex, source.replace("SIZE", size)) for regex, source in ARMS[arm])


def settings(arm: str, seed: int, arguments: argparse.Namespace) -> Any:
    """The config of one run."""
    config = phase3.get_config(arguments.size)
    config.init_from, config.seed, config.validate_every = starts(arm, arguments.size), seed, 0
    config.steps = arguments.steps or config.steps
    config.data.episodes = arguments.episodes or config.data.episodes
    config.checkpoint.every = config.steps
    return config


def folder(arm: str, seed: int, arguments: argparse.Namespace) -> pathlib.Path:
    """Of one run."""
    return arguments.workdir / f"{arm.replace(',', '').replace(' ', '_')}_{seed}"


def run_arm(arm: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Values of one run by name, trained and evaluated unless it was."""
    workdir = folder(arm, seed, arguments)
    metrics = workdir / "metrics.json"
    if not metrics.exists():
        loop.train(settings(arm, seed, arguments), workdir, System, open_data)
        jax.clear_caches()
        evaluate.main(["evaluate", f"--workdir={workdir}", f"--modes={','.join(ERRORS)}"])
        jax.clear_caches()
    measured = json.loads(metrics.read_text())
    if arguments.closed_loop and _played(measured).get("episodes") != arguments.closed_loop:
        acting = ["--closed_loop", f"--episodes={arguments.closed_loop}", "--policies=vla", "--videos=0"]
        evaluate.main(["evaluate", f"--workdir={workdir}", "--modes=", *acting])
        jax.clear_caches()
        measured = json.loads(metrics.read_text())
    values = {f"{mode} {name}": measured["modes"][mode]["metrics"][name]["value"] for mode, name in ERRORS.items()}
    if not arguments.closed_loop:
        return values
    own = _played(measured)
    return values | {SUCCESS: own["successes"] / own["episodes"], "closed loop, reward": own["reward"]}


def _played(measured: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `vla` did in closed loop; empty if it was not asked to."""
    return measured["closed_loop"]["policies"]["vla"] if "closed_loop" in measured else {}


def outcomes(workdir: pathlib.Path) -> Outcomes:
    """What `vla` did in the newest evaluation of a run, start by start."""
    closed_loop = workdir / acting_record.FOLDER
    key = json.loads((closed_loop / acting_record.MANIFEST).read_text())["policies"]["vla"]
    return {(task, seed): result.success for (own, task, seed), result in acting_record.read(closed_loop).items()
            if own == key}  # fmt: skip


def ahead(own: Sequence[Outcomes], other: Sequence[Outcomes]) -> Estimate:
    """How much oftener an arm succeeds than another, over the starts that both played with the same seed.

    The interval draws starts, each with all seeds of training: it knows nothing of other seeds than these.
    """
    pairs = [(start, float(mine[start]) - float(theirs[start]))
             for mine, theirs in zip(own, other, strict=False) for start in mine.keys() & theirs.keys()]  # fmt: skip
    numbers = {start: number for number, start in enumerate(sorted({start for start, _ in pairs}))}
    starts_, differences = [numbers[start] for start, _ in pairs], [difference for _, difference in pairs]
    return mean_interval(np.asarray(differences), np.asarray(starts_))


def summary(
    found: Mapping[str, Sequence[Mapping[str, float]]], episodes: int = 0,
    played: Mapping[str, Sequence[Outcomes]] = types.MappingProxyType({}),
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Arm -> name -> the values of the seeds and their mean; of successes also the interval of all starts together, and
    how far the arm is ahead of each that is listed before it, from the same starts."""
    report = {
        arm: {name: {"mean": float(np.mean([run[name] for run in runs])), "seeds": [run[name] for run in runs]}
              for name in runs[0]}
        for arm, runs in found.items()
    }  # fmt: skip
    for arm, rows in report.items():
        if SUCCESS in rows:
            trials = episodes * len(found[arm])
            rate = wilson_interval(round(rows[SUCCESS]["mean"] * trials), trials)
            rows[SUCCESS] |= {"starts": trials, "interval": [rate.low, rate.high]}
        if arm in played:
            before = list(played)[: list(played).index(arm)]
            rows[SUCCESS]["ahead"] = {other: ahead(played[arm], played[other])._asdict() for other in before}
    return report


def describe(report: Mapping[str, Mapping[str, Any]]) -> str:
    """A line an arm and number, and one for each comparison of successes."""
    lines = []
    for arm, rows in report.items():
        for name, row in rows.items():
            seeds = "  ".join(f"{value:.4f}" for value in row["seeds"])
            lines.append(f"{arm:24} {name:34} {row['mean']:8.4f}   {seeds}")
            for other, found in row.get("ahead", {}).items():
                words = f"{found['value']:8.4f}   ({found['low']:.4f} to {found['high']:.4f})"
                lines.append(f"{arm:24} {f'  ahead of {other}':34} {words}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
