"""Which public tensor is which: every name of a source finds its place, or the source is refused."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from motus_jax.errors import UserError
from motus_jax.weights import kinds
from motus_jax.weights.kinds import Part
from motus_jax.weights.sources import Source


@dataclasses.dataclass(frozen=True)
class Match:
    """A source whose names, shapes and types are those of a kind.

    Attributes:
      source: the checkpoint.
      layout: which of the kind's public layouts it has.
      names: the map's name -> the source's name that is read.
      aliases: name that is read -> further names in the source for the same tensor, to be checked equal.
      skipped: names left out because the user allowed it.
      counters: names left out because nothing is computed from them.
    """

    source: Source
    layout: str
    names: dict[str, str]
    aliases: dict[str, tuple[str, ...]]
    skipped: tuple[str, ...]
    counters: tuple[str, ...] = ()

    def used(self) -> set[str]:
        """Names in the source that an import reads or compares."""
        return set(self.source.tensors) - {*self.skipped, *self.counters}


def match(source: Source, kind: str, parts: Sequence[Part], allow: Sequence[str] = ()) -> Match:
    """Matches names, shapes and types; reads no tensor.

    Args:
      kind: a row of `kinds.KINDS`, for its layouts.
      parts: what the source must hold.
      allow: regexes over the names that may be left over.

    Raises:
      UserError: names missing or left over, another shape, a type that is not floating point, or an idle regex.
    """
    expected = {name: shape for part in parts for name, shape in part.public().items()}
    optional = {part.buffer.name for part in parts if part.buffer}
    tied = {name: first for part in parts for name, first in part.tied.items()}
    layout, found = _best_layout(source, kind, {*expected, *tied, *optional})
    needless = {name for part in parts for name in part.counters}
    counters = tuple(name for name, ours in found.items() if ours in needless)
    grouped: dict[str, list[str]] = {}
    for name in source.tensors:
        ours = tied.get(found[name], found[name])
        if ours not in needless:
            grouped.setdefault(ours, []).append(name)
    unknown = sorted(name for ours, group in grouped.items() if ours not in expected | dict.fromkeys(optional)
                     for name in group)  # fmt: skip
    skipped = _allowed(unknown, allow)
    _refuse(source, kind, expected, grouped, sorted(set(unknown) - set(skipped)))
    names: dict[str, str] = {}
    aliases: dict[str, tuple[str, ...]] = {}
    for ours, group in grouped.items():
        if group[0] in unknown:
            continue
        first, *others = sorted(group, key=lambda name: (name != ours, name))
        names[ours] = first
        if others:
            aliases[first] = tuple(others)
        for name in group:
            _check(source, name, expected.get(ours))
    return Match(source, layout, names, aliases, tuple(skipped), counters)


def _best_layout(source: Source, kind: str, known: set[str]) -> tuple[str, dict[str, str]]:
    """The layout of `kind` that knows most names, and the map's name of every name in it."""
    counts = {}
    for layout, spelling in kinds.KINDS[kind].spellings.items():
        found = {name: kinds.rename(name, spelling) for name in source.tensors}
        counts[layout] = sum(ours in known for ours in found.values()), found
    layout = max(counts, key=lambda layout: counts[layout][0])
    count, found = counts[layout]
    if count == 0:
        raise UserError(
            f"--source={source.path}: none of its {len(found)} names belongs to --kind={kind}, expected e.g."
            f" {min(known)!r}, found e.g. {min(found)!r}{_hint(source, kind)}"
        )
    return layout, found


def _allowed(unknown: Sequence[str], allow: Sequence[str]) -> list[str]:
    for pattern in allow:
        try:
            if not any(re.fullmatch(pattern, name) for name in unknown):
                raise UserError(f"--allow={pattern} matches no name that is left over; remove it")
        except re.error as error:
            raise UserError(f"--allow={pattern} is not a regular expression ({error})") from error
    return [name for name in unknown if any(re.fullmatch(pattern, name) for pattern in allow)]


def _refuse(
    source: Source, kind: str, expected: Mapping[str, tuple[int, ...]], grouped: Mapping[str, list[str]],
    unknown: Sequence[str],
) -> None:  # fmt: skip
    missing = [name for name in expected if name not in grouped]
    if missing:
        raise UserError(
            f"--source={source.path} is no --kind={kind}: expected {len(expected)} tensors, found"
            f" {len(expected) - len(missing)} of them; the first missing is {missing[0]!r} of shape"
            f" {expected[missing[0]]}{_hint(source, kind)}"
        )
    if unknown:
        name = unknown[0]
        raise UserError(
            f"--source={source.path}: {len(unknown)} tensors are left over, expected none of them in --kind={kind}; the"
            f" first is {name!r} of shape {source.tensors[name].shape}; name what may be skipped with"
            f" --allow=REGEX{_hint(source, kind)}"
        )


def _check(source: Source, name: str, shape: tuple[int, ...] | None) -> None:
    stored = source.tensors[name]
    if shape is not None and stored.shape != shape:
        raise UserError(f"tensor {name!r} in {stored.path}: expected shape {shape}, found {stored.shape}")
    if not (np.issubdtype(stored.dtype, np.floating) or stored.dtype.name == "bfloat16"):
        raise UserError(f"tensor {name!r} in {stored.path}: expected a floating-point type, found {stored.dtype.name}")


def _hint(source: Source, asked: str) -> str:
    """What the source seems to be instead."""
    adapter = next((name for name in source.tensors if "lora_" in name), None)
    if adapter:
        return f"; {adapter!r} is a LoRA adapter: import the base weights, merged if need be"
    found = _forms(source.tensors)
    fits = []
    for kind, row in kinds.KINDS.items():
        expected = row.parts(kinds.FULL, {})[0].public()
        for spelling in row.spellings.values():
            if kind != asked and _forms(expected) <= {kinds.rename(name, spelling) for name in found}:
                fits.append((len(expected), kind))
    return f"; it has the names of --kind={max(fits)[1]}" if fits else ""


def _forms(names: Iterable[str]) -> set[str]:
    """Names of any depth: the number of a layer becomes 0."""
    return {re.sub(r"\.\d+\.", ".0.", name) for name in names}
