"""The smallest system with weights that say something, and an observation of two rows."""

import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).parents[2]))


@pytest.fixture(scope="session")
def small():
    """(system, params, frozen, batch) of the debug experiment, three layers, of which the last is trimmed."""
    from experiments import debug
    from motus_jax.models.system import System

    config, rng = debug.get_config(), np.random.default_rng(0)
    config.model.overrides.update(depth=3, trim_last_layer=True)
    system, data = System(config), config.data

    def drawn(shapes, deviation):
        return jax.tree.map(lambda leaf: rng.normal(0, deviation, leaf.shape).astype(leaf.dtype), shapes)

    params = drawn(jax.eval_shape(system.init, jax.random.key(0)), 0.2)
    rows, words = 2, np.arange(data.instruction_length)
    batch = {
        "frames": rng.integers(0, 256, (rows, 1 + data.video_frames, *data.image_size, 3), np.uint8),
        "actions": np.zeros((rows, data.chunk, 14), np.float32),
        "state": rng.normal(size=(rows, 14)).astype(np.float32),
        "instruction": np.tile(words % 7 + 1, (rows, 1)).astype(np.int32),
        "instruction_mask": words < np.array([[9], [20]]),
    }
    return system, params, drawn(system.fitted_shapes(), 0.1), batch
