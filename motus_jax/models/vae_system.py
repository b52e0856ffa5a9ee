"""The Wan2.2 VAE as something to train: small ones for data of one's own, from scratch or from imported weights.

The public weights were trained with perceptual and adversarial losses on web video, which nobody repeats on a laptop.
This trains for pixels: squared error, and a pull of every latent channel towards mean 0 and deviation 1 over the
batch, so that the latents need no normalisation constants (`encoders.WanVideo`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from motus_jax.errors import UserError
from motus_jax.models.config import get_variant
from motus_jax.models.encoders import VIDEO_ENCODERS, pick, unit

Params = Mapping[str, Any]


class VaeSystem:
    """Has the interface of `motus_jax.models.system.System` that training needs.

    Args:
      config: needs `data.image_size`, `model` (of kind `wan`), and of `loss` the weight `moments` of the pull on the
        latents and `crop`, the side in pixels of the square of each clip that a step sees.

    Raises:
      UserError: another kind of codec, or a crop that is no size of the codec or larger than the picture.
    """

    supported_modes = ("video",)

    def __init__(self, config: Any) -> None:
        model = config.model
        channels = get_variant(model.variant, model.overrides).video.latent_channels
        self._codec = pick({"wan": VIDEO_ENCODERS["wan"]}, "video_codec", channels, model.video_codec)
        self._moments, self._crop = config.loss.moments, config.loss.crop
        if self._crop > min(config.data.image_size):
            raise UserError(
                f"config.loss.crop: expected at most the picture's shorter side {min(config.data.image_size)}, found"
                f" {self._crop}"
            )
        self._codec.latent_shape(1, self._crop, self._crop)

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters, float32."""
        return {"video_codec": self._codec.init(key)}

    def fit_frozen(self, frames: UInt8[np.ndarray, "M frames H W 3"]) -> Params:
        """Nothing is frozen."""
        del frames
        return {}

    def fitted_shapes(self) -> Params:
        """Nothing is fitted."""
        return {}

    def frozen_shapes(self) -> Params:
        """Nothing is frozen."""
        return {}

    def loss(
        self, params: Params, frozen: Params, batch: Mapping[str, Array], key: PRNGKeyArray, mode_weights: Any = None
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Reconstruction and moments of a batch (`motus_jax.data.example`).

        Args:
          key: of the place of the crop in each clip.

        Returns:
          The loss, and metrics: `loss/pixels` (mean squared error in [-1, 1]), `loss/moments` and `psnr` [dB].
        """
        del frozen, mode_weights
        video = self._cut(unit(batch["frames"]), key)
        latents = self._codec.encode(params["video_codec"], video)
        # The condition frame counts too: unlike in use, it is decoded here.
        error = self._codec.vae.decode(params["video_codec"], latents, clamp=False) - video
        pixels = jnp.mean(jnp.square(error))
        mean, variance = jnp.mean(latents, (0, 1, 2, 3)), jnp.var(latents, (0, 1, 2, 3))
        moments = jnp.mean(jnp.square(mean) + jnp.square(jnp.sqrt(variance + 1e-6) - 1))
        psnr = -10 * jnp.log10(pixels / 4)
        return pixels + self._moments * moments, {"loss/pixels": pixels, "loss/moments": moments, "psnr": psnr}

    def _cut(self, video: Float[Array, "B T H W 3"], key: PRNGKeyArray) -> Float[Array, "B T crop crop 3"]:
        """A square at a random place of each clip."""
        _, frames, height, width, colours = video.shape
        rooms = jnp.array([height - self._crop, width - self._crop])
        corners = jax.random.randint(key, (len(video), 2), 0, rooms + 1)

        def cut(clip: Array, corner: Array) -> Array:
            return jax.lax.dynamic_slice(clip, (0, *corner, 0), (frames, self._crop, self._crop, colours))

        return jax.vmap(cut)(video, corners)
