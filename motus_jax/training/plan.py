"""What a run will hold and where, before any of it exists: for the loop, and to compile its step on absent devices."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from motus_jax.training import initial, offload, sharding, step
from motus_jax.training.optimizer import Optimizer, make_optimizer
from motus_jax.weights import tree


@dataclasses.dataclass(frozen=True)
class Plan:
    """Shapes, types and placements of a run.

    Attributes:
      init: makes fresh parameters from a key, float32; jitted, so that it is traced once for all that follows.
      optimizer: what is trained, and how.
      params, state: all parameters, and the state of `motus_jax.training.step`, as `jax.ShapeDtypeStruct`s with
        shardings; the parameters in the types that they are kept in.
    """

    init: Callable[[PRNGKeyArray], tree.Tree]
    optimizer: Optimizer
    params: tree.Tree
    state: step.State

    @property
    def base(self) -> tree.Tree:
        """The part of `params` that is not trained."""
        return tree.select(self.params, tree.flatten(self.params).keys() - self.optimizer.trained)

    @property
    def placements(self) -> Any:
        """The shardings of `state`."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)


def make_plan(config: ml_collections.ConfigDict, system: step.Trainable, mesh: Mesh) -> Plan:
    """The plan of `config` on a mesh.

    Raises:
      UserError: tables that do not fit the parameters or the state, or a large parameter without a placement.
    """
    key = jax.eval_shape(lambda: jax.random.key(config.seed))
    init = jax.jit(functools.partial(initial.fresh, system, config.lora))
    optimizer = make_optimizer(config.optimizer, jax.eval_shape(init, key), config.steps)
    params = sharding.targets(jax.eval_shape(lambda key: optimizer.stored(init(key)), key), mesh)
    state = jax.eval_shape(functools.partial(step.init_state, optimizer=optimizer), params)
    state = offload.place(sharding.targets(state, mesh), config.optimizer.offload, mesh)
    return Plan(init, optimizer, params, state)
