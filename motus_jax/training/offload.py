"""What of a run's state waits in the host's memory from one update to the next: the rows of `config.optimizer.offload`.

Rows are regexes over paths of the state (`motus_jax.training.step`), the first that matches wins:

  opt_state/.*/(mu|nu)/.*         the moments of adamw and muon
  (opt_state|ema)/.*              all that is kept beside the parameters

What a row matches lies as `motus_jax.training.sharding` says, but in pinned memory of the host that each device belongs
to. The step copies it to the device when the gradients are there, and its new value back. Parameters stay where they
are, because every layer asks for them, and so do leaves of fewer than `sharding.LARGE` elements, which are not worth a
copy. The numbers are the same as without. CPU devices do all of this, in the one memory that they have.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from motus_jax.errors import UserError
from motus_jax.training import sharding
from motus_jax.training.optimizer import global_norm
from motus_jax.weights import tree

NAME = "config.optimizer.offload"
KIND = "pinned_host"
PARTS = ("opt_state", "ema")
"""What of the state may leave the devices."""


def place(state: Mapping[str, Any], rows: Sequence[str], mesh: Mesh) -> dict[str, Any]:
    """The state with what `rows` match in the host's memory; as `jax.ShapeDtypeStruct`s with shardings, as it came.

    Raises:
      UserError: a row that does not compile or decides nothing, or devices whose host has no such memory.
    """
    if not rows:
        return dict(state)
    try:
        sharding.replicated(mesh).with_memory_kind(KIND)
    except ValueError as error:
        kind = mesh.devices.flat[0].device_kind
        raise UserError(
            f"{NAME}: expected devices with memory {KIND!r} at their host; found {kind}; leave it ()"
        ) from error
    decided = _decided(state, rows)

    def placed(key_path: Sequence[Any], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if not decided.get(tree.path_name(key_path)):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding.with_memory_kind(KIND))

    return jax.tree_util.tree_map_with_path(placed, dict(state))


def table(state: Mapping[str, Any], rows: Sequence[str]) -> str:
    """One line a row: how much it keeps in the host's memory, in all and of each device."""
    decided, leaves = _decided(state, rows), _leaves(state)
    cells = []
    for row in rows:
        own = [leaves[path] for path, winner in decided.items() if winner == row]
        whole, part = sum(leaf.size * leaf.dtype.itemsize for leaf in own), sharding.bytes_of_one_device(own)
        cells.append((row, f"{len(own)} leaves", f"{whole / 2**30:.2f} GiB", f"{part / 2**30:.2f} GiB of each device"))
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


def update(function: Callable[[tree.Tree], tree.Tree], held: tree.Tree, grads: tree.Tree) -> tree.Tree:
    """Within a jitted function: `function(held)`, of which the leaves in the host's memory are there again afterwards.

    Nothing is copied to the devices before the gradients are known. Left to itself the TPU's compiler copies as soon as
    it can, so that all of it is there when activations need the room, and removes barriers before it decides. It cannot
    take copies out of a loop, nor know that this one, whose start depends on the gradients, runs once.

    Args:
      function: of the state with all leaves on the devices; keeps structure, shapes and types.
      grads: what is to be known before.
    """
    if not any(map(_on_host, jax.tree.leaves(held))):
        return function(held)

    def once(carry: tuple[Array, tree.Tree]) -> tuple[Array, tree.Tree]:
        done, old = carry
        return done + 1, _back(function(on_device(old)), old)

    never = global_norm(tree.flatten(grads)) == -1.0
    return jax.lax.while_loop(lambda carry: carry[0] < 1, once, (never.astype(jnp.int32), held))[1]


def on_device(parts: tree.Tree) -> tree.Tree:
    """Within a jitted function: the same values, none of them in the host's memory."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, jax.memory.Space.Device) if _on_host(leaf) else leaf, parts)


def _back(parts: tree.Tree, before: tree.Tree) -> tree.Tree:
    """`parts`, each leaf in the memory in which that of `before` is."""
    return jax.tree.map(
        lambda leaf, old: jax.device_put(leaf, jax.memory.Space.Host) if _on_host(old) else leaf, parts, before
    )


def in_host_memory(leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf of a placed state is in the host's memory."""
    return leaf.sharding.memory_kind == KIND


def _on_host(leaf: Array) -> bool:
    """Of a traced array; its type knows."""
    return jax.typeof(leaf).memory_space == jax.memory.Space.Host


def _decided(state: Mapping[str, Any], rows: Sequence[str]) -> dict[str, str]:
    """Path of every leaf that may leave the devices -> the row that takes it, or ""."""
    return tree.match(_leaves(state), [(row, row) for row in rows], NAME, default="")


def _leaves(state: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves that may leave the devices, by path."""
    flat, _ = jax.tree_util.tree_flatten_with_path({part: state[part] for part in PARTS})
    return {tree.path_name(path): leaf for path, leaf in flat if leaf.size >= sharding.LARGE}
