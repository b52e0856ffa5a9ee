"""A linear video codec: the stand-in for the Wan2.2 VAE until its weights are loaded.

It has that VAE's interface and causal shape, 1 + 4k frames <-> 1 + k latent frames, and is fitted in closed form to a
sample of the training video: principal components of `patch` x `patch` pictures for the condition frame, and of
groups of four frames, minus the condition frame, for the future. A latent of zero therefore means "nothing changed",
and decoding adds the condition frame's own pixels, which every mode has. It is not a neural network.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from motus_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class VideoCodecConfig:
    """`channels` of a latent, `patch` pixels to its side, `group` frames in its time.

    `whitening` is the power of a component's spread it is divided by: 1 gives every channel unit variance, 0 keeps
    the pixels' own proportions (all channels then share one scale).
    """

    channels: int
    patch: int = 8
    group: int = 4
    whitening: float = 0.5


class VideoCodec:
    """Encode and decode as pure functions of a dict: `picture` and `motion`, each with `basis`, `mean`, `scale`."""

    def __init__(self, config: VideoCodecConfig) -> None:
        self.config = config

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """[F, H, W, C] of the latents of a clip.

        Raises:
          UserError: the clip does not divide into patches and groups.
        """
        c = self.config
        if (frames - 1) % c.group or height % c.patch or width % c.patch:
            raise UserError(
                f"clip of {frames} frames {height}x{width}: the codec takes 1 + {c.group}k frames and sides "
                f"divisible by {c.patch}"
            )
        return 1 + (frames - 1) // c.group, height // c.patch, width // c.patch, c.channels

    def fit(self, clips: UInt8[np.ndarray, "M frames H W 3"], samples: int = 200_000) -> dict:
        """Principal components of a sample of clips, on the host, deterministic.

        Returns:
          The parameter dict, float32.
        """
        pictures, motions = [], []
        for clip in clips:
            video = _unit(clip[None])
            pictures.append(np.asarray(self._patches(video[:, :1])).reshape(-1, 3 * self.config.patch**2))
            motions.append(np.asarray(self._motion(video)).reshape(-1, 3 * self.config.group * self.config.patch**2))
        return {"picture": self._components(np.concatenate(pictures), samples, centre=True),
                "motion": self._components(np.concatenate(motions), samples, centre=False)}

    def encode(self, params: dict, video: Float[Array, "B frames H W 3"]) -> Float[Array, "B F h w C"]:
        """Latents of a clip in [-1, 1]; the first one depends on the first frame only."""
        first = _project(params["picture"], self._patches(video[:, :1]))
        if video.shape[1] == 1:
            return first
        return jnp.concatenate([first, _project(params["motion"], self._motion(video))], axis=1)

    def decode(
        self, params: dict, latents: Float[Array, "B F h w C"], condition: Float[Array, "B 1 H W 3"]
    ) -> Float[Array, "B frames H W 3"]:
        """Frames in [-1, 1]: the condition frame itself, then the future ones."""
        c = self.config
        motion = latents[:, 1:] * params["motion"]["scale"] @ params["motion"]["basis"].T + params["motion"]["mean"]
        b, k, h, w, _ = motion.shape
        future = motion.reshape(b, k, h, w, c.group, c.patch, c.patch, 3).transpose(0, 1, 4, 2, 5, 3, 6, 7)
        future = future.reshape(b, k * c.group, h * c.patch, w * c.patch, 3) + condition
        return jnp.clip(jnp.concatenate([condition, future], axis=1), -1, 1)

    def _patches(self, video: Array) -> Array:
        """[B, F, H, W, 3] -> [B, F, h, w, patch patch 3]."""
        b, f, height, width, _ = video.shape
        p = self.config.patch
        x = video.reshape(b, f, height // p, p, width // p, p, 3).transpose(0, 1, 2, 4, 3, 5, 6)
        return x.reshape(b, f, height // p, width // p, p * p * 3)

    def _motion(self, video: Array) -> Array:
        """Future minus condition, [B, k, h, w, group patch patch 3]."""
        x = self._patches(video[:, 1:] - video[:, :1])
        b, frames, h, w, size = x.shape
        g = self.config.group
        x = x.reshape(b, frames // g, g, h, w, size).transpose(0, 1, 3, 4, 2, 5)
        return x.reshape(b, frames // g, h, w, g * size)

    def _components(self, rows: np.ndarray, samples: int, centre: bool) -> dict:
        chosen = np.random.default_rng(0).permutation(len(rows))[:samples]
        rows = rows[chosen].astype(np.float32)
        mean = rows.mean(0) if centre else np.zeros(rows.shape[1], np.float32)
        rows = rows - mean
        values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
        kept = self.config.channels
        deviation = np.sqrt(np.maximum(values[::-1][:kept], 1e-12))
        common = np.sqrt(np.mean(np.square(deviation)))
        scale = common * (deviation / common) ** self.config.whitening
        return {"basis": vectors[:, ::-1][:, :kept].astype(np.float32), "mean": mean, "scale": scale.astype(np.float32)}


def _unit(frames: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return frames.astype(np.float32) / 127.5 - 1


def _project(params: dict, x: Array) -> Array:
    return (x - params["mean"]) @ params["basis"] / params["scale"]
