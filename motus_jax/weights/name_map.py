"""Name maps: a table of rules between the tensors of a public checkpoint and the leaves of one of our trees.

A rule names one tensor, or one per layer (`{layer}` in the source name); per-layer tensors are stacked on axis 0 of a
leaf, as the scanned layers keep them. Every mapping is strict in both directions: nothing missing, nothing left over.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from motus_jax.errors import UserError

Array = np.ndarray
Tree = dict[str, "Tree | Array"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one tensor changes shape between the public layout and ours; each direction takes the target's shape."""

    ours: Callable[[Array], Array]
    public: Callable[[Array, tuple[int, ...]], Array]


def _stacked_qkv_ours(x: Array) -> Array:
    return x.transpose(2, 0, 1, 3).reshape(x.shape[2], -1)


def _stacked_qkv_public(x: Array, shape: tuple[int, ...]) -> Array:
    three, heads, width, head_dim = shape
    return x.reshape(width, three, heads, head_dim).transpose(1, 2, 0, 3)


def _patch_ours(x: Array) -> Array:
    return x.transpose(2, 3, 4, 1, 0).reshape(-1, x.shape[0])


def _patch_public(x: Array, shape: tuple[int, ...]) -> Array:
    width, channels, *patch = shape
    return x.reshape(*patch, channels, width).transpose(4, 3, 0, 1, 2)


def _conv_ours(x: Array) -> Array:
    return x.transpose(*range(2, x.ndim), 1, 0)


def _conv_public(x: Array, shape: tuple[int, ...]) -> Array:
    return x.transpose(x.ndim - 1, x.ndim - 2, *range(x.ndim - 2))


LAYOUTS: dict[str, Layout] = {
    "same": Layout(lambda x: x, lambda x, shape: x),
    "transpose": Layout(lambda x: x.T, lambda x, shape: x.T),
    "squeeze": Layout(lambda x: x[0], lambda x, shape: x[None]),
    "stacked_qkv": Layout(_stacked_qkv_ours, _stacked_qkv_public),
    "patch": Layout(_patch_ours, _patch_public),
    "flat_patch": Layout(lambda x: x.reshape(len(x), -1).T, lambda x, shape: x.T.reshape(shape)),
    "conv": Layout(_conv_ours, _conv_public),
    "transposed_conv": Layout(lambda x: x.transpose(2, 3, 0, 1), lambda x, shape: x.transpose(2, 3, 0, 1)),
    "vector": Layout(lambda x: x.reshape(-1), lambda x, shape: x.reshape(shape)),
}
"""`stacked_qkv`: [3, heads, in, head_dim] <-> [in, 3 heads head_dim]; `patch`: Conv3d [out, in, t, h, w] <-> dense over
(t, h, w, in); `flat_patch`: the same <-> dense over (in, t, h, w); `conv`: [out, in, *window] <-> [*window, in, out];
`transposed_conv`: [in, out, h, w] <-> [h, w, in, out]; `vector`: [features, 1, ...] <-> [features]."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a map.

    Attributes:
      source: public name, with `{layer}` where there is one tensor a layer.
      path: our leaf, `/`-separated.
      layout: a row of `LAYOUTS`.
      shape: the public shape.
    """

    source: str
    path: str
    layout: str
    shape: tuple[int, ...]

    def names(self, depth: int) -> list[str]:
        if "{layer}" not in self.source:
            return [self.source]
        return [self.source.format(layer=layer) for layer in range(depth)]


def to_tree(tensors: Mapping[str, Array], rules: Sequence[Rule], depth: int) -> Tree:
    """Our tree from public tensors.

    Raises:
      UserError: a tensor is missing, left over, or of another shape; the message names the first of them.
    """
    expected = {name: rule for rule in rules for name in rule.names(depth)}
    _refuse_differences(set(expected), set(tensors))
    tree: Tree = {}
    for rule in rules:
        parts = [_checked(name, tensors[name], rule) for name in rule.names(depth)]
        ours = [LAYOUTS[rule.layout].ours(part) for part in parts]
        _insert(tree, rule.path, np.stack(ours) if "{layer}" in rule.source else ours[0])
    return tree


def to_public(tree: Tree, rules: Sequence[Rule], depth: int) -> dict[str, Array]:
    """Public tensors from our tree; the inverse of `to_tree`, bit for bit."""
    leaves = flatten(tree)
    _refuse_differences({rule.path for rule in rules}, set(leaves))
    tensors = {}
    for rule in rules:
        names, leaf = rule.names(depth), np.asarray(leaves[rule.path])
        parts = leaf if "{layer}" in rule.source else [leaf]
        for name, part in zip(names, parts, strict=True):
            tensors[name] = np.ascontiguousarray(LAYOUTS[rule.layout].public(part, rule.shape))
    return tensors


Group = tuple[Sequence[Rule], int]
"""Rules, and how many layers their per-layer tensors have."""


def groups_to_tree(tensors: Mapping[str, Array], groups: Sequence[Group]) -> Tree:
    """Our tree from public tensors, by the rules of all groups.

    Raises:
      UserError: as `to_tree`.
    """
    wanted = [{name for rule in rules for name in rule.names(depth)} for rules, depth in groups]
    tree: Tree = {}
    for part, (rules, depth) in zip(_split(tensors, wanted), groups):
        for path, leaf in flatten(to_tree(part, rules, depth)).items():
            _insert(tree, path, leaf)
    return tree


def groups_to_public(tree: Tree, groups: Sequence[Group]) -> dict[str, Array]:
    """Public tensors from our tree; the inverse of `groups_to_tree`, bit for bit."""
    leaves = flatten(tree)
    wanted = [{rule.path for rule in rules} for rules, _ in groups]
    tensors: dict[str, Array] = {}
    for part, (rules, depth) in zip(_split(leaves, wanted), groups):
        tensors |= to_public(part, rules, depth)
    return tensors


def _split(items: Mapping[str, Array], wanted: Sequence[set[str]]) -> list[dict[str, Array]]:
    """The items of each group; what belongs to none goes to the first, which refuses it."""
    parts = [{name: item for name, item in items.items() if name in names} for names in wanted]
    parts[0] |= {name: item for name, item in items.items() if not any(name in names for names in wanted)}
    return parts


def flatten(tree: Tree, prefix: str = "") -> dict[str, Array]:
    """Nested dict -> {`a/b/c`: leaf}."""
    flat: dict[str, Array] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return flat


def _refuse_differences(expected: set[str], found: set[str]) -> None:
    for word, names in (("missing", expected - found), ("not expected", found - expected)):
        if names:
            first = min(names)
            raise UserError(f"{len(names)} tensors {word}, the first of them {first!r}; expected {len(expected)} names")


def _checked(name: str, tensor: Array, rule: Rule) -> Array:
    if tuple(tensor.shape) != rule.shape:
        raise UserError(f"tensor {name!r}: expected shape {rule.shape}, found {tuple(tensor.shape)}")
    return np.asarray(tensor)


def _insert(tree: Tree, path: str, leaf: Array) -> None:
    *parents, name = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = leaf
