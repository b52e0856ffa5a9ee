"""A linear video codec: the stand-in for the Wan2.2 VAE until its weights are loaded.

It has that VAE's interface and causal shape, 1 + 4k frames <-> 1 + k latent frames, and is fitted in closed form to a
sample of the training video: principal components of `patch` x `patch` pictures for the condition frame, and of
groups of four frames for the future, which is coded as its difference from the condition frame. A latent of zero
therefore means "nothing changed", and decoding starts from the condition frame's own pixels, which every mode has.

What the components cannot express of the condition frame, its finest detail, stays only where nothing changes: where
the decoded difference is large, something else is there now, and the detail would show as the ghost of what has left.
It is not a neural network.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from motus_jax.errors import UserError

MOVING = 1e-3
"""Mean squared difference in [-1, 1] pixels above which a patch counts as moving when the codec is fitted."""
CHANGED = 0.01
"""The same at which a decoded patch has lost half of its old detail; best of 0.003 to 0.1 on the demo's clips."""


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

    def shapes(self) -> dict:
        """What `fit` returns, as `jax.ShapeDtypeStruct`s."""
        c = self.config

        def part(width: int) -> dict[str, jax.ShapeDtypeStruct]:
            sizes = {"basis": (width, c.channels), "mean": (width,), "scale": (c.channels,)}
            return {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in sizes.items()}

        return {"picture": part(3 * c.patch**2), "motion": part(3 * c.patch**2 * c.group)}

    def fit(self, clips: UInt8[np.ndarray, "M frames H W 3"], samples: int = 200_000) -> dict:
        """Principal components of a sample of clips, on the host, deterministic.

        Returns:
          The parameter dict, float32.
        """
        pictures, groups, changes = [], [], []
        for clip in clips:
            video = _unit(clip[None])
            pictures.append(np.asarray(self._patches(video[:, :1])).reshape(-1, 3 * self.config.patch**2))
            group = np.asarray(self._groups(video[:, 1:]))
            groups.append(group.reshape(-1, group.shape[-1]))
            changes.append(np.asarray(self._groups(video[:, 1:] - video[:, :1])).reshape(groups[-1].shape))
        groups, changes = np.concatenate(groups), np.concatenate(changes)
        mean = groups.mean(0)
        moving = np.square(changes).mean(-1) > MOVING
        # Differences to code, and the pictures themselves, of which the decoder takes the finest detail apart.
        rows = np.concatenate([changes[moving], groups[moving] - mean]) if moving.any() else changes
        motion = self._components(rows, samples, np.zeros_like(mean))
        scale = self._scale(changes @ motion["basis"])
        pictures = np.concatenate(pictures)
        picture = self._components(pictures, samples, pictures.mean(0))
        return {"picture": picture | {"scale": self._scale((pictures - picture["mean"]) @ picture["basis"])},
                "motion": motion | {"mean": mean, "scale": scale}}

    def encode(self, params: dict, video: Float[Array, "B frames H W 3"]) -> Float[Array, "B F h w C"]:
        """Latents of a clip in [-1, 1]; the first one depends on the first frame only."""
        first = _project(params["picture"], self._patches(video[:, :1]))
        if video.shape[1] == 1:
            return first
        motion = params["motion"]
        change = self._groups(video[:, 1:] - video[:, :1]) @ motion["basis"] / motion["scale"]
        return jnp.concatenate([first, change], axis=1)

    def decode(
        self, params: dict, latents: Float[Array, "B F h w C"], condition: Float[Array, "B 1 H W 3"]
    ) -> Float[Array, "B frames H W 3"]:
        """Frames in [-1, 1]: the condition frame itself, then the future ones."""
        motion, frames = params["motion"], (latents.shape[1] - 1) * self.config.group
        change = latents[:, 1:] * motion["scale"] @ motion["basis"].T
        still = self._groups(jnp.repeat(condition, frames, axis=1))
        centred = still - motion["mean"]
        detail = centred - centred @ motion["basis"] @ motion["basis"].T
        future = still + change - self._gone(change) * detail
        return jnp.clip(jnp.concatenate([condition, self._ungroup(future)], axis=1), -1, 1)

    def _gone(self, change: Float[Array, "B k h w G"]) -> Float[Array, "B k h w G"]:
        """How surely a patch of a frame shows something else now, 0 to 1, from the mean square of its difference."""
        frames = change.reshape(*change.shape[:-1], self.config.group, -1)
        energy = jnp.mean(jnp.square(frames), -1, keepdims=True)
        return jnp.broadcast_to(energy / (energy + CHANGED), frames.shape).reshape(change.shape)

    def _patches(self, video: Array) -> Array:
        """[B, F, H, W, 3] -> [B, F, h, w, patch patch 3]."""
        b, f, height, width, _ = video.shape
        p = self.config.patch
        x = video.reshape(b, f, height // p, p, width // p, p, 3).transpose(0, 1, 2, 4, 3, 5, 6)
        return x.reshape(b, f, height // p, width // p, p * p * 3)

    def _groups(self, video: Float[Array, "B frames H W 3"]) -> Float[Array, "B k h w G"]:
        """[B, group k, H, W, 3] -> [B, k, h, w, group patch patch 3]."""
        x = self._patches(video)
        b, frames, h, w, size = x.shape
        g = self.config.group
        x = x.reshape(b, frames // g, g, h, w, size).transpose(0, 1, 3, 4, 2, 5)
        return x.reshape(b, frames // g, h, w, g * size)

    def _ungroup(self, x: Float[Array, "B k h w G"]) -> Float[Array, "B frames H W 3"]:
        """The inverse of `_groups`."""
        c, (b, k, h, w, _) = self.config, x.shape
        x = x.reshape(b, k, h, w, c.group, c.patch, c.patch, 3).transpose(0, 1, 4, 2, 5, 3, 6, 7)
        return x.reshape(b, k * c.group, h * c.patch, w * c.patch, 3)

    def _components(self, rows: np.ndarray, samples: int, mean: np.ndarray) -> dict:
        chosen = np.random.default_rng(0).permutation(len(rows))[:samples]
        rows = rows[chosen].astype(np.float32) - mean
        _, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
        basis = vectors[:, ::-1][:, : self.config.channels].astype(np.float32)
        return {"basis": basis, "mean": mean.astype(np.float32)}

    def _scale(self, latents: np.ndarray) -> np.ndarray:
        """What each channel is divided by; see `VideoCodecConfig.whitening`."""
        deviation = np.sqrt(np.maximum(np.mean(np.square(latents), 0), 1e-12))
        common = np.sqrt(np.mean(np.square(deviation)))
        return (common * (deviation / common) ** self.config.whitening).astype(np.float32)


def _unit(frames: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return frames.astype(np.float32) / 127.5 - 1


def _project(params: dict, x: Array) -> Array:
    return (x - params["mean"]) @ params["basis"] / params["scale"]
