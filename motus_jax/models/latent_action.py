"""The latent-action model: tokens of an optical-flow picture <-> 14 numbers (paper, section 4.2 and Fig. 3).

A small encoder on the concatenated tokens gives the mean and the variance of a Gaussian, and a small decoder leads back
to the tokens. The paper says "lightweight" and no more; here each is a perceptron with one residual layer per `depth`.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from motus_jax.errors import UserError

LOG_VARIANCE = (-12.0, 4.0)
"""Bounds of the logarithm of the variance: beyond them its exponential says nothing more."""


@dataclasses.dataclass(frozen=True)
class LatentActionConfig:
    """Sizes.

    Attributes:
      dim: numbers of a latent action; the paper's 14 match two arms of six joints and a gripper.
      tokens: of a picture.
      width: of a token.
      hidden: of the perceptrons.
      depth: residual layers of each.
      action_dim: numbers of a real action.
    """

    dim: int = 14
    tokens: int = 4
    width: int = 512
    hidden: int = 512
    depth: int = 1
    action_dim: int = 14

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < (0 if field.name == "depth" else 1):
                raise UserError(f"config.model.latent_action.{field.name}: expected more, found {getattr(self, field.name)}")


class Perceptron(nn.Module):
    """In, residual layers, out."""

    hidden: int
    depth: int
    out: int

    @nn.compact
    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B E"]:
        x = nn.gelu(nn.Dense(self.hidden, name="in")(x))
        for i in range(self.depth):
            x = x + nn.gelu(nn.Dense(self.hidden, name=f"layer_{i}")(nn.LayerNorm(name=f"norm_{i}")(x)))
        return nn.Dense(self.out, name="out")(x)


@dataclasses.dataclass(frozen=True)
class LatentAction:
    """Encode and decode as pure functions of a parameter tree {`encoder`, `decoder`, `action_head`}."""

    config: LatentActionConfig

    def init(self, key: PRNGKeyArray) -> dict:
        """Random parameters, float32."""
        c, keys = self.config, jax.random.split(key, 3)
        tokens, latent = jnp.zeros((1, c.tokens * c.width)), jnp.zeros((1, c.dim))
        return {
            "encoder": self._encoder.init(keys[0], tokens)["params"],
            "decoder": self._decoder.init(keys[1], latent)["params"],
            "action_head": self._head.init(keys[2], latent)["params"],
        }

    def encode(
        self, params: dict, tokens: Float[Array, "B N C"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        """Mean and logarithm of the variance of each picture's latent action."""
        found = self._encoder.apply({"params": params["encoder"]}, tokens.reshape(len(tokens), -1))
        mean, log_variance = jnp.split(found, 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE)

    def decode(self, params: dict, latent: Float[Array, "B D"]) -> Float[Array, "B N C"]:
        """The tokens that latent actions stand for."""
        found = self._decoder.apply({"params": params["decoder"]}, latent)
        return found.reshape(len(latent), self.config.tokens, self.config.width)

    def act(self, params: dict, latent: Float[Array, "B D"]) -> Float[Array, "B A"]:
        """A linear reading of real actions from latent ones."""
        return self._head.apply({"params": params["action_head"]}, latent)

    @functools.cached_property
    def _encoder(self) -> nn.Module:
        return Perceptron(self.config.hidden, self.config.depth, 2 * self.config.dim)

    @functools.cached_property
    def _decoder(self) -> nn.Module:
        return Perceptron(self.config.hidden, self.config.depth, self.config.tokens * self.config.width)

    @functools.cached_property
    def _head(self) -> nn.Module:
        return nn.Dense(self.config.action_dim)


def sample(mean: Float[Array, "B D"], log_variance: Float[Array, "B D"], key: PRNGKeyArray) -> Float[Array, "B D"]:
    """A draw from each Gaussian."""
    return mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)


def divergence(mean: Float[Array, "B D"], log_variance: Float[Array, "B D"]) -> Float[Array, " B"]:
    """Kullback-Leibler divergence of each Gaussian from the standard one, in nats, over all numbers."""
    return jnp.sum(jnp.exp(log_variance) + jnp.square(mean) - 1 - log_variance, axis=-1) / 2
