"""Small random checkpoints under public names, as the releases lay them out."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from motus_jax.weights import kinds, tree

ALIASES = {
    "video_model.": ("video_module.video_model.", "action_module.video_model."),
    "action_expert.": ("action_module.action_expert.",),
    "und_expert.": ("und_module.und_expert.",),
    "vlm_model.": ("und_module.vlm_model.", "action_module.vlm_model."),
}
CHUNK = 16


def public_tensors(kind, dtype=np.float32, variant="debug", overrides=None, chunk=CHUNK, seed=0):
    """Name -> random array, for everything that an export of this kind holds."""
    rng, found = np.random.default_rng(seed), {}
    for part in kinds.parts_of(kind, variant, overrides):
        for name, shape in part.public().items():
            found[name] = rng.standard_normal(shape, np.float32).astype(dtype)
        found |= {name: found[first] for name, first in part.tied.items()}
        if part.buffer:
            found[part.buffer.name] = part.buffer.values(chunk).astype(dtype)
    return found


def with_aliases(tensors):
    """As a state dict of the release: every module under all its names, the arrays shared."""
    found = dict(tensors)
    for prefix, others in ALIASES.items():
        for name in [name for name in tensors if name.startswith(prefix)]:
            found |= {other + name.removeprefix(prefix): tensors[name] for other in others}
    return found


def on_first_device(abstract):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: sharding, abstract)


def targets(parts, dtype=jnp.float32, place=on_first_device):
    """What `load_imported` is asked for, for all leaves of these parts."""
    found = {}
    for part in parts:
        abstract = part.abstract({leaf.path: dtype for leaf in part.leaves})
        found[part.subtree] = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract, place(abstract),
        )  # fmt: skip
    return found


def assert_bits_equal(one, other):
    one, other = tree.flatten(one), tree.flatten(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        a, b = np.asarray(value), np.asarray(other[path])
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), path


def as_bfloat16(tensors):
    return {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
