"""Where a new run's parameters come from: `config.init_from`, one table for imported weights and for earlier runs.

Rows (regex, source), matched against leaf paths such as `motus/layers/video/ffn/dense_0/kernel`; the first match wins
and what no row names starts fresh. A source is a folder written by `motus_jax.convert import` or by
`motus_jax.train` (its averaged parameters), or `new`. LoRA's adapters start fresh where the source has none; a source's
own go on where the new run has them too, and are merged into their kernels where it does not. So the phases hand over
(paper, section 5):

  init_from = (("motus/(layers/)?video/.*", "runs/wan"),)                                phase 1, 2: Wan's own weights
  init_from = (("motus/action/(registers|state_encoder/.*)", "new"), ("motus/.*", "runs/phase2"))             phase 3
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import jax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from motus_jax.data import run_path
from motus_jax.data.run_path import Home
from motus_jax.errors import UserError
from motus_jax.training import checkpoint, sharding
from motus_jax.training.step import Trainable
from motus_jax.weights import importer, lora, tree

NEW = "new"
ADAPTERS = 2**32 - 2
"""Folded into the seed's key for LoRA's adapters; no step has this number."""
Rows = Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Origin:
    """One source, opened: what it holds and how to read it.

    Attributes:
      path: the folder.
      shapes: leaf path -> shape.
      description: for the table, e.g. `run, step 2800`.
    """

    path: Home
    shapes: Mapping[str, tuple[int, ...]]
    description: str

    def load(self, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """The leaves `targets`, cast and placed as they say; each device reads its own part."""
        raise NotImplementedError


class _Import(Origin):
    def load(self, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        return tree.flatten(importer.load_imported(self.path, tree.unflatten(targets)))


class _Run(Origin):
    def load(self, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        return checkpoint.load_leaves(self.path, targets)


def origins(rows: Rows, paths: Iterable[str]) -> dict[str, str]:
    """Leaf path -> source (`NEW` where no row says otherwise).

    Raises:
      UserError: a regex that does not compile or decides nothing.
    """
    return tree.match(paths, rows, "config.init_from", default=NEW)


def fresh(system: Trainable, adapters: lora.Rows, key: PRNGKeyArray) -> tree.Tree:
    """Fresh parameters, with what `adapters` (`config.lora`) adds to them; those of the system do not depend on it."""
    return lora.add(system.init(key), adapters, jax.random.fold_in(key, ADAPTERS))


def frozen_parts(
    rows: Rows, system: Trainable, params: tree.Tree, mesh: Mesh, fitted: Callable[[], tree.Tree]
) -> tree.Tree:
    """The frozen parts of a new run, on their devices: loaded from where `rows` say, or fitted to the data.

    Args:
      rows: `config.init_from`.
      params: the model's parameters, as arrays or shapes: the rows are one table over both trees.
      fitted: makes the parts that are fitted to the data, as `system.fit_frozen` does; called if one of them is wanted
        that no row takes from elsewhere.

    Raises:
      UserError: no row says where a part comes from, or its source lacks a leaf of that shape.
    """
    outside, fittable = (
        sharding.targets(shapes, mesh, sharding.FROZEN_RULES)
        for shapes in (system.frozen_shapes(), system.fitted_shapes())
    )
    loaded = load(rows, {**params, **outside, **fittable}, tree.flatten({**outside, **fittable}))
    taken = {path.split("/")[0] for path in loaded}
    refuse_untrained({**outside, **{name: part for name, part in fittable.items() if name in taken}}, loaded)
    made = {}
    if fittable.keys() - taken:
        made = {name: part for name, part in fitted().items() if name not in taken}
        made = jax.device_put(made, sharding.tree_shardings(made, mesh, sharding.FROZEN_RULES))
    return {**tree.unflatten(loaded), **made}


def load(rows: Rows, targets: tree.Tree, chosen: Iterable[str]) -> dict[str, jax.Array]:
    """Those of the leaves `chosen` that do not start fresh, by path.

    Args:
      rows: `config.init_from`.
      targets: all parameters, trained or not, as `jax.ShapeDtypeStruct`s, the chosen ones with shardings.
      chosen: paths of leaves.

    Raises:
      UserError: a source that is neither an import nor a run, or that lacks a leaf of that shape.
    """
    flat, among = tree.flatten(targets), set(chosen)
    sources = {path: source for path, source in origins(rows, flat).items() if path in among}
    found: dict[str, jax.Array] = {}
    for source in sorted(set(sources.values()) - {NEW}):
        origin = open_origin(run_path.of(source))
        wanted = {path: flat[path] for path, chosen_from in sources.items()
                  if chosen_from == source and (path in origin.shapes or not lora.is_adapter(path))}  # fmt: skip
        for path, leaf in wanted.items():
            _check(origin, path, leaf.shape)
        found |= origin.load(wanted)
    return found


def refuse_untrained(frozen: tree.Tree, loaded: Iterable[str]) -> None:
    """Raises `UserError` if a frozen part starts fresh: it would stay random."""
    missing = tree.flatten(frozen).keys() - set(loaded)
    if missing:
        part = min(missing).split("/")[0]
        raise UserError(
            f"config.model.frozen: {part} is not trained, so config.init_from must say where it comes from, e.g. "
            f"('{part}/.*', 'runs/imported'); found nothing for {min(missing)!r}"
        )


def refuse_random_kernels(fresh: Iterable[str], trained: Iterable[str]) -> None:
    """Raises `UserError` if an adapter lies beside a kernel that starts fresh and is not trained: it stays random.

    Args:
      fresh, trained: paths of all parameters that start fresh, and of all that are trained.
    """
    random = set(fresh) - set(trained)
    bare = min((path for path in map(lora.kernel_of, filter(lora.is_adapter, fresh)) if path in random), default=None)
    if bare:
        raise UserError(
            f"config.lora: adapters are trained beside {bare!r}, which is not, so config.init_from must say where it"
            f" comes from, e.g. ('motus/.*', 'runs/imported'); found nothing"
        )


def open_origin(path: Home) -> Origin:
    """A source as the folder says what it is.

    Raises:
      UserError: neither an import nor a run.
    """
    if importer.imported_directory(path).exists():
        leaves = importer.imported_leaves(path)
        shapes = {f"{name}/{leaf}": tuple(row["shape"]) for name, rows in leaves.items() for leaf, row in rows.items()}
        return _Import(path, shapes, f"import of {', '.join(leaves)}")
    steps = checkpoint.available_steps(path) if path.exists() else []
    if not steps:
        raise UserError(
            f"config.init_from: {path} holds neither imported weights (motus_jax.convert import --workdir={path}) nor"
            " checkpoints of a run (motus_jax.train); expected one of the two"
        )
    return _Run(path, checkpoint.leaf_shapes(path), f"run, step {steps[-1]}")


def table(rows: Rows, targets: tree.Tree, fresh: Collection[str]) -> str:
    """What starts where, one line per group of leaves with one origin; `fresh` are the paths of what starts anew."""
    flat = tree.flatten(targets)
    groups: dict[tuple[str, str], list[int]] = {}
    for path, source in origins(rows, flat).items():
        entry = groups.setdefault((_group(path), NEW if path in fresh else source), [0, 0])
        entry[0] += 1
        entry[1] += flat[path].size
    cells = [(group, source, f"{count} leaves", f"{size:,} parameters")
             for (group, source), (count, size) in sorted(groups.items())]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


def _group(path: str) -> str:
    """`motus/layers/video/ffn/...` -> `motus/layers/video`; `vlm/...` -> `vlm`."""
    parts = path.split("/")[:-1]
    if parts[0] != "motus":
        return parts[0]
    return "/".join(parts[: 3 if len(parts) > 1 and parts[1] in ("layers", "action") else 2])


def _check(origin: Origin, path: str, shape: tuple[int, ...]) -> None:
    if path not in origin.shapes:
        raise UserError(
            f"config.init_from: {origin.path} ({origin.description}) has no leaf {path!r} of shape {shape}; let it"
            f" start fresh with a row before: ({path!r}, {NEW!r})"
        )
    if origin.shapes[path] != shape:
        raise UserError(
            f"config.init_from: leaf {path!r}: expected shape {shape}, found {origin.shapes[path]} in {origin.path};"
            f" let it start fresh with a row before: ({path!r}, {NEW!r}), or use a config of the same sizes"
        )
