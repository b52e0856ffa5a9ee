"""How chunks join when answers take time: the jump where a new one begins, and the error of what is commanded.

  python -m benchmarks.chunking --workdir=runs/demo --out=benchmarks/results/NAME.json

Open loop on held-out episodes: pictures and states are the recorded ones whatever is commanded, so that all ways meet
the same questions with the same noise. A question is asked every half chunk; its answer is there `delay` ticks later,
and the robot commands the former chunk until then. The planner is the client's own (`motus_jax_client.fusion`).

`jump`: largest change of a joint [rad] from the last target of one chunk to the first of the next, mean over all seams;
`step`: the same between targets of one chunk; `recorded`: the same of the recording, where the seams are. `error`: mean
distance of the commanded joints from the recorded ones [rad]. Intervals are 95 %, from a bootstrap over episodes.
`synchronous` stands still while it waits: its share of the time is `standing`. `conditioned` needs a run that was
trained so (experiments/realtime.py).
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from benchmarks import machine
from motus_jax import cli
from motus_jax.data.contract import Contract
from motus_jax.data.dataset import Dataset
from motus_jax.data.mixture import make_dataset, settings_of
from motus_jax.errors import UserError
from motus_jax.evaluation.held_out import RADIANS, ActionUnits
from motus_jax.evaluation.intervals import mean_interval
from motus_jax.models.system import System
from motus_jax.sampling.prefix import METHODS, overlap_fields
from motus_jax.sampling.sampler import make_sampler
from motus_jax.train import set_up_jax
from motus_jax.training.checkpoint import load_for_inference
from motus_jax_client.fusion import FUSIONS, Fusion, Plan

QUESTIONS = 5
Chunk = Float[np.ndarray, "E T A"]
Answer = Callable[[int, Sequence[Plan] | None, int], Chunk]
"""(number of the question, plans to go on from, committed ticks) -> a chunk an episode."""


class Episodes(NamedTuple):
    """Recorded episodes side by side.

    Attributes:
      batches: what is seen at each question.
      states: [Q, E, Pr] in the robot's units.
      actions: recorded targets by tick [E, ticks, A].
      joints: which numbers are angles [A].
    """

    batches: list[dict[str, np.ndarray]]
    states: np.ndarray
    actions: np.ndarray
    joints: np.ndarray


def main(argv: Sequence[str]) -> None:
    """Measures, prints and writes.

    Raises:
      UserError: no run, or episodes of another rate than its actions.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--episodes", type=int, default=0, help="held-out ones (default: all that are long enough)")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args(argv[1:])
    set_up_jax(platform="")
    started, loaded = time.monotonic(), load_for_inference(arguments.workdir)
    contract, system = Contract.from_json(loaded.contract()), System(loaded.config)
    every = contract.chunk // 2
    dataset = make_dataset(settings_of(loaded.config.data, ""), "test", contract=contract)
    episodes = read(dataset, contract, every, arguments.episodes)
    rows = {}
    able = [name for name, method in METHODS.items() if system.prefixes.trained or not method.trained]
    answers = {name: answerer(name, loaded, system, contract, episodes) for name in ("", *able)}
    for delay in range(every + 1):
        for way, (method, fusion) in ways(answers, delay).items():
            waits, name = way == "synchronous", f"{way}, delay {delay}"
            late = 0 if waits else delay
            commanded = act(answers[method], FUSIONS[fusion], len(episodes.actions), every, late)
            rows[name] = measure(commanded, episodes, every, late)
            rows[name]["standing"] = delay / (every + delay) if waits else 0.0
            print(line(name, rows[name]), flush=True)
    found = {**machine.describe(machine.cores()), "prefixes_trained": system.prefixes._asdict(), "step": loaded.step,
             "episodes": len(episodes.actions), "chunk": contract.chunk, "every": every, "hz": contract.action_hz,
             "seconds": round(time.monotonic() - started, 1), "ways": rows}  # fmt: skip
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def ways(answers: Mapping[str, Answer], delay: int) -> dict[str, tuple[str, str]]:
    """Name -> (method, fusion) of what is compared at a delay."""
    found = {"synchronous": ("", "latest")}
    if delay:
        found["naive"] = "", "latest"
    for name in METHODS:
        if name in answers and (delay or METHODS[name].soft):
            found[name] = name, "latest"
    return found | {name: ("", name) for name in ("blend", "average")}


def read(dataset: Dataset, contract: Contract, every: int, most: int) -> Episodes:
    """The held-out episodes that last long enough."""
    ticks = QUESTIONS * every + every
    if dataset.source.fps != contract.action_hz:
        raise UserError(
            f"{dataset.source.path}: expected {contract.action_hz:g} rows a second, a tick each; found"
            f" {dataset.source.fps:g}"
        )
    chosen = [episode for episode in dataset.episodes if dataset.source.episode(episode).length > ticks]
    chosen = chosen[: most or None]
    dataset.preload(chosen)
    batches, states = [], []
    for question in range(QUESTIONS):
        examples = [dataset.example(episode, question * every) for episode in chosen]
        batches.append({name: np.stack([example[name] for example in examples]) for name in examples[0]})
        states.append([dataset.raw_state(episode, question * every) for episode in chosen])
    actions = [[dataset.raw_actions(episode, tick)[0] for tick in range(ticks)] for episode in chosen]
    return Episodes(batches, np.array(states), np.array(actions), ActionUnits.of(contract).dimensions(RADIANS))


def answerer(method: str, loaded: Any, system: System, contract: Contract, episodes: Episodes) -> Answer:
    """The model as something that answers all episodes' questions of one number at once."""
    sample = make_sampler(system, "vla", loaded.config.sampling, method)
    remembered: dict[int, Chunk] = {}

    def answer(question: int, plans: Sequence[Plan] | None, committed: int) -> Chunk:
        if not method and question in remembered:
            return remembered[question]
        batch, states = episodes.batches[question], episodes.states[question]
        if method:
            batch = batch | _overlaps(contract, states, plans, question, committed)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), question), len(states))
        actions = np.asarray(sample(loaded.params, loaded.frozen, batch, keys)["actions"])
        found = contract.denormalise_actions(actions, states)
        remembered[question] = found
        return found

    return answer


def _overlaps(
    contract: Contract, states: np.ndarray, plans: Sequence[Plan] | None, question: int, committed: int
) -> dict[str, np.ndarray]:
    """The fields of `overlap_fields` of all episodes; without plans, none is committed to anything."""
    first, rows = question * (contract.chunk // 2), []
    nothing = np.zeros((0, contract.raw_action_dim), np.float32)
    for row, state in enumerate(states):
        left = plans[row].after(first) if plans else ()
        known = np.stack(left) if left else nothing
        rows.append(overlap_fields(contract, state, known[:committed], known[committed:]))
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def act(answer: Answer, fusion: Fusion, count: int, every: int, delay: int) -> Float[np.ndarray, "E ticks A"]:
    """What is commanded tick by tick. The first answer is waited for by a robot that stands still."""
    plans, commanded = [Plan() for _ in range(count)], [[] for _ in range(count)]
    for question in range(QUESTIONS):
        begins = question * every
        chunks = answer(question, plans if question else None, delay if question else 0)
        until = begins + every + delay
        for plan, chunk, done in zip(plans, chunks, commanded, strict=True):
            plan.join(begins, chunk, begins + delay if question else 0, fusion)
            done += [plan[tick] for tick in range(len(done), until)]
            plan.forget(begins + every - 1)
    return np.array(commanded)


def measure(commanded: Float[np.ndarray, "E ticks A"], episodes: Episodes, every: int, delay: int) -> dict[str, Any]:
    """Jumps and errors of what was commanded with a delay."""
    recorded, count = episodes.actions[..., episodes.joints], len(commanded)
    own = commanded[..., episodes.joints]
    steps = [np.abs(np.diff(actions, axis=1)).max(-1) for actions in (own, recorded)]
    seams = [question * every + delay - 1 for question in range(1, QUESTIONS)]
    within = [tick for tick in range(steps[0].shape[1]) if tick not in seams]
    counted = slice(2 * every, QUESTIONS * every)
    error = np.abs(own[:, counted] - recorded[:, counted]).mean((1, 2))
    found = {"jump": steps[0][:, seams].mean(1), "step": steps[0][:, within].mean(1),
             "recorded": steps[1][:, seams].mean(1), "error": error}  # fmt: skip
    return {name: mean_interval(values, np.arange(count))._asdict() for name, values in found.items()}


def line(name: str, row: Mapping[str, Any]) -> str:
    """One way, for people."""
    numbers = "   ".join(f"{key} {row[key]['value']:.4f} ({row[key]['low']:.4f} to {row[key]['high']:.4f})"
                         for key in ("jump", "step", "recorded", "error"))  # fmt: skip
    return f"{name:24} {numbers}   standing {row['standing']:.0%}"


if __name__ == "__main__":
    cli.run(main)
