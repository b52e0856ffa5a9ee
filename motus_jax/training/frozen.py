"""What a run does not train, kept once: written when the run starts, complete or absent.

`workdir/frozen` holds the frozen encoders, `workdir/base` the parameters of the model that are not trained, e.g. what
LoRA's adapters lie beside. Neither changes, so the checkpoints hold none of them. The meta of every checkpoint says
what they are (`describe`): a reader knows what to expect there, and notices other weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from motus_jax.data.run_path import Home, absolute, for_orbax
from motus_jax.errors import UserError
from motus_jax.weights import tree
from motus_jax.weights.fingerprint import fingerprints

FIELDS = ("frozen", "fingerprints")
"""The fields of a checkpoint's meta that `describe` makes."""
ENCODERS, BASE = "frozen", "base"
"""Folders of the workdir."""


def directory_of(workdir: Home, folder: str = ENCODERS) -> Home:
    return absolute(workdir) / folder


def describe(parts: tree.Tree) -> dict[str, Any]:
    """What a checkpoint's meta says of them: shapes and types by leaf path, and one fingerprint a part."""
    return {"frozen": tree.describe(parts), "fingerprints": fingerprints(parts)}


def save(workdir: Home, parts: tree.Tree, folder: str = ENCODERS) -> None:
    """Writes one folder of a new run, in place of those of one that never came to its first checkpoint."""
    if not parts:
        return
    context = ocp.Context()
    context.array.saving.use_compression = False  # weights hardly get smaller
    with context:
        ocp.save(for_orbax(directory_of(workdir, folder)), parts, overwrite=True)


def load(
    workdir: Home, meta: Mapping[str, Any], place: Callable[[Any], Any], folder: str = ENCODERS
) -> tree.Tree:
    """All that one folder of a run holds.

    Args:
      meta: of one of its checkpoints; for `BASE`, what stands there under that name.
      place: from a tree of `jax.ShapeDtypeStruct` to the same tree with shardings.

    Raises:
      UserError: the folder is missing or damaged, or holds other weights than the run was trained with.
    """
    if not meta["frozen"]:
        return {}
    found = _read(workdir, place(tree.abstract(meta["frozen"])), folder)
    other = [name for name, value in fingerprints(found).items() if meta["fingerprints"][name] != value]
    if other:
        raise _unusable(workdir, folder, f"weights of {other[0]} that differ from those of the training")
    return found


def load_leaves(
    workdir: Home, targets: Mapping[str, jax.ShapeDtypeStruct], folder: str = ENCODERS
) -> dict[str, jax.Array]:
    """Chosen leaves by path, cast and placed as `targets` say.

    Raises:
      UserError: the folder is missing or damaged.
    """
    return tree.flatten(_read(workdir, tree.unflatten(targets), folder)) if targets else {}


def _read(workdir: Home, targets: Any, folder: str) -> Any:
    path = directory_of(workdir, folder)
    if not path.is_dir():
        raise _unusable(workdir, folder, "no such folder")
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            return ocp.load(for_orbax(path), targets)
    except Exception as error:  # Orbax and tensorstore raise many types on damaged files
        reason = " ".join(str(error).split())[:300]
        raise _unusable(workdir, folder, f"a damaged one ({type(error).__name__}: {reason})") from error


def _unusable(workdir: Home, folder: str, found: str) -> UserError:
    return UserError(
        f"{directory_of(workdir, folder)}: expected the frozen parts that this run's start wrote; found {found};"
        " restore a copy of the folder, or train again with another --workdir"
    )
