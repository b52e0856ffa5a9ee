"""What the latency benchmark samples: a trained run on held-out chunks, or random weights of any size."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from motus_jax.data.contract import Contract
from motus_jax.data.mixture import make_dataset, settings_of
from motus_jax.data.run_path import Home
from motus_jax.evaluate import what_is_given
from motus_jax.evaluation.held_out import ActionUnits, spread
from motus_jax.models.system import System
from motus_jax.sampling.precision import LAYERS
from motus_jax.training.checkpoint import load_for_inference
from motus_jax.weights import tree


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and observations for it.

    Attributes:
      name: what it is, for the report.
      batches: observations of one row each.
      raw_states: of the observations, [n, Pr], and `units` of the robot; None where weights are random.
    """

    name: str
    config: ml_collections.ConfigDict
    system: System
    params: Mapping[str, Any]
    frozen: Mapping[str, Any]
    batches: list[dict[str, np.ndarray]]
    raw_states: np.ndarray | None = None
    units: ActionUnits | None = None

    def in_robot_units(self, ours: np.ndarray, theirs: np.ndarray) -> dict[str, np.ndarray]:
        """Absolute differences of normalised actions [n, T, A], by unit of the robot."""
        if self.units is None:
            return {}
        a, b = (self.units.denormalise(actions, self.raw_states) for actions in (ours, theirs))
        return {unit: np.abs(a - b)[..., self.units.dimensions(unit)] for unit in dict.fromkeys(self.units.units)}


def from_run(workdir: Home, count: int) -> Subject:
    """A run's newest checkpoint, on chunks spread over the held-out episodes."""
    loaded = load_for_inference(workdir)
    contract = Contract.from_json(loaded.contract())
    dataset = make_dataset(settings_of(loaded.config.data, ""), "test", contract=contract)
    places = [(int(episode), int(row)) for episode, row in dataset.starts[spread(count, len(dataset.starts))]]
    batches = []
    for place in places:
        example = {name: np.asarray(value)[None] for name, value in dataset.example(*place).items()}
        batches.append(what_is_given("vla", example))
    states = np.stack([dataset.raw_state(*place) for place in places])
    name = f"trained run, step {loaded.step}, {len(places)} held-out chunks"
    return Subject(name, loaded.config, System(loaded.config), loaded.params, loaded.frozen, batches, states,
                   ActionUnits.of(contract))  # fmt: skip


def from_random(config: ml_collections.ConfigDict, count: int, **overrides: int) -> Subject:
    """Random weights of an experiment's sizes, the layers' matrices in the type that products are made in.

    Args:
      overrides: of the model's fields; 0 keeps the experiment's.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.overrides.update({name: value for name, value in overrides.items() if value})
    system, rng = System(config), np.random.default_rng(0)
    dtype = jnp.dtype(system.motus_config.dtype)
    params = _drawn(jax.eval_shape(system.init, jax.random.key(0)), dtype)
    frozen = _drawn({**system.frozen_shapes(), **system.fitted_shapes()}, dtype)
    batches, data = [], config.data
    for _ in range(count):
        batch = {name: np.asarray(value) for name, value in system.empty_batch().items()}
        batch["frames"] = rng.integers(0, 256, (1, 1 + data.video_frames, *data.image_size, 3), np.uint8)
        batch["state"] = rng.standard_normal((1, data.state_dim), np.float32)
        batch["instruction"] = rng.integers(1, 200, batch["instruction"].shape, np.int32)
        batches.append(batch)
    return Subject(f"random weights, depth {system.motus_config.depth}", config, system, params, frozen, batches)


def _drawn(shapes: Any, layers_dtype: Any) -> dict[str, Any]:
    """Matrices that keep the size of what they are multiplied with, norms of one, everything else small, heads too."""
    found = {}
    for index, (path, leaf) in enumerate(tree.flatten(shapes).items()):
        dtype = layers_dtype if LAYERS.fullmatch(path) else leaf.dtype
        if path.endswith("scale"):
            found[path] = jnp.ones(leaf.shape, dtype)
            continue
        deviation = leaf.shape[-2] ** -0.5 if path.endswith("kernel") and leaf.ndim > 1 else 0.02
        found[path] = jnp.asarray(deviation, dtype) * jax.random.normal(jax.random.key(index), leaf.shape, dtype)
    return tree.unflatten(found)
