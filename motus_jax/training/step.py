"""The training state and the two compiled functions of a run: `train_step` and `eval_step`.

State: `{"step": int32, "params": tree, "ema": tree, "opt_state": ...}`, of the trained leaves only; `ema` (float32) is
empty if no average is kept. `step` counts the updates made. What is not trained, encoders and parameters alike, is the
argument `frozen`: no gradient, no moments, no copy. What `motus_jax.training.offload` keeps in the host's memory comes
to the devices for the update.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from motus_jax import compiler
from motus_jax.training import offload, sharding
from motus_jax.training.optimizer import Optimizer, ema_decay, global_norm
from motus_jax.weights import tree

State = dict[str, Any]
Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]

STREAMS = ("video", "action", "understanding")


class Trainable(Protocol):
    """What training needs of `motus_jax.models.system.System`."""

    supported_modes: tuple[str, ...]

    def init(self, key: PRNGKeyArray) -> tree.Tree: ...

    def fit_frozen(self, frames: Any) -> tree.Tree: ...

    def fitted_shapes(self) -> tree.Tree: ...

    def frozen_shapes(self) -> tree.Tree: ...

    def loss(
        self, params: tree.Tree, frozen: tree.Tree, batch: Batch, key: PRNGKeyArray, mode_weights: Array | None = None
    ) -> tuple[Float[Array, ""], Metrics]: ...


def init_state(params: tree.Tree, optimizer: Optimizer) -> State:
    """The state before the first update; of `params` the trained leaves are read.

    Pure: run it under `jax.jit` with `out_shardings`, or `jax.eval_shape`.
    """
    trained = tree.select(params, optimizer.trained)
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": trained,
        "ema": jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trained) if optimizer.ema else {},
        "opt_state": optimizer.transform.init(trained),
    }


def make_train_step(
    system: Trainable, optimizer: Optimizer, config: ml_collections.ConfigDict, mesh: Mesh, shardings: Any
) -> Callable[[State, tree.Tree, Batch, PRNGKeyArray], tuple[State, Metrics]]:
    """The jitted `train_step(state, frozen, batch, seed_key) -> (state, metrics)`; `state` is donated.

    Args:
      config: `config.optimizer`, of which `accumulate` is the number of microbatches per update. Microbatch i takes
        the examples i, i + accumulate, ... so that each one is spread over all devices; gradients and metrics are means
        over microbatches.
      shardings: where the state lies, before and after.

    The update is a function of the arguments alone: its randomness is `fold_in(seed_key, state["step"])`.
    """

    def train_step(state: State, frozen: tree.Tree, batch: Batch, seed_key: PRNGKeyArray) -> tuple[State, Metrics]:
        key = jax.random.fold_in(seed_key, state["step"])

        def loss(trained: tree.Tree, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Metrics]:
            value, metrics = system.loss(tree.overlay(frozen, trained), frozen, batch, key)
            return value, {**metrics, "loss": value}

        grads, metrics = _gradients(loss, state["params"], batch, key, config.accumulate)

        def update(old: State) -> State:
            updates, opt_state = optimizer.transform.update(grads, old["opt_state"], old["params"])
            trained = optax.apply_updates(old["params"], updates)
            decay = ema_decay(optimizer.ema, old["step"] + 1)
            average = optax.incremental_update(trained, old["ema"], 1.0 - decay) if optimizer.ema else {}
            return {"step": old["step"] + 1, "params": trained, "ema": average, "opt_state": opt_state}

        new = offload.update(update, state, grads)
        metrics |= _norms(grads, new["params"]) | {"lr": optimizer.schedule(state["step"])}
        return new, _as_float32(metrics)

    return jax.jit(
        train_step,
        donate_argnames=("state",),
        out_shardings=(shardings, sharding.replicated(mesh)),
        compiler_options=compiler.options(mesh.devices.flat[0].platform),
    )


def make_eval_step(system: Trainable, mesh: Mesh) -> Callable[[State, tree.Tree, Batch, PRNGKeyArray, Array], Metrics]:
    """The jitted `eval_step(state, frozen, batch, key, mode_weights)`: losses of the averaged parameters, or of the
    parameters themselves where no average is kept.

    The mode is an argument (`motus_jax.modes.weights`), so one program serves all modes.
    """

    def eval_step(state: State, frozen: tree.Tree, batch: Batch, key: PRNGKeyArray, mode_weights: Array) -> Metrics:
        params = tree.overlay(frozen, offload.on_device(state["ema"] or state["params"]))
        value, metrics = system.loss(params, frozen, batch, key, mode_weights)
        return _as_float32({**metrics, "loss": value})

    return jax.jit(
        eval_step,
        out_shardings=sharding.replicated(mesh),
        compiler_options=compiler.options(mesh.devices.flat[0].platform),
    )


def _gradients(
    loss: Callable[..., tuple[Array, Metrics]], trained: tree.Tree, batch: Batch, key: PRNGKeyArray, accumulate: int
) -> tuple[tree.Tree, Metrics]:
    """Mean gradients and metrics over `accumulate` microbatches, each with its own key."""
    gradient = jax.grad(loss, has_aux=True)
    if accumulate == 1:
        return gradient(trained, batch, key)

    def split(x: Array) -> Array:
        return x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, part: tuple[Batch, PRNGKeyArray]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(trained, *part)), None

    parts = (jax.tree.map(split, dict(batch)), jax.random.split(key, accumulate))
    first = jax.tree.map(lambda x: x[0], parts)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, trained, *first))
    total, _ = jax.lax.scan(add, zero, parts)
    return jax.tree.map(lambda x: x / accumulate, total)


def _norms(grads: tree.Tree, trained: tree.Tree) -> Metrics:
    """Global norms: the gradient before clipping, whole and per group, and the trained parameters."""
    flat = tree.flatten(grads)
    groups: dict[str, dict[str, Array]] = {}
    for path, leaf in flat.items():
        groups.setdefault(group_of(path), {})[path] = leaf
    norms = {f"grad_norm/{name}": global_norm(leaves) for name, leaves in groups.items()}
    return norms | {"grad_norm": global_norm(flat), "param_norm": global_norm(tree.flatten(trained))}


def group_of(path: str) -> str:
    """The stream a parameter belongs to (its first path component that names one), else its top-level name."""
    parts = path.split("/")
    return next((part for part in parts if part in STREAMS), parts[0])


def _as_float32(metrics: Metrics) -> Metrics:
    return {name: jnp.asarray(value, jnp.float32) for name, value in sorted(metrics.items())}
