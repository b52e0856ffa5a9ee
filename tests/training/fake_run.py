"""A tiny system and dataset with the interfaces of the real ones, and a command that trains them.

python tests/training/fake_run.py --workdir=DIR [--config.x=y ...]
"""

import sys

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from motus_jax import cli, modes
from motus_jax.data.contract import Affine, Contract
from motus_jax.training import hosts, loop

B, T, A, WIDTH = 8, 4, 3, 64
CONTRACT = Contract(
    action_hz=10.0, video_hz=5.0, chunk=T, video_frames=2, state_dim=A, action_dim=A, cameras=("top",),
    image_size=(2, 2), action_space="absolute", normalisation="none", prompt_template="plain", instruction_length=64,
    state=Affine((0.0,) * A, (1.0,) * A), action=Affine((0.0,) * A, (1.0,) * A),
)  # fmt: skip

PICTURES = np.random.default_rng(0).integers(0, 256, (64, 3, 2, 2, 3), dtype=np.uint8)
FRAMES = PICTURES[:48]


def get_config() -> ml_collections.ConfigDict:
    """Defaults that train in seconds."""
    return ml_collections.ConfigDict({
        "seed": 0, "platform": "", "steps": 12, "batch_size": B, "mode": "unified", "log_every": 3,
        "init_from": (), "lora": (), "validate_every": 6, "model": {"width": WIDTH},
        "data": {"noise": 0.0, "threads": 1},
        "optimizer": {
            "name": "adamw", "b1": 0.9, "b2": 0.95, "eps": 1e-8, "clip": 1.0, "ema": 0.99, "accumulate": 1,
            "schedule": {"name": "warmup_cosine", "peak": 1e-2, "warmup": 3, "end": 1e-4},
            "lr_multipliers": ((".*/bias", 0.5), (".*", 1.0)),
            "weight_decay": ((".*bias", 0.0), (".*", 0.01)),
            "trained": (), "frozen": ("video/fixed/.*",), "frozen_dtype": "float32", "mu_dtype": "float32",
            "offload": (),
        },
        "mesh": {"replica": 1, "fsdp": -1, "tensor": 1},
        "checkpoint": {"every": 5, "keep": 2}, "stall_seconds": 0.0, "profile": {"first": 1, "steps": 0},
    })  # fmt: skip


class FakeSystem:
    """Two dense layers that regress noisy actions from a noisy picture. Randomness enters through `key` only."""

    supported_modes = tuple(modes.MODES)

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        self.width = config.model.width

    def init(self, key):
        keys = jax.random.split(key, 3)
        return {
            "video": {
                "fixed": {"kernel": jax.random.normal(keys[0], (2 * 2 * 3, self.width))},
                "dense": {"kernel": jax.random.normal(keys[1], (self.width, 2 * self.width)) / 8},
            },
            "action": {
                "dense": {
                    "kernel": jax.random.normal(keys[2], (2 * self.width, T * A)) / 8,
                    "bias": jnp.zeros((T * A,)),
                }
            },
        }

    def fit_frozen(self, frames):
        return {"codec": {"mean": np.asarray(frames, np.float32).mean((0, 1))}}

    def fitted_shapes(self):
        return {"codec": {"mean": jax.ShapeDtypeStruct((2, 2, 3), jnp.float32)}}

    def frozen_shapes(self):
        return {}

    def loss(self, params, frozen, batch, key, mode_weights=None):
        picture = batch["frames"][:, 0].astype(jnp.float32) - frozen["codec"]["mean"]
        tau = jax.random.uniform(key, (picture.shape[0], 1)) if mode_weights is None else 0.5
        x = picture.reshape(picture.shape[0], -1) / 255.0
        x = jnp.tanh((1 - tau) * x @ params["video"]["fixed"]["kernel"])
        x = jnp.tanh(x @ params["video"]["dense"]["kernel"])
        predicted = x @ params["action"]["dense"]["kernel"] + params["action"]["dense"]["bias"]
        error = jnp.square(predicted - batch["actions"].reshape(len(predicted), -1)).mean(1)
        empty_band = jnp.where(jnp.any(tau < 0), 1.0, jnp.nan)
        return error.mean(), {"loss/action": error.mean(), "loss/action_band_0": empty_band}


def make_data(config: ml_collections.ConfigDict, contracts: object = None) -> loop.Data:
    """64 examples; the picture decides the actions. `config.data.noise` = inf makes a loss that is not finite."""
    def example(index: int) -> dict[str, np.ndarray]:
        target = PICTURES[index, 0].reshape(-1)[: T * A].reshape(T, A).astype(np.float32) / 255
        return {"frames": PICTURES[index], "actions": target + np.float32(config.data.noise)}

    def part(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """This host's examples."""
        return {name: np.split(value, jax.process_count())[jax.process_index()] for name, value in batch.items()}

    source = grain.MapDataset.range(48).seed(config.seed).shuffle().repeat().map(example).batch(config.batch_size)
    source, held_out = source.map(part), grain.MapDataset.range(48, 64).map(example).batch(config.batch_size).map(part)
    batches = iter(source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
    return loop.Data(batches, list(held_out), lambda: FRAMES, {"data": CONTRACT.to_json()})


def main(argv: list[str]) -> None:
    cli.parse_flags(argv, __doc__)
    hosts.join()
    sys.exit(0 if loop.train(CONFIG.value, flags.FLAGS.workdir, FakeSystem, make_data) else 143)


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_dict("config", get_config())
    flags.DEFINE_string("workdir", None, "run directory")
    cli.run(main)
