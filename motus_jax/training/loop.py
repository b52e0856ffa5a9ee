"""The training loop, told in acts: mesh, data, model, state (new or restored), step, loop."""

import contextlib
import dataclasses
import functools
import json
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from motus_jax import compiler, modes
from motus_jax.data import run_path, storage
from motus_jax.data.contract import Contract
from motus_jax.data.features import Features
from motus_jax.data.pipeline import Batches
from motus_jax.models import attention
from motus_jax.training import checkpoint, flops, frozen, initial, metrics, sharding, step, table, telemetry
from motus_jax.training.chips import CHIPS
from motus_jax.training.metrics import note
from motus_jax.training.plan import Plan, make_plan
from motus_jax.training.workdir import Files
from motus_jax.weights import tree

Batch = Mapping[str, np.ndarray]

VALIDATION = 2**32 - 1
"""Folded into the seed's key for validation noise; no step has this number."""


@dataclasses.dataclass(frozen=True)
class Data:
    """What the loop needs of a dataset.

    Attributes:
      batches: grain iterator over this process's part of the training batches, endless, checkpointable.
      validation: fixed held-out batches, the same in every run.
      codec_frames: makes frames uint8 [M, 1+Nf, H, W, 3] of the training split, to fit the frozen part on.
      contracts: `Contract.to_json()` of each source by name.
      features: by source, what the batches hold in place of what the frozen parts would compute; empty: they hold
        pixels.
    """

    batches: Iterator[Batch]
    validation: list[Batch]
    codec_frames: Callable[[], np.ndarray]
    contracts: dict[str, dict[str, Any]]
    features: Mapping[str, Features] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last; `frozen` is all that the step needs and does not train."""

    config: ml_collections.ConfigDict
    mesh: Mesh
    data: Data
    make_system: Callable[[ml_collections.ConfigDict], step.Trainable]
    supported_modes: tuple[str, ...]
    frozen: Any
    meta: checkpoint.Meta
    seed_key: jax.Array
    train_step: Callable[..., tuple[step.State, step.Metrics]]
    eval_step: Callable[..., step.Metrics]
    checkpoints: checkpoint.Checkpoints
    curve: metrics.Curve
    writer: metrics.Writer
    files: Files
    ledger: metrics.Ledger
    progress: metrics.Progress
    telemetry: telemetry.Telemetry


def train(
    config: ml_collections.ConfigDict,
    workdir: str | run_path.Home,
    make_system: Callable[[ml_collections.ConfigDict], step.Trainable],
    make_data: Callable[[ml_collections.ConfigDict, Mapping[str, Contract]], Data],
) -> bool:
    """Trains until `config.steps` updates are made, from the newest checkpoint in `workdir` if there is one.

    Args:
      config: an experiment's config (`experiments/`); `validate_every` = 0 leaves validation out.
      workdir: a folder or gs://; receives `checkpoints/`, `frozen/`, `base/` (parameters that are not trained),
        `config.json`, `metrics.jsonl`, `timing.jsonl` and `tensorboard/`.

    Returns:
      True if the run is complete; False if SIGTERM stopped it (after saving).

    Raises:
      UserError: a bad config, a checkpoint of another run, or a loss that is not finite.
    """
    workdir, ledger = run_path.of(workdir), metrics.Ledger()
    modes.mixture(config.mode)  # refuses an unknown mode before anything else happens
    with contextlib.ExitStack() as stack:
        saves = config.checkpoint
        checkpoints = stack.enter_context(checkpoint.Checkpoints(workdir, saves.every, saves.keep))
        found = checkpoints.latest_meta()
        if found is not None and _is_finished(found, config, workdir):
            return True

        with ledger.time("init"):
            note("Mesh")
            mesh = sharding.make_mesh(config.mesh)
            stack.enter_context(jax.set_mesh(mesh))
            sharding.check_batch(config.batch_size, config.optimizer.accumulate, mesh)
            note(f"  {dict(mesh.shape)} on {mesh.size} x {jax.devices()[0].device_kind}")

            note("Data")
            data = _open_data(config, workdir, make_data, found)

            note("Model and optimizer")
            system = make_system(config)
            note(f"  attention by {attention.words(config.model.get('overrides', {}).get('attention', 'xla'))}")
            key = jax.device_put(jax.random.key(config.seed), sharding.replicated(mesh))
            plan = make_plan(config, system, mesh)

            note("State")
            # Before the parameters: what the step does not need of it has left the devices by then.
            kept, outside = _frozen_parts(config, workdir, system, plan.params, data, mesh, found)
            if found is None:
                state, base = _first_state(config, system, plan, key)
                frozen.save(workdir, base, frozen.BASE)
                kept, start, window = {**kept, frozen.BASE: frozen.describe(base)}, 0, []
            else:
                base = frozen.load(workdir, kept[frozen.BASE], lambda _: plan.base, frozen.BASE)
                state, start, window = _restore(checkpoints, plan.state, data)
            note(table.placement_table(plan, config.optimizer.offload))

            note("Step")
            train_step = step.make_train_step(system, plan.optimizer, config.optimizer, mesh, plan.placements)
            _write_config(config, workdir)
            files = stack.enter_context(Files(workdir))
            writer = metrics.Writer(files.folder, start)
            stack.callback(writer.close)

        run = Run(
            config=config, mesh=mesh, data=data, make_system=make_system,
            supported_modes=system.supported_modes,
            frozen=tree.overlay(outside, base),
            meta=checkpoint.make_meta(config, data.contracts, plan.params, kept, plan.optimizer.trained),
            seed_key=key,
            train_step=train_step,
            eval_step=step.make_eval_step(system, mesh),
            checkpoints=checkpoints,
            curve=metrics.Curve(writer, window),
            writer=writer,
            files=files,
            ledger=ledger,
            progress=metrics.Progress(config.steps, config.batch_size, ledger, start),
            telemetry=stack.enter_context(telemetry.Telemetry(config, files.folder, start, ledger)),
        )  # fmt: skip
        return _loop(run, state, start, stack.enter_context(_sigterm()))


def _is_finished(meta: checkpoint.Meta, config: ml_collections.ConfigDict, workdir: run_path.Home) -> bool:
    """Whether nothing is left to do; refuses a config of another run."""
    checkpoint.check_same_run(meta, config, workdir)
    finished = meta["step"] >= config.steps
    if finished:
        note(f"{workdir} is trained to step {meta['step']} of {config.steps}: nothing to do")
    return finished


def _open_data(
    config: ml_collections.ConfigDict, workdir: run_path.Home, make_data: Callable[..., Data],
    found: checkpoint.Meta | None,
) -> Data:  # fmt: skip
    """The data, after a check that those of a run that goes on keep its contracts."""
    saved = {name: Contract.from_json(one) for name, one in (found or {}).get("contracts", {}).items()}
    data = make_data(config, saved)
    for name, record in data.contracts.items():
        if name in saved:  # sources may join and leave
            saved[name].check(Contract.from_json(record), expected_in=f"the checkpoint in {workdir}")
    return data


def _frozen_parts(
    config: ml_collections.ConfigDict, workdir: run_path.Home, system: step.Trainable, params: Any, data: Data,
    mesh: Mesh, found: checkpoint.Meta | None,
) -> tuple[dict[str, Any], Any]:  # fmt: skip
    """(what the checkpoints say of the frozen parts, what the step needs of them).

    A new run makes them and keeps them in the workdir, features or not: sampling needs them. One that goes on reads
    them from there. With features the step needs none.

    Args:
      params: the model's parameters, as shapes.
      found: the meta of the newest checkpoint; None in a new run.

    Raises:
      UserError: they cannot be had, or the features were made by others.
    """
    features = list(data.features.values())
    if found is None:
        fitted = features[0].fitted if features else functools.partial(_fit, system, data)
        made = initial.frozen_parts(config.init_from, system, params, mesh, fitted)
        kept = frozen.describe(made)
    else:
        made, kept = None, {name: found[name] for name in (*frozen.FIELDS, frozen.BASE)}
    for one in features:
        one.check_weights(kept["fingerprints"])
    if found is None:
        frozen.save(workdir, made)
    if features:
        note(f"  {', '.join(kept['fingerprints'])}: features from {', '.join(str(one.folder) for one in features)};"
             " not on the devices")
        return kept, {}
    if made is None:
        made = frozen.load(workdir, kept, lambda shapes: sharding.targets(shapes, mesh, sharding.FROZEN_RULES))
    return kept, made


def _fit(system: step.Trainable, data: Data) -> Any:
    note("  fitting the frozen part on training frames")
    return system.fit_frozen(data.codec_frames())


def _first_state(
    config: ml_collections.ConfigDict, system: step.Trainable, plan: Plan, key: jax.Array
) -> tuple[step.State, tree.Tree]:
    """(state, parameters that are not trained) of a new run, fresh or from where `config.init_from` says."""
    flat = tree.flatten(plan.params)
    both = {**plan.params, **system.frozen_shapes(), **system.fitted_shapes()}
    loaded = initial.load(config.init_from, both, flat)
    fresh = {path: leaf.sharding for path, leaf in flat.items() if path not in loaded}
    initial.refuse_random_kernels(fresh, plan.optimizer.trained)
    if config.init_from:
        note(initial.table(config.init_from, both, fresh))
    # What is not returned is not computed: no random copy of what was loaded ever exists.
    make = jax.jit(
        lambda key: tree.select(plan.optimizer.stored(plan.init(key)), fresh),
        out_shardings=tree.unflatten(fresh), compiler_options=compiler.options(),
    )  # fmt: skip
    first = functools.partial(step.init_state, optimizer=plan.optimizer)
    begin = jax.jit(first, out_shardings=plan.placements, donate_argnames="params")
    made = tree.overlay(make(key), tree.unflatten(loaded))
    base = tree.select(made, flat.keys() - plan.optimizer.trained)
    return begin(params=tree.select(made, plan.optimizer.trained)), base


def _restore(
    checkpoints: checkpoint.Checkpoints, abstract: Any, data: Data
) -> tuple[step.State, int, list[dict[str, float]]]:
    """(state, updates made, rows of the curve's open window); also sets the position of `data.batches`."""
    restored = checkpoints.restore(abstract, data.batches)
    note(f"  restored step {restored.step}")
    return restored.state, restored.step, restored.meta["window"]


def _loop(run: Run, state: step.State, start: int, stop: Callable[[int], bool]) -> bool:
    """Steps `start` + 1 to `config.steps`; see `train`."""
    config, ledger = run.config, run.ledger
    with ledger.time("data_wait"):
        batch = _next_batch(run)
    with ledger.time("compile"):
        note("  compiling the step")
        train_step = run.train_step.lower(state, run.frozen, batch, run.seed_key).compile()
    note(f"  compiled in {ledger.seconds['compile']:.1f} s")
    _count_work(run, state, batch)
    note(f"Loop: steps {start + 1} to {config.steps}")
    validation_keys = list(jax.random.split(jax.random.fold_in(run.seed_key, VALIDATION), len(run.data.validation)))
    before = None
    with jax.transfer_guard("disallow"):
        for number in range(start + 1, config.steps + 1):
            run.telemetry.before(number)
            with ledger.time("step"):
                state, values = train_step(state, run.frozen, batch, run.seed_key)
                run.curve.add(number, values)
            run.telemetry.after(number, values)
            complete = number == config.steps
            last = complete or stop(number)
            if complete or number % config.log_every == 0:
                _report(run, number, run.curve.end_window(number))
            if config.validate_every and (complete or number % config.validate_every == 0):
                _report(run, number, run.curve.flush())
                with ledger.time("eval"):
                    _validate(run, number, state, validation_keys)
            if last or run.checkpoints.due(number):
                _save(run, number, state)
            if last:
                break
            # The step runs while the next batch is fetched and copied; at most two steps are in flight.
            with ledger.time("data_wait"):
                batch = _next_batch(run)
            with ledger.time("step"):
                jax.block_until_ready(before)
                before = values
    with ledger.time("checkpoint"):
        run.checkpoints.wait()
    _farewell(run, number, complete)
    return complete


def _count_work(run: Run, state: step.State, batch: Mapping[str, jax.Array]) -> None:
    """Lets the progress know what a step computes, and what a device could."""
    chip = CHIPS.get(run.mesh.devices.flat[0].device_kind)
    work = flops.of_training(run.make_system, run.config, state["params"], run.frozen, batch, run.seed_key)
    run.progress.operations, run.progress.peak = work / run.mesh.size, chip.peak if chip else 0.0
    note(f"  {work / 1e12:.3g} x 10^12 operations a step")


def _next_batch(run: Run) -> dict[str, jax.Array]:
    return sharding.put_batch(next(run.data.batches), run.mesh)


def _report(run: Run, number: int, written: tuple[int, dict[str, float]] | None) -> None:
    """Says how the window that was just written went, and how fast the run is now."""
    if written is None:
        return
    speed = run.progress.report(number)
    kept = {**speed, "seconds": run.ledger.report(), **run.telemetry.report(number), **_data_report(run, number)}
    run.writer.timing(number, kept)
    note(run.progress.line(*written, speed))


def _data_report(run: Run, number: int) -> dict[str, Any]:
    """Examples drawn and put into quarantine so far, by source; why, goes into `quarantine.jsonl`."""
    batches = run.data.batches
    if not isinstance(batches, Batches):
        return {}
    for reason in batches.take_notes():
        note(f"  quarantine: {reason}")
        run.writer.quarantine(number, reason)
    return {"examples": batches.drawn, "broken": batches.broken}


def _validate(run: Run, number: int, state: step.State, keys: list[jax.Array]) -> None:
    """Losses of the averaged parameters in each mode on the held-out batches, always with the same noise."""
    results = {name: [] for name in run.supported_modes}
    weights = {name: jax.device_put(modes.weights(name), sharding.replicated(run.mesh)) for name in results}
    for batch, key in zip(run.data.validation, keys):
        on_device = sharding.put_batch(batch, run.mesh)
        for mode, values in results.items():
            values.append(run.eval_step(state, run.frozen, on_device, key, weights[mode]))
    means = {mode: metrics.window_means(jax.device_get(values)) for mode, values in results.items()}
    run.writer.scalars(
        number, {f"val/{mode}/{name}": value for mode, values in means.items() for name, value in values.items()}
    )
    note(f"  validation at {number}: " + "  ".join(f"{mode} {values['loss']:.4f}" for mode, values in means.items()))


def _save(run: Run, number: int, state: step.State) -> None:
    """Writes what is known of the curve (which also refuses a state that is not finite), then starts the save."""
    with run.ledger.time("step"):
        jax.block_until_ready(state)
    _report(run, number, run.curve.flush())
    with run.ledger.time("checkpoint"):
        # A copy: the save is asynchronous, and the loop goes on filling the window while it writes.
        meta = {**run.meta, "step": number, "window": list(run.curve.rows)}
        run.files.upload()
        run.checkpoints.save(number, state, run.data.batches, meta)


def _farewell(run: Run, number: int, complete: bool) -> None:
    report, watched = run.ledger.report(), run.telemetry.report(number)
    run.writer.timing(number, {"seconds": report, "finished": complete, **watched})
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.items())
    note(f"seconds: {spent}")
    since = watched["run"]
    note(f"goodput: {since['goodput']:.0%} of the {since['wall']:.0f} s since the run began went into steps that count")
    if complete:
        note(f"trained to step {number}")
    else:
        note(f"stopped by SIGTERM after step {number}; saved. Run the same command again to go on")


def _write_config(config: ml_collections.ConfigDict, workdir: run_path.Home) -> None:
    if jax.process_index() == 0:
        storage.write_text(workdir / "config.json", json.dumps(checkpoint.config_to_json(config), indent=1) + "\n")


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[int], bool]]:
    """Yields `stop(step)`: whether SIGTERM has arrived, on any host (all hosts agree on the step)."""
    if jax.process_count() > 1:
        # JAX's own handler tells the other hosts: one of ours would take its place.
        yield multihost_utils.reached_preemption_sync_point
        return
    arrived = []
    before = signal.signal(signal.SIGTERM, lambda *_: arrived.append(True))
    try:
        yield lambda _: bool(arrived)
    finally:
        signal.signal(signal.SIGTERM, before)
