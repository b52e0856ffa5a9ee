"""Checkpoints: what is in one, when they are written, and how a run or a sampler gets it back.

`workdir/checkpoints/STEP/` holds three parts, written asynchronously by Orbax and visible only when complete:
`state` (trained parameters, average, optimizer), `data` (the grain iterator's position) and `meta` (JSON: format
version, config, contracts, names and shapes of the parameters, the open window of the curve). What is not trained lies
beside them in `workdir/frozen` and `workdir/base`, once for all steps (`motus_jax.training.frozen`).
"""

import contextlib
import dataclasses
import fnmatch
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from motus_jax.data import run_path
from motus_jax.data.mixture import primary_name
from motus_jax.data.run_path import Home, absolute, for_orbax
from motus_jax.errors import UserError
from motus_jax.training import frozen
from motus_jax.training.metrics import note
from motus_jax.weights import lora, tree

FORMAT = 3
"""Version of the layout above; a reader refuses another one."""

MAY_CHANGE = (
    "steps", "log_every", "validate_every", "checkpoint", "platform", "mesh", "sampling", "profile", "stall_seconds",
    "data.threads", "data.workers", "data.prefetch", "data.features", "data.cache_gib", "data.broken_limit",
    "data.path", "data.weight", "data.layers", "data.sources.*.path", "data.sources.*.weight",
    "data.sources.*.features", "data.sources.*.cache_gib", "optimizer.offload",
)  # fmt: skip
"""Config keys that a resumed run may change: they change neither the model nor the order of the examples of a source.
(State at the host is the same numbers. Features equal what the run's own frozen parts compute, to rounding; that they
are made by these is checked, and that the data at a new path have the numbers of the contract.) Sources may join a
mixture and leave it."""

YOUNGER = {("noise", "prefix"): {"probability": 0.0, "longest": 0}, ("optimizer", "mu_dtype"): "float32"}
"""Config keys that older checkpoints lack, and what their runs did."""

Meta = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Restored:
    """A run's position: everything that `Checkpoints.save` was given."""

    step: int
    state: dict[str, Any]
    meta: Meta


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What sampling and evaluation need; `params` are all parameters, averaged where an average is kept,
    `contracts` the contract of each source as JSON."""

    config: ml_collections.ConfigDict
    contracts: dict[str, dict[str, Any]]
    params: tree.Tree
    frozen: tree.Tree
    step: int

    def contract(self, source: str = "") -> dict[str, Any]:
        """The contract of a source, by default of the one that evaluation takes.

        Raises:
          UserError: no such source.
        """
        name = source or primary_name(self.config.data)
        if name not in self.contracts:
            raise UserError(f"source {name!r}: expected one of {', '.join(self.contracts)}; found no such source")
        return self.contracts[name]


class Checkpoints:
    """The checkpoints of one run; use as a context manager, which waits for the last save.

    Args:
      workdir: the run's directory.
      every: save interval in steps.
      keep: how many of the latest checkpoints survive. At least 2 allow going back when the last one is damaged.
    """

    def __init__(self, workdir: Home, every: int, keep: int) -> None:
        if every < 1 or keep < 1:
            raise UserError(f"config.checkpoint: expected every >= 1 and keep >= 1, found every={every}, keep={keep}")
        run_path.check_writable(workdir)
        self._root = directory_of(workdir)
        self._every, self._keep = every, keep
        self._orbax = self._open()

    def _open(self) -> ocp.training.Checkpointer:
        # Without a decision policy Orbax drops a request that comes while a save is running.
        return ocp.training.Checkpointer(
            for_orbax(self._root),
            context=_context(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(self._every),
            preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._orbax.close()

    def due(self, step: int) -> bool:
        """Whether `step` is one to save at."""
        return self._orbax.should_save(step)

    def save(self, step: int, state: Mapping[str, Any], data: Any, meta: Meta) -> None:
        """Starts a save and returns as soon as the arrays are copied to the host; waits for a save still running.

        Args:
          data: the grain iterator; its position must be that of the first batch after `step`.

        Raises:
          UserError: this save, or the one that was running, cannot be written.
        """
        parts = {"state": state, "data": data, "meta": meta}
        with self._writing():
            if self._orbax.save_checkpointables_async(step, parts, force=True) is None:
                raise RuntimeError(f"Orbax refused to save step {step}")

    def wait(self) -> None:
        """Waits until the last save is complete.

        Raises:
          UserError: it cannot be written.
        """
        with self._writing():
            self._orbax.wait()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and tensorstore raise many types where a disk is full or read-only
            reason = " ".join(str(error).split())[:300]
            kept = ", ".join(map(str, self._steps())) or "none"
            raise UserError(
                f"{self._root}: a checkpoint could not be written ({type(error).__name__}: {reason}); complete ones:"
                f" {kept}. Make room, or allow writing, and run the same command again"
            ) from error

    def latest_meta(self) -> Meta | None:
        """The meta of the newest checkpoint that has a readable one; None if there is no checkpoint.

        Raises:
          UserError: there are checkpoints but none is readable, or its format is another one.
        """
        if not self._steps():
            return None
        return self._newest_readable(lambda step: read_meta(self._root, step))

    def restore(self, state: Any, data: Any) -> Restored:
        """The newest checkpoint that is whole, laid out as asked.

        Damaged ones are reported and moved to `workdir/damaged_checkpoints`, since their steps will be saved again.

        Args:
          state: `jax.ShapeDtypeStruct`s with shardings.
          data: the grain iterator, whose position is set.

        Raises:
          UserError: none is readable.
        """
        newest = max(self._steps())
        restored = self._newest_readable(lambda step: self._load(step, state, data))
        if restored.step != newest:
            self._set_aside(restored.step)
        return restored

    def _load(self, step: int, state: Any, data: Any) -> Restored:
        meta = read_meta(self._root, step)
        loaded = self._orbax.load_checkpointables(step, {"state": state, "data": data})
        return Restored(step, loaded["state"], meta)

    def _steps(self) -> list[int]:
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    def _newest_readable(self, read: Callable[[int], Any]) -> Any:
        return newest_readable(self._root, self._steps(), read)

    def _set_aside(self, good: int) -> None:
        aside = self._root.parent / "damaged_checkpoints"
        if jax.process_index() == 0:
            for step in self._steps():
                if step > good:
                    run_path.move(self._root / str(step), aside / str(step))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._orbax.close()
        self._orbax = self._open()


def load_for_inference(workdir: str | Home, step: int | None = None) -> Loaded:
    """Reads what sampling and evaluation need from a run's checkpoint, onto the first device.

    Args:
      workdir: the run's directory.
      step: which checkpoint; None is the newest that is whole.

    Raises:
      UserError: no checkpoint, no such step, another format, or nothing readable, the frozen parts included.
    """
    workdir = run_path.of(workdir)
    root = directory_of(workdir)
    steps = available_steps(workdir)
    if not steps:
        raise UserError(f"no checkpoint in {workdir}: expected a directory written by motus_jax.train --workdir")
    if step is not None and step not in steps:
        raise UserError(f"no checkpoint of step {step} in {workdir}: found steps {', '.join(map(str, steps))}")
    asked = steps if step is None else [step]
    step, meta, params = newest_readable(root, asked, lambda s: (s, *_load_averaged(root, s)))
    base = frozen.load(workdir, meta[frozen.BASE], _on_first_device, frozen.BASE)
    kept = frozen.load(workdir, meta, _on_first_device)
    return Loaded(config_from_json(meta["config"]), meta["contracts"], tree.overlay(base, params), kept, step)


def _load_averaged(root: Home, step: int) -> tuple[Meta, tree.Tree]:
    """The meta of one checkpoint, and its trained parameters, averaged if an average is kept."""
    meta = read_meta(root, step)
    trained = tree.select(tree.abstract(meta["parameters"]), meta["trained"])
    return meta, _load_state(root, step, meta, _on_first_device(trained))


def _load_state(root: Home, step: int, meta: Meta, targets: tree.Tree) -> tree.Tree:
    """Trained parameters of one checkpoint, averaged if an average is kept."""
    part = "ema" if meta["config"]["optimizer"]["ema"] else "params"
    context = _context()
    context.pytree.loading.partial_load = True  # the optimizer's state stays on disk
    with context:
        return ocp.load_checkpointables(for_orbax(root / str(step)), {"state": {part: targets}})["state"][part]


def _on_first_device(shapes: Any) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes)


def leaf_shapes(workdir: Home) -> dict[str, tuple[int, ...]]:
    """Leaf path -> shape of everything but the optimizer's state in a run's newest checkpoint that is whole."""
    root = directory_of(workdir)
    meta = newest_readable(root, available_steps(workdir), lambda step: read_meta(root, step))
    return {path: tuple(shape) for part in ("parameters", "frozen") for path, (shape, _) in meta[part].items()}


def load_leaves(workdir: Home, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Chosen leaves of a run: trained ones of its newest checkpoint that is whole (averaged if an average is kept), the
    others from where they are kept once.

    A kernel whose adapters are not asked for comes merged with them (`motus_jax.weights.lora`).

    Args:
      targets: leaf path -> shape, type and sharding; values are cast to that type.
    """
    root = directory_of(workdir)

    def read(step: int) -> tuple[Meta, dict[str, jax.Array]]:
        meta = read_meta(root, step)
        trained = {path: leaf for path, leaf in _unmerged(meta, targets).items() if path in meta["trained"]}
        state = _load_state(root, step, meta, tree.unflatten(trained)) if trained else {}
        return meta, tree.flatten(state)

    meta, found = newest_readable(root, available_steps(workdir), read)
    kept = {path: leaf for path, leaf in _unmerged(meta, targets).items() if path not in found}
    base = {path: leaf for path, leaf in kept.items() if path in meta[frozen.BASE]["frozen"]}
    encoders = {path: leaf for path, leaf in kept.items() if path not in base}
    found |= frozen.load_leaves(workdir, base, frozen.BASE) | frozen.load_leaves(workdir, encoders)
    for path, adapters in _to_merge(meta, targets).items():
        found[path] = _merged(targets[path], found[path], *(found.pop(adapter) for adapter in adapters))
    return found


def _merged(target: jax.ShapeDtypeStruct, *leaves: jax.Array) -> jax.Array:
    merge = jax.jit(lambda *leaves: lora.merge(*leaves).astype(target.dtype), out_shardings=target.sharding)
    return merge(*leaves)


def _to_merge(meta: Meta, targets: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Path of every kernel of `targets` that comes merged -> the paths of its adapters."""
    return {path: adapters for path, adapters in lora.adapted(meta["parameters"]).items()
            if path in targets and not targets.keys() >= set(adapters)}  # fmt: skip


def _unmerged(meta: Meta, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """What has to be read to make `targets`: for merging, kernels in their own type and all of their adapters."""
    found = dict(targets)
    for path, adapters in _to_merge(meta, targets).items():
        place = targets[path].sharding
        if isinstance(place, jax.sharding.NamedSharding):
            narrow = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())
        else:
            narrow = place
        for leaf, where in ((path, place), *((adapter, narrow) for adapter in adapters)):
            shape, dtype = meta["parameters"][leaf]
            found[leaf] = jax.ShapeDtypeStruct(tuple(shape), jax.numpy.dtype(dtype), sharding=where)
    return found


def available_steps(workdir: str | Home) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    root = directory_of(run_path.of(workdir))
    if not root.is_dir():
        return []
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())


def directory_of(workdir: Home) -> Home:
    return absolute(workdir) / "checkpoints"


def newest_readable(root: Home, steps: list[int], read: Callable[[int], Any]) -> Any:
    """`read(step)` of the newest step for which it succeeds; says which ones it gave up on.

    Raises:
      UserError: none succeeds, or `read` raises it.
    """
    reason = ""
    for step in sorted(steps, reverse=True):
        try:
            return read(step)
        except UserError:
            raise
        except Exception as error:  # Orbax, tensorstore and JSON raise many types on damaged files
            reason = " ".join(str(error).split())[:300]
            note(f"checkpoint {root / str(step)} is damaged, trying the one before ({type(error).__name__}: {reason})")
    raise UserError(
        f"none of the checkpoints {', '.join(map(str, steps))} in {root} can be read (last reason: {reason});"
        " restore a copy, or start again with another --workdir"
    )


def make_meta(
    config: ml_collections.ConfigDict, contracts: dict[str, Any], params: tree.Tree, kept: Mapping[str, Any],
    trained: frozenset[str],
) -> Meta:  # fmt: skip
    """The part of the meta that stays the same over a run; `step` and `window` are added at each save.

    Args:
      params: all parameters, as arrays or shapes.
      kept: what `frozen.describe` says of the frozen encoders and, under `frozen.BASE`, of what else is not trained.
    """
    return {
        "format": FORMAT,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")},
        "config": config_to_json(config),
        "contracts": contracts,
        "parameters": tree.describe(params),
        "trained": sorted(trained),
        **kept,
    }


def read_meta(root: Home, step: int) -> Meta:
    """The JSON part of one checkpoint.

    Raises:
      UserError: another format version.
    """
    meta = json.loads((root / str(step) / "meta" / "data.json").read_text())
    if meta["format"] != FORMAT:
        raise UserError(
            f"checkpoint {root / str(step)}: expected format {FORMAT}, found {meta['format']}; read it with the version"
            " that wrote it, or train again"
        )
    return meta


def check_same_run(meta: Meta, config: ml_collections.ConfigDict, workdir: Home) -> None:
    """Refuses to resume with a config that would make another model or another order of data.

    Raises:
      UserError: names the first key that differs.
    """
    saved, found = (_completed(each) for each in (meta["config"], config_to_json(config)))
    before, now = (each.get("data", {}).get("sources", {}) for each in (saved, found))
    changed = set(before) ^ set(now) if before and now else ()
    difference = first_difference(saved, found, (*MAY_CHANGE, *(f"data.sources.{name}" for name in changed)))
    if difference:
        key, saved, asked = difference
        raise UserError(
            f"config.{key}: the checkpoint in {workdir} was trained with {saved!r}, expected the same, found {asked!r};"
            " undo the change or use another --workdir"
        )


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with what is `YOUNGER` than it."""
    for (group, key), value in YOUNGER.items():
        if group in config:
            config = {**config, group: {key: value, **config[group]}}
    return dict(config)


ABSENT = "(absent)"


def first_difference(
    saved: Any, found: Any, ignore: tuple[str, ...] = (), path: str = ""
) -> tuple[str, Any, Any] | None:
    """The first key, in sorted order, at which two JSON values differ: (dotted key, saved, found); a `*` in what is
    ignored stands for anything."""
    if any(fnmatch.fnmatchcase(path, pattern) for pattern in ignore):
        return None
    if not (isinstance(saved, Mapping) and isinstance(found, Mapping)):
        return None if saved == found else (path, saved, found)
    for key in sorted(set(saved) | set(found)):
        inner = f"{path}.{key}" if path else key
        difference = first_difference(saved.get(key, ABSENT), found.get(key, ABSENT), ignore, inner)
        if difference:
            return difference
    return None


def config_to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as JSON would give it back (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def config_from_json(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The inverse of `config_to_json`; lists become tuples, as configs have them."""

    def tuples(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: tuples(inner) for key, inner in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return ml_collections.ConfigDict(tuples(values))


def _context() -> ocp.Context:
    """Orbax settings: `meta` is one JSON file rather than one array file per number."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context
