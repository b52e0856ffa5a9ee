"""The whole trained and sampled system: Motus and its three encoders, as pure functions of parameter trees.

Two trees: `params` is trained, `frozen` is not. `config.model.frozen` names the encoders (`video_codec`,
`text_encoder`, `vlm`) of the second; Motus is always in the first. Which network an encoder is, is a row of
`motus_jax.models.encoders`.

A batch may hold what an encoder would make of it (`chunk_features`, `text_states`, computed once ahead of time): the
encoder is then not run, and its parameters may be absent.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from motus_jax import flow_matching, modes
from motus_jax.errors import UserError
from motus_jax.models import action_tail
from motus_jax.models.action_prefix import Prefixes
from motus_jax.models.config import get_variant
from motus_jax.models.encoders import UNDERSTANDING_ENCODERS, VIDEO_ENCODERS, pick, text_encoder, unit
from motus_jax.models.losses import action_loss, seen_places, video_loss
from motus_jax.models.motus import Context, Motus, with_text_cache, with_time_cache

ENCODERS = ("video_codec", "text_encoder", "vlm")
BANDS = 4
"""Noise bands of the loss metrics: tau in [0, 1/4), [1/4, 1/2), ..."""
PREDICTIONS = ("velocity", "clean")

Params = Mapping[str, Any]


class Clean(NamedTuple):
    """What the noise is added to, and what stays clean.

    Attributes:
      video: latents of the clip, [B, F, h, w, C]; frame 0 is the condition frame.
      actions: normalised chunk [B, T, A].
      state: [B, P], or None in the action-only form.
    """

    video: Float[Array, "B F h w C"]
    actions: Float[Array, "B T A"]
    state: Float[Array, "B P"] | None


class System:
    """Pure functions built from an experiment's config; holds no arrays.

    Args:
      config: needs `model`, `noise`, `loss`, `mode` and, of `data`, the sizes (experiments/demo.py documents them).

    Raises:
      UserError: a value that is none of the choices, named.
    """

    def __init__(self, config: Any) -> None:
        if config.system != "motus":
            raise UserError(
                f"config.system: expected motus, found {config.system}: this run has no experts to sample or evaluate;"
                " name it in config.init_from of a run that has"
            )
        data, model = config.data, config.model
        self.config = config
        self._mode_weights = modes.weights(config.mode)
        self.motus_config = get_variant(model.variant, _with_action_sizes(model.overrides, data))
        if self.motus_config.video_only and modes.mixture(config.mode) != {"video": 1.0}:
            raise UserError(f"config.mode: expected video for a model that is video_only, found {config.mode!r}")
        self.motus = Motus(self.motus_config)
        self.prefixes = Prefixes.of(config.noise, data.chunk)
        self.codec = pick(VIDEO_ENCODERS, "video_codec", self.motus_config.video.latent_channels, model.video_codec)
        self.text_encoder = text_encoder(self.motus_config.video.text_width, model.text_encoder)
        width = self.motus_config.understanding.input_width
        self.vlm = pick(UNDERSTANDING_ENCODERS, "vlm", width, model.vlm)
        self.frozen_parts = frozenset(model.frozen)
        self._parts = jax.jit(self._init_parts)  # traced once for shapes and values
        if not {"video_codec"} <= self.frozen_parts <= set(ENCODERS):
            raise UserError(
                f"config.model.frozen: expected video_codec and perhaps text_encoder and vlm, found {model.frozen}"
            )
        choices = {f"model.prediction.{name}": prediction for name, prediction in model.prediction.items()}
        for name, choice in (choices | {"loss.weighting": config.loss.weighting}).items():
            if choice not in PREDICTIONS:
                raise UserError(f"config.{name}: expected one of {', '.join(PREDICTIONS)}, found {choice!r}")

    @property
    def supported_modes(self) -> tuple[str, ...]:
        """The modes that the model can do."""
        return ("video",) if self.motus_config.video_only else tuple(modes.MODES)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """[F, h, w, C] of one example."""
        return self.codec.latent_shape(1 + self.config.data.video_frames, *self.config.data.image_size)

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh trained parameters, float32."""
        parts = self._parts(key)
        return {name: parts[name] for name in parts if name not in self.frozen_parts}

    def frozen_shapes(self) -> Params:
        """The frozen parts that are loaded from elsewhere (`config.init_from`), not fitted to the data.

        Their type is what the encoder computes in: it would round float32 numbers anyway, at each use.
        """
        found = jax.eval_shape(self._parts, jax.eval_shape(jax.random.key, 0))
        if not self.codec.fitted:
            found |= {"video_codec": jax.eval_shape(self.codec.init, jax.random.key(0))}
        chosen = sorted(self.frozen_parts & found.keys())
        return {name: _retyped(found[name], self.encoder_dtype(name)) for name in chosen}

    def fit_frozen(self, frames: UInt8[np.ndarray, "M frames H W 3"]) -> Params:
        """The frozen parts that are fitted to a sample of training clips; `frozen_shapes` has the others."""
        return {"video_codec": self.codec.fit(frames)} if self.codec.fitted else {}

    def fitted_shapes(self) -> Params:
        """What `fit_frozen` returns; a run takes it from an earlier one where `config.init_from` says so."""
        return {"video_codec": self.codec.shapes(*self.config.data.image_size)} if self.codec.fitted else {}

    def encode(self, frozen: Params, batch: Mapping[str, Array]) -> Clean:
        """Latents and normalised numbers of a batch (the schema of `motus_jax.data.example`)."""
        known = "latents" in batch
        video = batch["latents"].astype(jnp.float32) if known else self.encode_video(frozen, batch["frames"])
        return Clean(video, batch["actions"], self.state(batch))

    def chunk_features(self, parts: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
        """What may stand in a batch in place of its pixels, as far as `parts` has encoders of them.

        Without a `vlm` in `parts` one is being trained: the condition frame stays.
        """
        found = {"latents": self.encode_video(parts, batch["frames"])} if "video_codec" in parts else {}
        if "vlm" not in parts:
            return found | {"frames": batch["frames"][:, :1]}
        states, real = self.vlm.states(parts["vlm"], batch)
        return found | {"vlm_states": states, "vlm_mask": real}

    def text_states(self, parts: Params, batch: Mapping[str, Array]) -> Float[Array, "B L V"]:
        """States of the instruction, zero where there is no text."""
        tokens, mask = batch["instruction"], batch["instruction_mask"]
        return self.text_encoder.apply({"params": parts["text_encoder"]}, tokens, mask)

    def encoder_dtype(self, part: str) -> str:
        """What an encoder computes in: no more precision is in what it makes."""
        return {"video_codec": self.codec, "text_encoder": self.text_encoder.config, "vlm": self.vlm}[part].dtype

    def state(self, batch: Mapping[str, Array]) -> Float[Array, "B P"] | None:
        """The state as the action expert takes it: None in the action-only form."""
        return batch["state"] if self.motus_config.action.with_state else None

    def encode_video(self, frozen: Params, frames: UInt8[Array, "B T H W 3"]) -> Float[Array, "B F h w C"]:
        """Latents of 1 + 4k frames; those of the condition frame depend on no other."""
        return self.codec.encode(frozen["video_codec"], unit(frames))

    def decode_video(
        self, frozen: Params, latents: Float[Array, "B F h w C"], batch: Mapping[str, Array]
    ) -> Float[Array, "B T H W 3"]:
        """Frames in [0, 1], the batch's condition frame first."""
        condition = unit(batch["frames"][:, :1])
        return (self.codec.decode(frozen["video_codec"], latents, condition) + 1) / 2

    def context(self, params: Params, frozen: Params, batch: Mapping[str, Array], cache: bool = False) -> Context:
        """Text, picture and instruction as the experts see them; with `cache`, text keys and values of all layers too.

        Nothing here depends on the noise: a sampler calls it once an observation.
        """
        parts = {**frozen, **params}
        text = batch["text_states"] if "text_states" in batch else self.text_states(parts, batch)
        known = "vlm_states" in batch
        states, real = (batch["vlm_states"], batch["vlm_mask"]) if known else self.vlm.states(parts["vlm"], batch)
        text, states, mask = text.astype(jnp.float32), states.astype(jnp.float32), batch["instruction_mask"]
        context = self.motus.apply({"params": parts["motus"]}, text, mask, states, real, method="context")
        return with_text_cache(self.motus_config, parts["motus"], context) if cache else context

    def _init_parts(self, key: PRNGKeyArray) -> Params:
        """Everything but the video encoder."""
        config, batch = self.motus_config, self.empty_batch()
        keys = jax.random.split(key, 3)
        tokens, mask = batch["instruction"], batch["instruction_mask"]
        text_params = self.text_encoder.init(keys[0], tokens, mask)["params"]
        vlm_params = self.vlm.init(keys[1], batch)
        vlm_states, _ = self.vlm.states(vlm_params, batch)
        motus_params = self.motus.init(
            keys[2], jnp.zeros((1, *self.latent_shape)), batch["actions"], self.state(batch), jnp.zeros(1),
            jnp.zeros(1), jnp.zeros((*tokens.shape, config.video.text_width)), mask, vlm_states, None,
        )["params"]
        return {"motus": motus_params, "text_encoder": text_params, "vlm": vlm_params}

    def empty_batch(self) -> dict[str, Array]:
        """What initialisation needs of a batch of one."""
        data = self.config.data
        tokens = jnp.zeros((1, data.instruction_length), jnp.int32)
        batch = {
            "frames": jnp.zeros((1, 1, *data.image_size, 3), jnp.uint8),
            "actions": jnp.zeros((1, data.chunk, data.action_dim)),
            "state": jnp.zeros((1, data.state_dim)),
            "instruction": tokens,
            "instruction_mask": jnp.ones_like(tokens, bool),
        }
        if data.chat:
            chat = jnp.zeros((1, data.chat_length), jnp.int32)
            positions = jnp.zeros((*chat.shape, 3), jnp.int32)
            batch |= {"chat": chat, "chat_mask": jnp.ones_like(chat, bool), "chat_positions": positions}
        return batch

    def with_time_cache(
        self, params: Params, context: Context, tau_video: Float[Array, " N"], tau_action: Float[Array, " M"]
    ) -> Context:
        """The same context with the time embeddings of all noise levels that a sampling run will ask for."""
        times = (flow_matching.TIMESTEP_SCALE * tau for tau in (tau_video, tau_action))
        return with_time_cache(self.motus_config, params["motus"], context, *times)

    def velocities(
        self,
        params: Params,
        video: Float[Array, "B F h w C"],
        actions: Float[Array, "B T A"],
        state: Float[Array, "B P"] | None,
        tau_video: Float[Array, " B"],
        tau_action: Float[Array, " B"] | Float[Array, "B T"],
        context: Context,
        state_mask: Bool[Array, "B P"] | None = None,
        *,
        only_actions: bool = False,
        remember: bool = False,
    ) -> tuple[Array, Array] | tuple[Array, Array, action_tail.Memory]:
        """Velocities of both modalities, whatever the network itself predicts (`config.model.prediction`).

        Each action may have a noise level of its own: a committed prefix has 0, and its velocity no meaning. A state
        without any real dim (`state_mask`) is not attended to. With `only_actions` the video's are not computed and
        have no meaning. With `remember` also what `action_velocities` needs.
        """
        has_state = None if state is None or state_mask is None else jnp.any(state_mask, axis=-1)
        times = (flow_matching.TIMESTEP_SCALE * tau for tau in (tau_video, tau_action))
        motus = Motus(self.motus_config, remember=True) if remember else self.motus
        of_video, of_actions, *memory = motus.apply(
            {"params": params["motus"]}, video, actions, state, *times, context, has_state, only_actions,
            method="velocities",
        )  # fmt: skip
        velocities = (
            self._velocity("video", of_video, video, tau_video),
            self._velocity("action", of_actions, actions, tau_action),
        )
        return (*velocities, *memory)

    def action_velocities(
        self,
        params: Params,
        actions: Float[Array, "B T A"],
        state: Float[Array, "B P"] | None,
        tau_action: Float[Array, " B"],
        context: Context,
        memory: action_tail.Memory,
    ) -> Float[Array, "B T A"]:
        """The actions' velocities, the other streams frozen as an earlier evaluation remembers them."""
        cache = context.time_cache and context.time_cache[1]
        t = flow_matching.TIMESTEP_SCALE * tau_action
        output = action_tail.action_velocity(
            self.motus_config, params["motus"], actions, state, t, memory, cache
        )
        return self._velocity("action", output, actions, tau_action)

    def _velocity(self, name: str, output: Array, noisy: Array, tau: Float[Array, " B"]) -> Array:
        """The velocity that the network's output means (`config.model.prediction`)."""
        clean = self.config.model.prediction[name] == "clean"
        return flow_matching.clean_to_velocity(output, noisy, tau) if clean else output

    def loss(
        self,
        params: Params,
        frozen: Params,
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
        mode_weights: Float[Array, " 6"] | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Flow-matching loss of a batch (paper, equations of section 4.1).

        Args:
          key: the only source of randomness.
          mode_weights: replaces `config.mode`, for validation (`motus_jax.modes.weights`).

        Returns:
          The weighted sum of both streams' means over the batch, in which a pinned modality counts as zero, and
          metrics: each stream's mean over the examples that carry it, in all and by noise band.
        """
        keys = dict(zip(("video", "action", "video_noise", "action_noise", "mode"), jax.random.split(key, 5)))
        clean = jax.lax.stop_gradient(self.encode(frozen, batch))
        taus = [self._draw_tau(keys[name], name, len(clean.actions)) for name in ("video", "action")]
        weights = self._mode_weights if mode_weights is None else mode_weights
        drawn = modes.draw(keys["mode"], weights, *taus, jnp.any(batch["action_mask"], axis=(1, 2)))
        noise = {name: jax.random.normal(keys[f"{name}_noise"], getattr(clean, field).shape)
                 for name, field in (("video", "video"), ("action", "actions"))}
        video = flow_matching.interpolate(clean.video, noise["video"], drawn["tau_video"])
        video = jnp.concatenate([clean.video[:, :1], video[:, 1:]], axis=1)
        tau_action, counted = drawn["tau_action"], batch["action_mask"]
        if self.prefixes.trained:
            shown = self.prefixes.draw(jax.random.fold_in(keys["mode"], 1), drawn["action_loss"], counted.shape[1])
            tau_action, counted = jnp.where(shown, 0.0, tau_action[:, None]), counted & ~shown[..., None]
        actions = flow_matching.interpolate(clean.actions, noise["action"], tau_action)
        predicted = self.velocities(
            params, video, actions, clean.state, drawn["tau_video"], tau_action,
            self.context(params, frozen, batch), batch.get("state_mask"),
        )
        loss = self.config.loss
        seen = seen_places(batch["unseen"], *clean.video.shape[2:4]) if "unseen" in batch else None
        errors = {
            "video": video_loss(predicted[0], noise["video"] - clean.video, loss.video_average, seen),
            "action": action_loss(predicted[1], noise["action"] - clean.actions, counted),
        }
        total = sum(
            loss[name] * jnp.mean(error * self._noise_weight(drawn[f"tau_{name}"]) * drawn[f"{name}_loss"])
            for name, error in errors.items()
        )
        return total, {"loss/total": total} | _metrics(errors, drawn) | self._by_source(errors, drawn, batch)

    def _by_source(
        self, errors: Mapping[str, Array], drawn: modes.Draw, batch: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The same means for each source of a mixture and each layer of the pyramid."""
        sources, layer = self.config.data.get("sources", {}), self.config.data.get("layer", 6)
        sources = {name: own for name, own in sources.items() if float(own.get("weight", 1.0))}
        groups = {f"source_{name}": batch["source"] == i for i, name in enumerate(sorted(sources))}
        layers = sorted({int(sources[name].get("layer", layer)) for name in sources})
        groups |= {f"layer_{i}": batch["layer"] == i for i in layers}
        return {
            f"loss/{name}/{group}": _mean(error, drawn[f"{name}_loss"] & chosen)
            for name, error in errors.items()
            for group, chosen in groups.items()
        }

    def _noise_weight(self, tau: Float[Array, " B"]) -> Float[Array, " B"]:
        """`config.loss.weighting`: `velocity` weighs all noise levels alike; `clean` by tau squared, which makes the
        loss the squared error of the clean data that the velocity implies."""
        return jnp.square(tau) if self.config.loss.weighting == "clean" else jnp.ones_like(tau)

    def _draw_tau(self, key: PRNGKeyArray, name: str, batch: int) -> Float[Array, " B"]:
        noise = self.config.noise
        row = noise[name]
        return flow_matching.draw_tau(key, (batch,), row.schedule, row.parameter, noise.endpoint_probability)


def _retyped(shapes: Params, dtype: str) -> Params:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)


def _with_action_sizes(overrides: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """The overrides with the data's sizes. `{"action": {"state_dim": None}}` asks for the action-only form."""
    given = {**overrides.get("action", {})}
    sizes = {"action_dim": data.action_dim, "state_dim": data.state_dim}
    for name, size in sizes.items():
        if given.get(name) not in (None, size):
            raise UserError(
                f"config.model.overrides.action.{name}: expected config.data.{name} = {size}, found {given[name]}; set"
                f" config.data.{name}"
            )
    return {**overrides, "action": sizes | given}


def _metrics(errors: Mapping[str, Array], drawn: modes.Draw) -> dict[str, Array]:
    """Means over the examples that carry a loss; a band with no example reports NaN, which means "none drawn"."""
    found = {}
    for name, error in errors.items():
        carries, tau = drawn[f"{name}_loss"], drawn[f"tau_{name}"]
        found[f"loss/{name}"] = _mean(error, carries)
        band = jnp.minimum((tau * BANDS).astype(jnp.int32), BANDS - 1)
        for i in range(BANDS):
            found[f"loss/{name}/tau_{i}of{BANDS}"] = _mean(error, carries & (band == i))
    return found


def _mean(error: Float[Array, " B"], chosen: Bool[Array, " B"]) -> Array:
    return jnp.where(chosen.any(), jnp.sum(error * chosen) / jnp.maximum(chosen.sum(), 1), jnp.nan)
