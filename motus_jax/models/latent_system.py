"""The latent-action model as something to train: flow pictures through the autoencoder and 14 numbers, and back.

Loss (paper, equation 2): reconstruction + lambda * |a_real - a_pred|^2 + beta * KL. What the paper leaves open is a
field of `config.loss`, with the default that `docs/latent_actions.md` gives reasons and figures for.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from motus_jax import flow_picture
from motus_jax.errors import UserError
from motus_jax.models import flow_network
from motus_jax.models.flow_autoencoder import VARIANTS, FlowAutoencoder
from motus_jax.models.latent_action import LatentAction, LatentActionConfig, divergence, sample

Params = Mapping[str, Any]

FORMS = {"l1": jnp.abs, "l2": jnp.square}
"""Errors of pictures."""
HEADS = ("mean", "sample", "linear")
"""What is compared with a real action: the mean of the latent action, a draw of it, or a linear reading of its mean."""
PART, FLOW = "flow_autoencoder", "flow_network"


class LatentActionSystem:
    """Has the interface of `motus_jax.models.system.System` that training needs.

    Args:
      config: needs `data` (pairs: `video_frames` and `chunk` 1, `action_hz` equal to `video_hz`; `flow`), `model`
        (`flow_network`: the network that estimates flow inside the step, from weights, or "" where `data.flow` names
        an estimator that does it while data are read; `flow_autoencoder`: `variant`, `tuned`; `latent_action`: fields
        of `LatentActionConfig` but those that follow from the rest) and `loss`:
          picture: weight of the error of the reconstructed picture, `form`: "l1" or "l2".
          motion: by how much more a pixel counts that is fully saturated than one without motion.
          tokens: weight of the squared error of the reconstructed tokens.
          autoencoder: weight of the autoencoder's own error, where it is tuned.
          action: lambda; `head`: one of `HEADS`.
          kl: beta.

    Raises:
      UserError: other data, an unknown word, or sizes that do not fit.
    """

    supported_modes = ("video",)

    def __init__(self, config: Any) -> None:
        self._loss, data = config.loss, config.data
        settings = config.model.flow_autoencoder
        _check_word("model.flow_autoencoder.variant", settings.variant, VARIANTS)
        self._autoencoder = FlowAutoencoder(VARIANTS[settings.variant])
        self._tuned = bool(settings.tuned)
        self._network = self._open_network(config)
        *grid, channels = self._autoencoder.latent_shape(*data.image_size)
        self._grid = tuple(grid)
        sizes = {"tokens": self._grid[0] * self._grid[1], "width": channels, "action_dim": data.action_dim}
        self.latent_action = LatentAction(LatentActionConfig(**config.model.latent_action.to_dict(), **sizes))
        self._check(data)

    def _open_network(self, config: Any) -> flow_network.FlowNetwork | None:
        name, estimator = config.model.get(FLOW, ""), config.data.get("flow")
        if bool(name) == bool(estimator):
            raise UserError(
                "expected an estimator of optical flow in one of config.data.flow (e.g. dis) and "
                f"config.model.{FLOW} (e.g. dpflow), found {'both' if name else 'none'}"
            )
        if not name:
            return None
        _check_word(f"model.{FLOW}", name, flow_network.VARIANTS)
        return flow_network.FlowNetwork(flow_network.VARIANTS[name])

    def _check(self, data: Any) -> None:
        for name in ("video_frames", "chunk"):
            if data[name] != 1:
                raise UserError(f"config.data.{name}: expected 1, as latent actions are of pairs, found {data[name]}")
        if data.action_hz != data.video_hz:
            raise UserError(
                f"config.data.action_hz: expected {data.video_hz:g} as video_hz, so that an action spans a pair, found "
                f"{data.action_hz:g}"
            )
        _check_word("loss.form", self._loss.form, FORMS)
        _check_word("loss.head", self._loss.head, HEADS)
        if self._loss.head != "linear" and self.latent_action.config.dim != self.latent_action.config.action_dim:
            raise UserError(
                f"config.loss.head: expected linear for latent actions of {self.latent_action.config.dim} numbers and "
                f"real ones of {self.latent_action.config.action_dim}, found {self._loss.head!r}"
            )

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters, float32; the autoencoder's among them where it is tuned."""
        keys = jax.random.split(key)
        tuned = {PART: self._autoencoder.init(keys[1])} if self._tuned else {}
        return {"latent_action": self.latent_action.init(keys[0])} | tuned

    def fit_frozen(self, frames: UInt8[np.ndarray, "M frames H W 3"]) -> Params:
        """Nothing is fitted: a frozen autoencoder comes from weights (`config.init_from`)."""
        del frames
        return {}

    def fitted_shapes(self) -> Params:
        """Nothing is fitted."""
        return {}

    def frozen_shapes(self) -> Params:
        """The autoencoder, where it is not tuned, and the network that estimates flow, where there is one."""
        frozen = ({} if self._tuned else {PART: self._autoencoder}) | ({FLOW: self._network} if self._network else {})
        return {name: jax.eval_shape(part.init, jax.random.key(0)) for name, part in frozen.items()}

    def flow(self, frozen: Params, batch: Mapping[str, Array]) -> Float[Array, "B H W 2"]:
        """Motion of each pair [pixels to the right and down]: of the batch, or estimated from its frames."""
        if self._network is None:
            return batch["flow"]
        first, second = (batch["frames"][:, k].astype(jnp.float32) / 255 for k in range(2))
        return self._network.estimate(frozen[FLOW], first, second)

    def picture(self, flow: Float[Array, "B H W 2"]) -> Float[Array, "B H W 3"]:
        """Flow pictures in [-1, 1]."""
        return 2 * flow_picture.to_picture(flow) - 1

    def encode(
        self, params: Params, frozen: Params, batch: Mapping[str, Array]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        """Mean and logarithm of the variance of the latent action of each example."""
        return self.latent_action.encode(params["latent_action"], self.tokens(params, frozen, batch))

    def paint(self, params: Params, frozen: Params, latent: Float[Array, "B D"]) -> Float[Array, "B H W 3"]:
        """The flow pictures that latent actions stand for, in [-1, 1], not clamped."""
        tokens = self.latent_action.decode(params["latent_action"], latent)
        side = {**params, **frozen}[PART]
        return self._autoencoder.decode(side, tokens.reshape(len(latent), *self._grid, -1))

    def tokens(self, params: Params, frozen: Params, batch: Mapping[str, Array]) -> Float[Array, "B N C"]:
        """What the autoencoder makes of the flow pictures."""
        return self._tokens(params, frozen, self.picture(self.flow(frozen, batch)))

    def act(self, params: Params, mean: Float[Array, "B D"]) -> Float[Array, "B A"]:
        """The real actions that the loss compares, without a draw."""
        return self.latent_action.act(params["latent_action"], mean) if self._loss.head == "linear" else mean

    def loss(
        self, params: Params, frozen: Params, batch: Mapping[str, Array], key: PRNGKeyArray, mode_weights: Any = None
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The loss of a batch of pairs.

        Args:
          key: of the draws from the Gaussians.

        Returns:
          The loss, and metrics: `loss/picture`, `loss/tokens`, `loss/autoencoder`, `loss/action` (mean of squares over
          the labelled numbers), `loss/kl` [nats], `psnr` [dB] of the picture.
        """
        del mode_weights
        weights, picture = self._loss, self.picture(self.flow(frozen, batch))
        tokens = self._tokens(params, frozen, picture)
        mean, log_variance = self.latent_action.encode(params["latent_action"], tokens)
        drawn = sample(mean, log_variance, key)
        painted = self.paint(params, frozen, drawn)
        back = self.latent_action.decode(params["latent_action"], drawn)
        predicted = {"mean": mean, "sample": drawn}.get(weights.head)
        predicted = self.latent_action.act(params["latent_action"], mean) if predicted is None else predicted
        labelled = batch["action_mask"][:, 0]
        squares = jnp.square(predicted - batch["actions"][:, 0]) * labelled
        parts = {
            "picture": self._error(painted, picture),
            "tokens": jnp.mean(jnp.square(back - jax.lax.stop_gradient(tokens))),
            # The norm of the paper's equation sums over the numbers; the mean is over the examples that have them.
            "action": jnp.sum(squares) / jnp.maximum(jnp.sum(jnp.any(labelled, -1)), 1),
            "kl": jnp.mean(divergence(mean, log_variance)),
        }
        if self._tuned:
            side = params[PART]
            own = self._autoencoder.decode(side, tokens.reshape(len(picture), *self._grid, -1))
            parts["autoencoder"] = self._error(own, picture)
        total = sum(weights[name] * value for name, value in parts.items())
        shown = {f"loss/{name}": value for name, value in parts.items()}
        numbers = jnp.sum(labelled)
        shown["loss/action"] = jnp.where(numbers > 0, jnp.sum(squares) / jnp.maximum(numbers, 1), jnp.nan)
        shown["psnr"] = -10 * jnp.log10(jnp.mean(jnp.square(painted - picture)) / 4)
        return total, {"loss/total": total} | shown

    def _tokens(self, params: Params, frozen: Params, picture: Float[Array, "B H W 3"]) -> Float[Array, "B N C"]:
        latent = self._autoencoder.encode({**params, **frozen}[PART], picture)
        return latent.reshape(len(picture), -1, latent.shape[-1])

    def _error(self, found: Float[Array, "B H W 3"], picture: Float[Array, "B H W 3"]) -> Float[Array, ""]:
        """Mean error of pictures, in which moving pixels count more."""
        saturation = (1 - jnp.min(picture, axis=-1)) / 2
        weight = 1 + self._loss.motion * saturation
        return jnp.sum(weight[..., None] * FORMS[self._loss.form](found - picture)) / jnp.sum(3 * weight)


def _check_word(field: str, found: str, known: Any) -> None:
    if found not in known:
        raise UserError(f"config.{field}: expected one of {', '.join(known)}, found {found!r}")
