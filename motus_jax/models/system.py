"""The whole trained and sampled system: Motus and its three encoders, as pure functions of parameter trees.

Two trees: `params` is trained (`motus`, `text_encoder`, `vlm`), `frozen` is not (`video_codec`). Today's encoders are
small stand-ins (`compact_vlm.py`, `video_codec.py`, a byte-level umT5); the pretrained ones take the same places.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from motus_jax import flow_matching, modes
from motus_jax.errors import UserError
from motus_jax.models.compact_vlm import CompactVlm, CompactVlmConfig
from motus_jax.models.config import get_variant
from motus_jax.models.losses import action_loss, video_loss
from motus_jax.models.motus import Context, Motus, with_text_cache
from motus_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from motus_jax.models.video_codec import VideoCodec, VideoCodecConfig

BYTE_VOCABULARY = 257
"""256 bytes and padding (0)."""
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
    """

    def __init__(self, config: Any) -> None:
        data, model = config.data, config.model
        overrides = {**model.overrides, "action": {**model.overrides.get("action", {}), **_action_sizes(data)}}
        self.config = config
        self._mode_weights = modes.weights(config.mode)
        self.motus_config = get_variant(model.variant, overrides)
        self.motus = Motus(self.motus_config)
        self.codec = VideoCodec(
            VideoCodecConfig(channels=self.motus_config.video.latent_channels, **model.video_codec)
        )
        text = dict(vocabulary=BYTE_VOCABULARY, width=self.motus_config.video.text_width)
        self.text_encoder = TextEncoder(TextEncoderConfig(**text, **model.text_encoder))
        width = self.motus_config.understanding.input_width
        self.vlm = CompactVlm(CompactVlmConfig(vocabulary=BYTE_VOCABULARY, width=width, **model.vlm))
        choices = {f"model.prediction.{name}": prediction for name, prediction in model.prediction.items()}
        for name, choice in (choices | {"loss.weighting": config.loss.weighting}).items():
            if choice not in PREDICTIONS:
                raise UserError(f"config.{name}: expected one of {', '.join(PREDICTIONS)}, found {choice!r}")

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """[F, h, w, C] of one example."""
        return self.codec.latent_shape(1 + self.config.data.video_frames, *self.config.data.image_size)

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh trained parameters, float32."""
        data, config = self.config.data, self.motus_config
        keys = jax.random.split(key, 3)
        tokens = jnp.zeros((1, data.instruction_length), jnp.int32)
        mask = jnp.ones_like(tokens, bool)
        picture = jnp.zeros((1, *data.image_size, 3))
        text_params = self.text_encoder.init(keys[0], tokens, mask)["params"]
        vlm_params = self.vlm.init(keys[1], picture, tokens, mask)["params"]
        vlm_states, _ = self.vlm.apply({"params": vlm_params}, picture, tokens, mask)
        state = jnp.zeros((1, data.state_dim)) if config.action.with_state else None
        motus_params = self.motus.init(
            keys[2], jnp.zeros((1, *self.latent_shape)), jnp.zeros((1, data.chunk, data.action_dim)), state,
            jnp.zeros(1), jnp.zeros(1), jnp.zeros((*tokens.shape, config.video.text_width)), mask, vlm_states, None,
        )["params"]
        return {"motus": motus_params, "text_encoder": text_params, "vlm": vlm_params}

    def fit_frozen(self, frames: UInt8[np.ndarray, "M frames H W 3"]) -> Params:
        """The frozen tree, from a sample of training clips."""
        return {"video_codec": self.codec.fit(frames)}

    def encode(self, frozen: Params, batch: Mapping[str, Array]) -> Clean:
        """Latents and normalised numbers of a batch (the schema of `motus_jax.data.example`)."""
        state = batch["state"] if self.motus_config.action.with_state else None
        return Clean(self.codec.encode(frozen["video_codec"], unit(batch["frames"])), batch["actions"], state)

    def context(self, params: Params, batch: Mapping[str, Array], cache: bool = False) -> Context:
        """Text, picture and instruction as the experts see them; with `cache`, text keys and values of all layers too.

        Nothing here depends on the noise: a sampler calls it once an observation.
        """
        tokens, mask = batch["instruction"], batch["instruction_mask"]
        text = self.text_encoder.apply({"params": params["text_encoder"]}, tokens, mask)
        states, real = self.vlm.apply({"params": params["vlm"]}, unit(batch["frames"][:, 0]), tokens, mask)
        context = self.motus.apply({"params": params["motus"]}, text, mask, states, real, method="context")
        return with_text_cache(self.motus_config, params["motus"], context) if cache else context

    def velocities(
        self,
        params: Params,
        video: Float[Array, "B F h w C"],
        actions: Float[Array, "B T A"],
        state: Float[Array, "B P"] | None,
        tau_video: Float[Array, " B"],
        tau_action: Float[Array, " B"],
        context: Context,
    ) -> tuple[Array, Array]:
        """Velocities of both modalities, whatever the network itself predicts (`config.model.prediction`)."""
        times = (flow_matching.TIMESTEP_SCALE * tau for tau in (tau_video, tau_action))
        outputs = self.motus.apply(
            {"params": params["motus"]}, video, actions, state, *times, context, method="velocities"
        )
        kinds = self.config.model.prediction
        rows = ((kinds.video, video, tau_video), (kinds.action, actions, tau_action))
        return tuple(
            flow_matching.clean_to_velocity(output, noisy, tau) if kind == "clean" else output
            for output, (kind, noisy, tau) in zip(outputs, rows)
        )

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
        drawn = modes.draw(keys["mode"], self._mode_weights if mode_weights is None else mode_weights, *taus)
        noise = {name: jax.random.normal(keys[f"{name}_noise"], getattr(clean, field).shape)
                 for name, field in (("video", "video"), ("action", "actions"))}
        video = flow_matching.interpolate(clean.video, noise["video"], drawn["tau_video"])
        video = jnp.concatenate([clean.video[:, :1], video[:, 1:]], axis=1)
        actions = flow_matching.interpolate(clean.actions, noise["action"], drawn["tau_action"])
        predicted = self.velocities(
            params, video, actions, clean.state, drawn["tau_video"], drawn["tau_action"], self.context(params, batch)
        )
        loss = self.config.loss
        errors = {
            "video": video_loss(predicted[0], noise["video"] - clean.video, loss.video_average),
            "action": action_loss(predicted[1], noise["action"] - clean.actions, batch["action_mask"]),
        }
        total = sum(
            loss[name] * jnp.mean(error * self._noise_weight(drawn[f"tau_{name}"]) * drawn[f"{name}_loss"])
            for name, error in errors.items()
        )
        return total, {"loss/total": total} | _metrics(errors, drawn)

    def _noise_weight(self, tau: Float[Array, " B"]) -> Float[Array, " B"]:
        """`config.loss.weighting`: `velocity` weighs all noise levels alike; `clean` by tau squared, which makes the
        loss the squared error of the clean data that the velocity implies."""
        return jnp.square(tau) if self.config.loss.weighting == "clean" else jnp.ones_like(tau)

    def _draw_tau(self, key: PRNGKeyArray, name: str, batch: int) -> Float[Array, " B"]:
        noise = self.config.noise
        row = noise[name]
        return flow_matching.draw_tau(key, (batch,), row.schedule, row.parameter, noise.endpoint_probability)


def unit(frames: UInt8[Array, "*shape 3"]) -> Float[Array, "*shape 3"]:
    """uint8 pixels -> [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1


def _action_sizes(data: Any) -> dict[str, int | None]:
    return {"action_dim": data.action_dim, "state_dim": data.state_dim}


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
