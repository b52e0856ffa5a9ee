"""A policy with the smallest model there is, untrained: what it answers means nothing, but it is the real thing."""

import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parents[2]), str(pathlib.Path(__file__).parent)]


@pytest.fixture(scope="session")
def loaded():
    """What a checkpoint of the debug experiment holds, at fewer layers and denoising steps."""
    from experiments import debug
    from motus_jax.data.contract import Affine, Contract
    from motus_jax.models.system import System
    from motus_jax.training.checkpoint import Loaded

    def drawn(shapes, deviation):
        return jax.tree.map(lambda leaf: rng.normal(0, deviation, leaf.shape).astype(leaf.dtype), shapes)

    config = debug.get_config()
    config.sampling.video_steps = config.sampling.action_steps = 2
    config.model.overrides.update(depth=2, trim_last_layer=True)
    data, rng = config.data, np.random.default_rng(0)
    numbers = Affine(tuple(rng.normal(size=14).tolist()), tuple(rng.uniform(0.5, 2, 14).tolist()))
    contract = Contract(
        action_hz=data.action_hz, video_hz=data.video_hz, chunk=data.chunk, video_frames=data.video_frames,
        state_dim=14, action_dim=14, cameras=data.cameras, image_size=data.image_size, action_space="delta",
        normalisation="meanstd", state=numbers, action=numbers, prompt_template="plain",
        instruction_length=data.instruction_length, robot="test",
    )  # fmt: skip
    system = System(config)
    # Drawn by numpy: compiling the initialisation and fitting the codec would take longer than all tests here.
    params = drawn(jax.eval_shape(system.init, jax.random.key(0)), 0.2)
    return Loaded(config, {"data": contract.to_json()}, params, drawn(system.fitted_shapes(), 0.1), step=3)


@pytest.fixture(scope="session")
def policy(loaded):
    """Acts, for one or two clients at once."""
    from motus_jax.robots.policy import Policy

    return Policy(loaded, modes=("vla",), max_batch=2)


@pytest.fixture
def observation():
    """Three cameras of several sizes, a state, an instruction."""
    rng = np.random.default_rng(1)
    sizes = {"top": (72, 96), "left_wrist": (36, 48), "right_wrist": (60, 60)}
    images = {name: rng.integers(0, 256, (*size, 3), np.uint8) for name, size in sizes.items()}
    return {"prompt": "lift the cube", "state": rng.normal(size=14).astype(np.float32), "images": images}
