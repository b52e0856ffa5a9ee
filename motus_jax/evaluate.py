"""Measures a trained model: each mode against its baselines on held-out chunks, written to metrics.json.

python -m motus_jax.evaluate --workdir=runs/demo
python -m motus_jax.evaluate --workdir=runs/demo --modes= --closed_loop --policies=vla,joint,plan --episodes=50
"""

import argparse
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from motus_jax import cli
from motus_jax.data import pipeline, run_path
from motus_jax.data.contract import Contract
from motus_jax.data.dataset import Dataset
from motus_jax.data.mixture import make_dataset, settings_of
from motus_jax.data.texts import Texts
from motus_jax.errors import UserError
from motus_jax.evaluation import acting_flags, baselines, comparison, metrics, results
from motus_jax.evaluation.held_out import ActionUnits, HeldOut, spread
from motus_jax.evaluation.runner import FORWARD, INVERSE, Evaluator, Predict
from motus_jax.models.system import System
from motus_jax.modes import MODES, Role, get_mode
from motus_jax.sampling import overrides
from motus_jax.sampling.precision import prepared
from motus_jax.sampling.sampler import make_sampler
from motus_jax.serve import read_key
from motus_jax.train import set_up_jax
from motus_jax.training import workdir
from motus_jax.training.checkpoint import Loaded, load_for_inference

LEAST_CHUNKS = 16

# Training chunks that the baselines may look at, spread over all training episodes.
TRAIN_CHUNKS = 4096

# Held-out chunks whose predictions are kept for the report.
KEPT_CHUNKS = 6

_NOT_FOR_THE_MODEL = ("raw_state", "raw_actions", "valid")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line.

    Raises:
      UserError: an unknown mode or a number out of range.
    """
    parser = argparse.ArgumentParser(
        prog="python -m motus_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=run_path.of, help="a run of motus_jax.train")
    parser.add_argument("--out", help="folder that gets metrics.json (default: the workdir, unless in a bucket)")
    parser.add_argument("--modes", default=",".join(MODES), help="comma-separated; empty for none (default: all five)")
    parser.add_argument("--chunks", type=int, default=256, help="held-out chunks (default: 256)")
    parser.add_argument("--batch_size", type=int, default=32, help="chunks sampled at once (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="of chunks, noise and intervals (default: 0)")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    parser.add_argument("--source", default="", help="source of a mixture (default: the one of the highest layer)")
    parser.add_argument("--dataset", help="another dataset of the same contract (default: the one of the training)")
    overrides.define(parser)
    acting_flags.define(parser)
    args = parser.parse_args(argv[1:])
    args.modes = [name.strip() for name in args.modes.split(",") if name.strip()]
    for name in args.modes:
        get_mode(name)
    for name, least in (("chunks", LEAST_CHUNKS), ("batch_size", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name}: expected at least {least}, found {getattr(args, name)}")
    acting_flags.check(args)
    if args.server and (asked := overrides.given(args)):
        raise UserError(f"--{next(iter(asked))}: expected none with --server, which samples as it was started")
    args.api_key = read_key(args.api_key_file)
    args.out = workdir.local_out(args.workdir, args.out)
    return args


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    args, started = parse(argv), time.monotonic()
    set_up_jax(platform="")
    loaded = resampled(load_for_inference(args.workdir, args.step), args)
    contract = Contract.from_json(loaded.contract(args.source))
    say(f"checkpoint of step {loaded.step} in {args.workdir}")
    args.out.mkdir(parents=True, exist_ok=True)
    workdir.copy_curves(args.workdir, args.out)
    texts = Texts(contract, loaded.config.data)
    held_out, memory = read_data(loaded, contract, args)
    act = acting_flags.prepare(args, loaded, contract, texts, memory) if args.closed_loop else None
    facts = {
        "step": loaded.step,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(loaded.params)),
        "chunks": len(held_out),
        "episodes": int(held_out.episodes.max()) + 1,
        "train_chunks": len(memory.chunks["episode"]),
        "seed": args.seed,
        "batch_size": args.batch_size,
        "sampling": loaded.config.sampling.to_dict(),
    }
    path, examples_path = args.out / results.METRICS_FILE, args.out / results.EXAMPLES_FILE
    found = {"modes": {}, **results.earlier_results(path, facts)}
    predict = make_predict(loaded)
    evaluator = Evaluator(
        predict, held_out, memory, ActionUnits.of(contract), args.batch_size, args.seed, say,
        keep=worth_seeing(held_out),
    )  # fmt: skip
    for mode in args.modes:
        found["modes"][mode] = evaluator.run(mode)
    if {FORWARD, INVERSE} <= set(args.modes):
        found["cycle"] = evaluator.cycle()
    if act is not None:
        found["closed_loop"] = act(args.out, say)
    if args.modes:
        earlier = results.Examples.load(examples_path).predictions if found.get("format") else {}
        keep_examples(evaluator, contract, texts, earlier, examples_path)
    found |= {
        "format": results.FORMAT,
        "facts": facts,
        "machine": results.machine(),
        "definitions": definitions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    results.write_metrics(path, found)
    say(summary(found))
    say(f"{path} written after {found['seconds']:.0f} s")


def resampled(loaded: Loaded, args: argparse.Namespace) -> Loaded:
    """The checkpoint, to be sampled as the command line says."""
    config = loaded.config.copy_and_resolve_references()
    config.sampling = overrides.changed(config.sampling, args)
    return dataclasses.replace(loaded, config=config)


def read_data(loaded: Loaded, contract: Contract, args: argparse.Namespace) -> tuple[HeldOut, baselines.TrainMemory]:
    """Held-out chunks, as many from each episode as from any other, and what the baselines know."""
    settings = settings_of(loaded.config.data, args.source)
    if args.dataset:
        settings["path"] = args.dataset
    test = make_dataset(settings, "test", contract=contract)
    test.preload()
    batches = pipeline.eval_batches(test, args.batch_size, args.chunks, args.seed)
    chunks = {key: np.concatenate([batch[key][batch["valid"]] for batch in batches]) for key in batches[0]}
    order = np.lexsort((chunks["frame"], chunks["episode"], chunks["source"]))
    held_out = HeldOut.of({key: value[order] for key, value in chunks.items() if key != "valid"})
    say(f"{len(held_out)} held-out chunks of {held_out.episodes.max() + 1} episodes")
    train = make_dataset(settings, "train", contract=contract)
    train.preload()
    memory = baselines.remember(train_batches(train, args.batch_size))
    say(f"baselines know {len(memory.chunks['episode'])} chunks of {len(train.episodes)} training episodes")
    return held_out, memory


def train_batches(train: Dataset, size: int) -> Iterator[dict[str, np.ndarray]]:
    """At most `TRAIN_CHUNKS` training chunks, evenly spread, in batches of at most `size`."""
    chosen = train.starts[spread(TRAIN_CHUNKS, len(train.starts))]
    for begin in range(0, len(chosen), size):
        examples = [train.example(int(episode), int(row)) for episode, row in chosen[begin : begin + size]]
        yield {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def make_predict(loaded: Loaded) -> Predict:
    """The model as the evaluator calls it; each mode's sampler is compiled at its first call."""
    system, sampling, samplers = System(loaded.config), loaded.config.sampling, {}
    params = prepared(system, loaded.params, sampling)

    def predict(mode: str, batch: Mapping[str, np.ndarray], key: jax.Array) -> Mapping[str, jax.Array]:
        if mode not in samplers:
            samplers[mode] = make_sampler(system, mode, sampling)
        return samplers[mode](params, loaded.frozen, what_is_given(mode, batch), key)

    return predict


def what_is_given(mode: str, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch without the answer: future frames and actions are black and zero unless the mode is given them.

    The sampler would not look at them either; here it cannot.
    """
    row = get_mode(mode)
    seen = {name: value for name, value in batch.items() if name not in _NOT_FOR_THE_MODEL}
    if row.video is not Role.GIVEN:
        seen["frames"] = np.concatenate([seen["frames"][:, :1], np.zeros_like(seen["frames"][:, 1:])], axis=1)
    if row.action is not Role.GIVEN:
        seen["actions"] = np.zeros_like(seen["actions"])
    return seen


def worth_seeing(held_out: HeldOut) -> np.ndarray:
    """Chunks for the report: spread over the half of the held-out chunks in which most moves."""
    motion = held_out.moving.mean(axis=(1, 2, 3))
    lively = np.flatnonzero(motion >= np.median(motion))
    return lively[spread(KEPT_CHUNKS, len(lively))]


def keep_examples(
    evaluator: Evaluator, contract: Contract, texts: Texts, earlier: Mapping[str, Any], path: Path
) -> None:
    """Writes the predictions that the report shows; `earlier` ones of other modes stay."""
    chunks = {name: values[evaluator.keep] for name, values in evaluator.held_out.chunks.items()}
    units = evaluator.units
    results.Examples(
        frames=chunks["frames"],
        actions=chunks["raw_actions"],
        mask=chunks["action_mask"][..., : len(units.names)],
        state=chunks["raw_state"][:, : len(units.names)],
        instruction=[texts.decode(tokens) for tokens in chunks["instruction"]],
        episode=chunks["episode"],
        frame=chunks["frame"],
        names=list(units.names),
        units=list(units.units),
        video_hz=contract.video_hz,
        action_hz=contract.action_hz,
        predictions={**earlier, **evaluator.kept},
    ).save(path)


def definitions() -> dict[str, str]:
    """What the numbers mean, for whoever reads metrics.json alone."""
    texts = {name: spec.meaning for name, spec in comparison.METRICS.items()}
    moving = f"further than {metrics.MOVING_THRESHOLD * 255:.0f}/255 from the condition frame in any channel"
    return texts | {
        "moving_psnr": f"{texts['moving_psnr']}: {moving}, grown by {metrics.MOVING_DILATION} pixels",
        "interval": "95 %, bootstrap over held-out episodes (an episode is drawn with all its chunks)",
        "differences": "model - baseline, chunk by chunk; `beats`: the interval lies on the model's side of 0",
        "interval_excludes_best_baseline": "the model's own interval lies on the better side of the baseline's mean",
        "beats_baselines": "every primary metric beats its best baseline by the paired difference; a mode that is "
        "given actions must also get worse with the actions of another episode",
        "closed_loop": "the model must succeed more often than every other policy from the same starts (exact McNemar "
        "test, 5 %)",
        "cycle": "actions -> imagined video -> recovered actions, against the actions it began with",
    }


def summary(found: Mapping[str, Any]) -> str:
    """One line per mode, and per policy that acted, for the terminal."""
    lines = []
    for mode, entry in found["modes"].items():
        parts = []
        for metric, comparison_ in entry["comparisons"].items():
            if comparison_["primary"]:
                best = comparison_["best_baseline"]
                own, other = entry["metrics"][metric], entry["baselines"][best][metric]
                parts.append(f"{metric} {_short(own['value'])} ({best} {_short(other['value'])})")
        lines.append(f"  {mode:17s}{comparison.verdict(entry)}   {'   '.join(parts)}")
    for name, entry in found.get("closed_loop", {"policies": {}})["policies"].items():
        low, high = (f"{100 * edge:.0f}" for edge in entry["interval"])
        rate = f"{entry['successes']} of {entry['episodes']} ({low} to {high} %)"
        lines.append(f"  acts: {name:17s}{rate}, progress {100 * entry['reward']:.0f} %")
    return "\n".join(lines)


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def say(line: str) -> None:
    """A progress line."""
    print(line, flush=True)


if __name__ == "__main__":
    cli.run(main)
