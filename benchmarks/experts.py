"""What both sides of the training-step benchmark compute on: the experts alone, with given encodings.

Latents, text states, hidden states of the vision-language model, noise and noise levels are arguments here, so that no
encoder and no random number is part of the comparison.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from motus_jax import flow_matching
from motus_jax.models.losses import action_loss, video_loss
from motus_jax.models.system import System
from motus_jax.training import sharding, step
from motus_jax.training.optimizer import make_optimizer

Batch = dict[str, np.ndarray]


def make_batch(config: ml_collections.ConfigDict, seed: int = 0) -> Batch:
    """A batch of an experiment's sizes with everything an encoder would give; channel-last.

    latents, video_noise [B, F, H, W, C]; actions, action_noise, action_mask [B, T, A]; state [B, P]; tau_video,
    tau_action [B]; text_states [B, M, E] and text_mask [B, M]; vlm_states [B, U, V] and vlm_mask [B, U].
    """
    rng, data, system = np.random.default_rng(seed), config.data, System(config)
    b, length = config.batch_size, config.data.instruction_length

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    words = np.arange(length) < rng.integers(length // 3, length, (b, 1))
    tokens = words.astype(np.int32)
    seen = {"frames": np.zeros((b, 1, *data.image_size, 3), np.uint8), "instruction": tokens, "instruction_mask": words}
    vlm_params = jax.eval_shape(system.vlm.init, jax.random.key(0), seen)
    states, _ = jax.eval_shape(system.vlm.states, vlm_params, seen)
    groups = length // system.vlm.config.bytes_per_token
    real_text = words.reshape(b, groups, -1).any(-1)
    vlm_mask = np.concatenate([np.ones((b, states.shape[1] - groups), bool), real_text], 1)
    video, actions = (b, *system.latent_shape), (b, data.chunk, data.action_dim)
    return {
        "latents": normal(*video),
        "video_noise": normal(*video),
        "actions": normal(*actions),
        "action_noise": normal(*actions),
        "action_mask": np.ones(actions, bool),
        "state": normal(b, data.state_dim),
        "tau_video": rng.random(b, np.float32),
        "tau_action": rng.random(b, np.float32),
        "text_states": normal(b, length, system.motus_config.video.text_width) * words[..., None],
        "text_mask": words,
        "vlm_states": normal(*states.shape) * vlm_mask[..., None],
        "vlm_mask": vlm_mask,
    }


class Experts:
    """Motus without its encoders, as `motus_jax.training.step.Trainable`."""

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        self.system = System(config)
        self.video_average = config.loss.video_average

    def init(self, key: PRNGKeyArray) -> dict[str, Any]:
        """The parameters of the experts alone."""
        return self.system.init(key)["motus"]

    def fit_frozen(self, frames: np.ndarray) -> dict[str, Any]:
        """Nothing is frozen here."""
        return {}

    def frozen_shapes(self) -> dict[str, Any]:
        """Nothing is frozen here."""
        return {}

    def velocities(self, params: dict[str, Any], batch: Batch) -> tuple[Array, Array]:
        """Both velocities at the noise levels of the batch; the condition frame is clean. Without masks all is real."""
        video = flow_matching.interpolate(batch["latents"], batch["video_noise"], batch["tau_video"])
        video = jnp.concatenate([batch["latents"][:, :1], video[:, 1:]], axis=1)
        actions = flow_matching.interpolate(batch["actions"], batch["action_noise"], batch["tau_action"])
        times = (flow_matching.TIMESTEP_SCALE * batch[f"tau_{name}"] for name in ("video", "action"))
        given = (batch.get(name) for name in ("text_states", "text_mask", "vlm_states", "vlm_mask"))
        return self.system.motus.apply({"params": params}, video, actions, batch["state"], *times, *given)

    def loss(
        self, params: dict[str, Any], frozen: dict[str, Any], batch: Batch, key: PRNGKeyArray, mode_weights: Any = None
    ) -> tuple[Array, dict[str, Array]]:
        """Sum of both streams' mean squared errors."""
        video, actions = self.velocities(params, batch)
        losses = {
            "loss/video": video_loss(video, batch["video_noise"] - batch["latents"], self.video_average).mean(),
            "loss/action": action_loss(actions, batch["action_noise"] - batch["actions"], batch["action_mask"]).mean(),
        }
        return sum(losses.values()), losses


def make_step(config: ml_collections.ConfigDict, batch: Batch) -> Callable[[], float]:
    """One update of our training step (`motus_jax.training.step`) with AdamW, which waits for it and gives the loss."""
    train_step, new_state, shardings, mesh = _parts(config)
    state, placed = jax.jit(new_state, out_shardings=shardings)(), sharding.put_batch(batch, mesh)
    key = jax.random.key(config.seed)

    def update() -> float:
        nonlocal state
        state, found = train_step(state, {}, placed, key)
        jax.block_until_ready(state)
        return float(found["loss"])

    return update


def bytes_of_step(config: ml_collections.ConfigDict, batch: Batch) -> int:
    """What the compiled step takes of a device, arguments and temporaries; nothing is run or allocated."""
    train_step, new_state, shardings, mesh = _parts(config)
    shapes = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(new_state), shardings,
    )  # fmt: skip
    placed, key = sharding.put_batch(batch, mesh), jax.random.key(config.seed)
    sizes = train_step.lower(shapes, {}, placed, key).compile().memory_analysis()
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + sizes.output_size_in_bytes - (
        sizes.alias_size_in_bytes)  # fmt: skip


def _parts(config: ml_collections.ConfigDict) -> tuple[Callable, Callable, Any, Any]:
    """The step, what makes its first state, where that lies, the mesh."""
    experts, key = Experts(config), jax.random.key(config.seed)
    settings = config.optimizer.copy_and_resolve_references()
    settings.update(name="adamw", lr_multipliers=((".*", 1.0),))
    optimizer = make_optimizer(settings, jax.eval_shape(experts.init, key), config.steps)
    mesh = sharding.make_mesh(config.mesh)

    def new_state() -> step.State:
        return step.init_state(experts.init(key), optimizer)

    shardings = sharding.tree_shardings(jax.eval_shape(new_state), mesh)
    return step.make_train_step(experts, optimizer, settings, mesh, shardings), new_state, shardings, mesh
