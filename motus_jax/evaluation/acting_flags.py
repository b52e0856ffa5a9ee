"""The flags of closed-loop evaluation, and what they mean for a checkpoint; imports no simulator until it is to act."""

import argparse
import dataclasses
import hashlib
import importlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

from motus_jax.data.contract import Contract
from motus_jax.data.texts import Texts
from motus_jax.errors import UserError
from motus_jax.evaluation.acting_names import FUSIONS, POLICIES
from motus_jax.evaluation.baselines import TrainMemory
from motus_jax.models.system import System
from motus_jax.sampling.jobs import Planning
from motus_jax.sampling.prefix import METHODS, longest
from motus_jax.training.checkpoint import Loaded
from motus_jax.weights.fingerprint import fingerprints

Act = Callable[[pathlib.Path, Callable[[str], None]], dict[str, Any]]
"""(folder, taker of progress lines) -> the entry `closed_loop` of metrics.json."""


def define(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to those of `python -m motus_jax.evaluate`."""
    group = parser.add_argument_group("closed loop, in the simulator (extra simulator)")
    add = group.add_argument
    add("--closed_loop", action="store_true", help="also act, and write closed_loop/ beside metrics.json")
    add("--policies", default=",".join(POLICIES), help=f"some of {', '.join(POLICIES)} (default: all)")
    add("--tasks", default="", help="the robot's, taking turns (default: those with instructions of the dataset)")
    add("--episodes", type=int, default=50, help="unseen starts, the same for all policies (default: 50)")
    add("--candidates", type=int, default=8, help="plan: chunks imagined at each look (default: 8)")
    add("--candidates_of", default="vla", help="plan: the mode that draws them, vla or joint (default: vla)")
    add("--workers", type=int, default=0, help="simulator processes (default: one a core)")
    add("--lanes", type=int, default=4, help="episodes that each plays at once (default: 4)")
    add("--videos", type=int, default=2, help="successes and failures filmed of each way to act (default: 2)")
    add("--delay", type=int, default=0, help="actions executed between a look and its answer (default: 0)")
    add("--prefix", default="", help=f"how answers go on from them: {', '.join(METHODS)} (default: they are not told)")
    add("--fusion", default="latest", help=f"how chunks join: {', '.join(FUSIONS)} (default: latest)")
    add("--server", default="", help="as ws://host:port, one of this checkpoint (default: one is started here)")
    add("--api_key_file", help="file with the key that the server asks for")


def check(args: argparse.Namespace) -> None:
    """Turns lists into tuples and refuses what is out of range or not installed, before anything is loaded.

    Raises:
      UserError: names the flag.
    """
    for name in ("policies", "tasks"):
        given = [part.strip() for part in getattr(args, name).split(",") if part.strip()]
        setattr(args, name, tuple(dict.fromkeys(given)))
    for name in args.policies:
        if name not in POLICIES:
            raise UserError(f"--policies: expected some of {', '.join(POLICIES)}; found {name!r}")
    if not args.policies:
        raise UserError(f"--policies: expected some of {', '.join(POLICIES)}; found none")
    for name, least in (("episodes", 1), ("workers", 0), ("lanes", 1), ("videos", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name}: expected at least {least}, found {getattr(args, name)}")
    for name, table in (("prefix", ("", *METHODS)), ("fusion", FUSIONS)):
        given = getattr(args, name)
        if given not in table:
            raise UserError(f"--{name}: expected one of {', '.join(filter(None, table))}; found {given!r}")
    args.planning = Planning(args.candidates, args.candidates_of)
    if args.closed_loop:
        try:
            importlib.import_module("motus_jax.evaluation.acting")
        except ModuleNotFoundError as error:
            package = error.name.partition(".")[0]
            raise UserError(f"--closed_loop needs the package {package}: pip install -e '.[simulator]'") from error


def prepare(args: argparse.Namespace, loaded: Loaded, contract: Contract, texts: Texts, memory: TrainMemory) -> Act:
    """Checks that this checkpoint can act in the simulator here, and says how.

    Raises:
      UserError: the simulator is not installed, or does not have the robot or a task.
    """
    from motus_jax.evaluation import acting, acting_setup
    from motus_jax.robots.policy import Policy, describe

    tasks = acting_setup.simulated_tasks(memory.chunks["instruction"], contract, texts, args.tasks)
    options = acting_setup.Options(
        policies=args.policies, tasks=args.tasks, episodes=args.episodes, seed=args.seed, workers=args.workers,
        lanes=args.lanes, videos=args.videos, server=args.server, api_key=args.api_key, delay=args.delay,
        prefix=args.prefix, fusion=args.fusion,
    )  # fmt: skip
    acting_setup.check_delay(options, contract, longest(System(loaded.config), args.prefix) if args.prefix else 0)
    config = json.dumps(loaded.config.to_dict(), sort_keys=True, default=str)
    facts = {
        "weights": fingerprints({"params": loaded.params, "frozen": loaded.frozen}),
        "step": loaded.step,
        "config": hashlib.sha256(config.encode()).hexdigest()[:16],
        "sampling": loaded.config.sampling.to_dict(),
    }

    def act(out: pathlib.Path, say: Callable[[str], None]) -> dict[str, Any]:
        def serve() -> Policy:
            return Policy(
                loaded, source=args.source, modes=options.modes, max_batch=options.max_batch, plan=args.planning,
                prefix=args.prefix, ahead=False, say=lambda line: say(f"closed loop: {line}"),
            )  # fmt: skip

        planning, metadata = dataclasses.asdict(args.planning), describe(contract, loaded.step)
        model = acting_setup.Model(contract, memory.mean_chunk, facts, planning, serve, metadata)
        return acting.success_rates(model, tasks, options, out, say)

    return act
