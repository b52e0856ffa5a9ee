"""What closed-loop evaluation is told: options, the model, tasks, the server, who acts.

Needs the serve extra; the tasks need the simulator.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from motus_jax.data.contract import Contract
from motus_jax.data.texts import Texts
from motus_jax.errors import UserError
from motus_jax.evaluation import acting_record as record
from motus_jax.evaluation.acting_names import MODEL, POLICIES
from motus_jax.evaluation.runner import FORWARD
from motus_jax.robots import baselines, catalogue
from motus_jax.robots.closed_loop import Actor, Lateness, Setting
from motus_jax.robots.server.background import serving
from motus_jax.robots.server.websocket import ServedPolicy, Settings
from motus_jax.robots.workers import ANSWER_WITHIN, Server
from motus_jax.sampling.prefix import get_method, takes_prefix
from motus_jax_client import Client, ConnectionLost, Refused

EXECUTED_SHARE = 0.5
"""The plan is made anew when this share of a chunk is executed."""

SECONDS = 6.0
"""Time limit of an episode; the scripted experts need less than 4."""

MOST_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
      policies: of `POLICIES`.
      tasks: of the robot's; empty takes those whose instructions the dataset has.
      episodes: unseen starts, the tasks taking turns.
      seed: of the noise.
      workers: simulator processes; 0 takes one a core.
      lanes: episodes that each plays at once.
      videos: successes, and as many failures, that are filmed of each of the model's policies.
      server: address of one that runs already; empty serves here.
      api_key: that it asks for.
      delay: targets that the robot executes between a look and the model's answer.
      prefix: how answers go on from them, a row of `motus_jax.sampling.prefix.METHODS`; empty: they are not told.
      fusion: how chunks join, a row of `motus_jax_client.fusion.FUSIONS`.
    """

    policies: tuple[str, ...] = POLICIES
    tasks: tuple[str, ...] = ()
    episodes: int = 50
    seed: int = 0
    workers: int = 0
    lanes: int = 4
    videos: int = 2
    server: str = ""
    api_key: str = ""
    delay: int = 0
    prefix: str = ""
    fusion: str = "latest"

    @property
    def model(self) -> tuple[str, ...]:
        """The policies that ask the model."""
        return tuple(name for name in self.policies if name in MODEL)

    @property
    def modes(self) -> tuple[str, ...]:
        """What the server must be able to do."""
        return (*self.model, *([FORWARD] if self.model and self.videos else ()))

    @property
    def processes(self) -> int:
        """Simulator processes, no more than there are episodes to play at once."""
        return max(1, min(self.workers or os.cpu_count() or 1, -(-self.episodes // self.lanes)))

    @property
    def max_batch(self) -> int:
        """Questions that can wait at the same time, as far as one call answers them."""
        return min(self.processes * self.lanes, MOST_BATCH)

    @property
    def lateness(self) -> Lateness:
        """What that means to an episode."""
        return Lateness(self.delay, bool(self.prefix), bool(self.prefix) and get_method(self.prefix).soft, self.fusion)


@dataclasses.dataclass(frozen=True)
class Model:
    """The checkpoint, as far as acting needs to know it.

    Attributes:
      contract: of the data that it was trained on.
      mean_chunk: normalised mean of the training chunks.
      facts: what its answers depend on (weights, step, config, sampling), as plain values.
      planning: what those of `plan` depend on besides.
      serve: makes the policy that is served; called only if no server runs elsewhere.
      metadata: what a server of the same checkpoint would say of it (`motus_jax.robots.policy.describe`).
    """

    contract: Contract
    mean_chunk: Float[np.ndarray, "T A"]
    facts: Mapping[str, Any]
    planning: Mapping[str, Any]
    serve: Callable[[], ServedPolicy]
    metadata: Mapping[str, Any]


def simulated_tasks(
    instructions: Int[np.ndarray, "n L"], contract: Contract, texts: Texts, wanted: Sequence[str] = ()
) -> tuple[str, ...]:
    """The tasks to play: those that are wanted, else those recorded with one of these instructions (tokens).

    Raises:
      UserError: there is none, or the simulator does not have this robot or task.
    """
    if contract.robot not in catalogue.MODULES:
        raise UserError(f"--closed_loop: expected robot {' or '.join(catalogue.MODULES)}; found {contract.robot!r}")
    trials = catalogue.robot(contract.robot).trials
    for name in wanted:
        if name not in trials:
            raise UserError(f"--tasks: expected some of {', '.join(trials)}; found {name!r}")
    if wanted:
        return tuple(wanted)
    known = {tuple(row) for row in np.unique(instructions, axis=0).tolist()}
    names = tuple(
        name
        for name, trial in trials.items()
        if known & {tuple(texts(text)["instruction"].tolist()) for text in trial.instructions}
    )
    if not names:
        raise UserError(
            f"--closed_loop: expected a dataset with instructions of the simulator's tasks {', '.join(trials)}; "
            "found none: name some with --tasks"
        )
    return names


def executed(contract: Contract) -> int:
    """Targets of a chunk that are executed before the next look."""
    return max(1, round(EXECUTED_SHARE * contract.chunk))


def check_delay(options: Options, contract: Contract, longest: int) -> None:
    """Refuses what cannot be waited for, or told.

    Args:
      longest: prefix that the model takes by `options.prefix`.

    Raises:
      UserError: names the flag.
    """
    most, delay, prefix = executed(contract), options.delay, options.prefix
    if not 0 <= delay <= most:
        raise UserError(f"--delay: expected 0 to {most} actions, as the robot looks again after so many; found {delay}")
    if not prefix:
        return
    if not delay:
        raise UserError(f"--prefix={prefix}: expected --delay of at least 1, without which nothing is committed")
    if delay > longest:
        raise UserError(f"--delay: expected at most {longest}, as far as the model takes a prefix; found {delay}")
    for name in options.model:
        if not takes_prefix(name):
            raise UserError(f"--prefix={prefix}: expected --policies without {name}, which takes none")


def check_server(
    url: str, found: Mapping[str, Any], expected: Mapping[str, Any], modes: Sequence[str], prefix: str = ""
) -> None:
    """Refuses a server of another checkpoint or contract, or one that cannot do what is asked.

    Args:
      found, expected: what the server says of its policy, and what one of this checkpoint would say.
      modes, prefix: what it must serve.

    Raises:
      UserError: names the first thing that differs, with both values.
    """
    for name, ours in expected.items():
        theirs = found.get(name)
        if name == "cameras":
            ours, theirs = len(ours), len(theirs or ())
        if theirs != ours:
            raise UserError(f"--server={url}: expected {name} {ours!r}, as the checkpoint has; found {theirs!r}")
    lacking = [mode for mode in modes if mode not in found["modes"]]
    if lacking:
        raise UserError(
            f"--server={url}: expected one that serves {', '.join(lacking)}; found {', '.join(found['modes'])}: start "
            f"it with --modes={','.join([*found['modes'], *lacking])}"
        )
    method = found.get("prefix", {}).get("method", "")
    if prefix and method != prefix:
        raise UserError(
            f"--server={url}: expected one that is started with --prefix={prefix}; found {method or 'none'}"
        )


def served(model: Model, options: Options, stack: contextlib.ExitStack) -> tuple[Server, Mapping[str, Any]]:
    """Where the model is asked, and what the server says of it; the stack closes a server that is started here."""
    if not options.model:
        return Server(""), model.metadata
    if not options.server:
        policy = model.serve()
        settings = Settings(
            port=0, max_batch=options.max_batch, wait=0.02, timeout=ANSWER_WITHIN,
            max_clients=options.processes * options.lanes,
        )  # fmt: skip
        return Server(f"ws://127.0.0.1:{stack.enter_context(serving(policy, settings)).port}"), policy.metadata
    try:
        with Client(options.server, options.api_key) as client:
            metadata = client.metadata
    except (ConnectionLost, Refused) as error:
        raise UserError(f"--server: {error}") from error
    check_server(options.server, metadata, model.metadata, options.model, options.prefix)
    return Server(options.server, options.api_key), metadata


def actors_of(model: Model, options: Options, metadata: Mapping[str, Any]) -> list[Actor]:
    """Who acts, each with a key of all that its episodes depend on; a server elsewhere is known by what it says."""
    contract, actors = model.contract, []
    common = {
        "robot": catalogue.MODULES[contract.robot], "contract": contract.to_json(), "execute": executed(contract),
        "seconds": SECONDS, "seed": options.seed, "format": record.FORMAT,
    }  # fmt: skip
    late = {}  # as in keys of before there was such a thing
    if options.lateness != Lateness():
        late = {"late": dataclasses.asdict(options.lateness), "prefix": options.prefix}
    for name in options.policies:
        facts = {"policy": name, **common}
        if name in MODEL:
            facts |= {"model": model.facts, "server": dict(metadata) if options.server else None, **late}
            facts |= {"planning": model.planning} if name == "plan" else {}
            actors.append(Actor(name, record.key_of(facts), mode=name))
        else:
            facts |= {"mean_chunk": model.mean_chunk.tolist()} if name == "mean_action" else {}
            actors.append(Actor(name, record.key_of(facts), begin=_baseline(name, model)))
    return actors


def _baseline(name: str, model: Model) -> Any:
    if name == "mean_action":
        return baselines.MeanAction(model.mean_chunk)
    if not baselines.states_are_targets(model.contract):
        raise UserError(f"--policies: {name} needs a robot whose actions are targets of its state, in the same order")
    return {"hold_the_state": baselines.hold_the_state, "random_motion": baselines.random_motion}[name]


def manifest(
    model: Model, options: Options, actors: Sequence[Actor], setting: Setting, starts: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    """What somebody needs to repeat the evaluation, or to know what its numbers are of."""
    asked = {
        field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name != "api_key"
    }
    return {
        "format": record.FORMAT,
        "code": record.commit(),
        "model": dict(model.facts),
        "planning": dict(model.planning),
        "contract": model.contract.to_json(),
        "policies": {actor.name: actor.key for actor in actors},
        "starts": [{"task": task, "seed": seed} for task, seed in starts],
        "seed": options.seed,
        "executed": setting.execute,
        "seconds": setting.seconds,
        "options": asked | {"processes": options.processes, "max_batch": options.max_batch},
        "versions": record.versions(),
        "device": "of the server" if options.server else record.device(),
    }
