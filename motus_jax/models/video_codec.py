"""A linear video codec: the stand-in for the Wan2.2 VAE until its weights are loaded.

It has that VAE's interface and causal shape, 1 + 4k frames <-> 1 + k latent frames, and is fitted in closed form to a
sample of the training video: principal components of `patch` x `patch` pictures for the condition frame, and of
groups of four frames for the future, which is coded as its difference from the condition frame. A latent of zero
therefore means "nothing changed", and decoding starts from the condition frame's own pixels, which every mode has.

Cameras that stand still, or move with the hand that they see, show other things at each place of the picture, so
every place may have components of its own (`local`). They are turned to lie as near as they can to those that all
places share: a channel then means nearly the same everywhere, to a network that treats all places alike.

What the components cannot express of the condition frame, its finest detail, stays only where nothing changes: where
the decoded difference is large, something else is there now, and the detail would show as the ghost of what has left.
It is not a neural network.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, UInt8

from motus_jax.errors import UserError

MOVING = 1e-3
"""Mean squared difference in [-1, 1] pixels above which a patch counts as moving when the codec is fitted."""
CHANGED = 0.01
"""The same at which a decoded patch has lost half of its old detail; best of 0.003 to 0.1 on the demo's clips."""
PRIOR = 100
"""Clips of the shared statistics that are added to those of a place; best of 0 to 300 for a few hundred clips, and no
loss with thousands."""
SHARED = 64
"""At most so many clips make the components that all places share."""
ITERATIONS = 8
"""Of the subspace of a place, begun with the shared components; 0.04 dB short of its limit on the demo's data."""


@dataclasses.dataclass(frozen=True)
class VideoCodecConfig:
    """`channels` of a latent, `patch` pixels to its side, `group` frames in its time.

    `whitening` is the power of a component's spread it is divided by: 1 gives every channel unit variance, 0 keeps
    the pixels' own proportions (all channels then share one scale). `local` gives each place of the picture its own
    components of motion. `clips` of the training split are what it is fitted on.
    """

    channels: int
    patch: int = 8
    group: int = 4
    whitening: float = 0.5
    local: bool = False
    clips: int = 64


class VideoCodec:
    """Encode and decode as pure functions of a dict: `picture` and `motion`, each with `basis`, `mean`, `scale`."""

    def __init__(self, config: VideoCodecConfig) -> None:
        most = 3 * config.patch**2
        if config.channels > most:
            raise UserError(
                f"config.model.video_codec.patch={config.patch}: expected at most {most} channels, as many numbers as a"
                f" patch of a picture has; found {config.channels}"
            )
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

    def shapes(self, height: int, width: int) -> dict:
        """What `fit` returns for clips of this size, as `jax.ShapeDtypeStruct`s."""
        c = self.config
        place = (height // c.patch, width // c.patch) if c.local else ()

        def part(width: int, place: tuple[int, ...] = ()) -> dict[str, jax.ShapeDtypeStruct]:
            sizes = {"basis": (*place, width, c.channels), "mean": (*place, width), "scale": (c.channels,)}
            return {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in sizes.items()}

        return {"picture": part(3 * c.patch**2), "motion": part(3 * c.patch**2 * c.group, place)}

    def fit(self, clips: UInt8[np.ndarray, "M frames H W 3"]) -> dict:
        """Principal components of clips of the training split, on the host, deterministic.

        Returns:
          The parameter dict, float32.
        """
        some = clips[:: -(-len(clips) // SHARED)]
        pictures = _rows(_unit(self._patches(some[:, :1])))
        mean = pictures.mean(0)
        basis = self._components(_products(pictures - mean) / len(pictures))
        picture = {"mean": mean, "basis": basis, "scale": self._scale(np.square((pictures - mean) @ basis).mean(0))}
        future, changes = (_rows(x) for x in self._future(some))
        mean, rows = future.mean(0), _moving(changes, changes)
        rows = rows if len(rows) else changes
        if self.config.local:
            return {"picture": picture, "motion": self._local(clips, _products(rows) / len(rows))}
        # Differences to code, and the pictures themselves, of which the decoder takes the finest detail apart.
        rows = np.concatenate([rows, _moving(future - mean, changes)])
        basis = self._components(_products(rows) / len(rows))
        scale = self._scale(np.square(changes @ basis).mean(0))
        return {"picture": picture, "motion": {"basis": basis, "mean": mean, "scale": scale}}

    def _local(self, clips: UInt8[np.ndarray, "M frames H W 3"], shared: Float[np.ndarray, "G G"]) -> dict:
        """`motion`, with components for each place: of its own statistics and a few clips' worth of the `shared`."""
        if not shared.any():  # nothing moves anywhere
            shared = np.eye(len(shared), dtype=np.float32)
        c, start, shared = self.config, self._components(shared), shared / np.trace(shared)
        (_, h, w, _), size = self.latent_shape(*clips.shape[1:4]), len(shared)
        basis, mean = np.empty((h, w, *start.shape), np.float32), np.empty((h, w, size), np.float32)
        energy = np.zeros(c.channels)
        for y, x in np.ndindex(h, w):
            tile = clips[:, :, y * c.patch : (y + 1) * c.patch, x * c.patch : (x + 1) * c.patch]
            future, changes = (_rows(part) for part in self._future(tile))
            own = _products(_moving(changes, changes))
            wanted = own + PRIOR * max(np.trace(own) / len(changes), 1e-6) * shared
            found = start
            for _ in range(ITERATIONS):
                found, _ = np.linalg.qr(wanted @ found)
            left, _, right = np.linalg.svd(found.T @ start)
            basis[y, x], mean[y, x] = found @ (left @ right), future.mean(0)
            energy += np.einsum("gc,gc->c", basis[y, x], own @ basis[y, x]) / len(changes) / (h * w)
        return {"basis": basis, "mean": mean, "scale": self._scale(energy)}

    def _future(self, clips: UInt8[np.ndarray, "M frames H W 3"]) -> tuple[np.ndarray, np.ndarray]:
        """Groups of the future in [-1, 1] and their differences from the condition frame, each [M, k, h, w, G]."""
        video = _unit(clips)
        return self._groups(video[:, 1:]), self._groups(video[:, 1:] - video[:, :1])

    def encode(self, params: dict, video: Float[Array, "B frames H W 3"]) -> Float[Array, "B F h w C"]:
        """Latents of a clip in [-1, 1]; the first one depends on the first frame only."""
        first = _project(params["picture"], self._patches(video[:, :1]))
        if video.shape[1] == 1:
            return first
        motion = params["motion"]
        change = _onto(self._groups(video[:, 1:] - video[:, :1]), motion["basis"]) / motion["scale"]
        return jnp.concatenate([first, change], axis=1)

    def decode(
        self, params: dict, latents: Float[Array, "B F h w C"], condition: Float[Array, "B 1 H W 3"]
    ) -> Float[Array, "B frames H W 3"]:
        """Frames in [-1, 1]: the condition frame itself, then the future ones."""
        motion, frames = params["motion"], (latents.shape[1] - 1) * self.config.group
        change = _back(latents[:, 1:] * motion["scale"], motion["basis"])
        still = self._groups(jnp.repeat(condition, frames, axis=1))
        centred = still - motion["mean"]
        detail = centred - _back(_onto(centred, motion["basis"]), motion["basis"])
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

    def _components(self, products: Float[np.ndarray, "G G"]) -> Float[np.ndarray, "G C"]:
        """The channels that hold most of what has these mean products."""
        first = len(products) - self.config.channels
        _, vectors = scipy.linalg.eigh(products, subset_by_index=(first, len(products) - 1), driver="evx")
        return vectors[:, ::-1].astype(np.float32)

    def _scale(self, energy: Float[np.ndarray, " C"]) -> Float[np.ndarray, " C"]:
        """What each channel is divided by, from its mean square; see `VideoCodecConfig.whitening`."""
        deviation = np.sqrt(np.maximum(energy, 1e-12))
        common = np.sqrt(np.mean(np.square(deviation)))
        return (common * (deviation / common) ** self.config.whitening).astype(np.float32)


def _unit(frames: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return frames.astype(np.float32) / np.float32(127.5) - 1


def _rows(x: Float[np.ndarray, "... G"]) -> Float[np.ndarray, "n G"]:
    return x.reshape(-1, x.shape[-1])


def _moving(rows: Float[np.ndarray, "n G"], changes: Float[np.ndarray, "n G"]) -> Float[np.ndarray, "m G"]:
    """Those of the rows where something changes."""
    return rows[np.square(changes).mean(-1) > MOVING]


def _products(rows: Float[np.ndarray, "n G"]) -> Float[np.ndarray, "G G"]:
    return rows.T @ rows


def _onto(x: Float[Array, "B k h w G"], basis: Array) -> Float[Array, "B k h w C"]:
    """Coordinates in a basis [G, C] of all places or [h, w, G, C] of each."""
    return x @ basis if basis.ndim == 2 else jnp.einsum("bkhwg,hwgc->bkhwc", x, basis)


def _back(x: Float[Array, "B k h w C"], basis: Array) -> Float[Array, "B k h w G"]:
    """From coordinates to pixels."""
    return x @ basis.T if basis.ndim == 2 else jnp.einsum("bkhwc,hwgc->bkhwg", x, basis)


def _project(params: dict, x: Array) -> Array:
    return (x - params["mean"]) @ params["basis"] / params["scale"]
