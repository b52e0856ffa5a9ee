"""Compiled programs as text: which bytes they move between devices and to and from memory.

XLA's own cost analysis counts the body of a loop once, so that a model of scanned layers seems to cost one of them.
Here each computation counts as often as it runs.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
    "u64": 8, "f64": 8, "c64": 8, "c128": 16, "s4": 0.5, "u4": 0.5,
}  # fmt: skip
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(?:\{([^}]*)\}|%?([\w.-]+))")
MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(?\[([\d,]+)\](?:T\(([\d,]+)\))?\)?)? \{([^}]*)\}"
)
HOST = "5"
"""How programs name the host's memory: S(5)."""
FREE = frozenset((
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "iota", "opt-barrier", "domain", "async-start",
))  # fmt: skip
"""Instructions that move nothing themselves; what loops, calls and `async-start` run is counted where it stands."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `name = shape operation(operands), rest`."""

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def called(self) -> Iterator[tuple[str, str]]:
        """(how, name) of the computations that it runs."""
        for found in CALLED.finditer(self.rest):
            how = found[0].split("=")[0]
            for name in (found[1] or found[2]).split(","):
                yield how, name.strip().lstrip("%")


@dataclasses.dataclass(frozen=True)
class Collective:
    """What one collective instruction of a program does in a step.

    Attributes:
      operation: its kind.
      times: how often it runs.
      received: bytes that one device receives each time, if every piece takes the shortest way once (a ring).
      group: devices that take part together.
      crosses: whether a group has devices of more than one slice.
      source: the part of the model that it belongs to, as JAX names it.
    """

    operation: str
    times: int
    received: float
    group: int
    crosses: bool
    source: str

    @property
    def total(self) -> float:
        return self.times * self.received


class Program:
    """A compiled program (`compiled.as_text()`), read.

    Args:
      devices_per_slice: of the devices that it was compiled for; 0: all are in one slice.
    """

    def __init__(self, text: str, devices_per_slice: int = 0) -> None:
        self._per_slice = devices_per_slice
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        instructions: dict[str, Instruction] = {}
        for line in text.splitlines():
            if found := COMPUTATION.match(line):
                instructions = self.computations.setdefault(found[2], {})
                self.entry = found[2] if found[1] else self.entry
            elif found := INSTRUCTION.match(line):
                root, name, shape, operation, rest = found.groups()
                arguments, rest = _split(rest)
                instructions[name] = Instruction(name, shape, operation, arguments, rest, bool(root))
        self.fused = {
            name
            for computation in self.computations.values()
            for one in computation.values()
            for how, name in one.called
            if one.operation not in ("while", "conditional", "call", "async-start")
        }
        self.times = self._times()

    def collectives(self) -> list[Collective]:
        """All collectives, the largest first."""
        found = []
        for name, times in self.times.items():
            for one in self.computations[name].values():
                operation = one.operation.removesuffix("-start")
                if operation in COLLECTIVES:
                    scattered = name.startswith("all-reduce-scatter")  # only a slice of the sum is kept
                    found.append(self._collective(one, operation, times, scattered=scattered))
                elif operation == "recv" and (kind := re.search(r'_xla_megascale_transfer_type="(\w+)"', one.rest)):
                    found.append(_between_slices(one, kind[1], times))
        return sorted(found, key=lambda one: -one.total)

    def memory_traffic(self) -> float:
        """Bytes that a device reads from and writes to its memory in a step: operands and results of every instruction
        outside of fusions. Of an operand of which only slices are read, the slices."""
        return sum(
            times * self._traffic(self.computations[name], one)
            for name, times in self.times.items()
            if name not in self.fused
            for one in self.computations[name].values()
        )

    def host_traffic(self) -> float:
        """Bytes that a device copies from and to its host's memory in a step."""
        return sum(
            times * self._host_traffic(self.computations[name], one)
            for name, times in self.times.items()
            if name not in self.fused
            for one in self.computations[name].values()
        )

    def _times(self) -> dict[str, int]:
        """How often each computation runs in one call of the entry."""
        times: dict[str, int] = collections.Counter({self.entry: 1})
        order = self._order()
        for name in order:
            for one in self.computations[name].values():
                if one.operation.endswith(("-done", "-update")):
                    continue
                trips = self._trips(one) if one.operation == "while" else 1
                for how, called in one.called:
                    if called in self.computations:
                        times[called] += times[name] * (trips if how == "body" else 1)
        return {name: times[name] for name in order}

    def _order(self) -> list[str]:
        """Computations, callers before those that they call."""
        done: dict[str, None] = {}

        def visit(name: str) -> None:
            if name in done or name not in self.computations:
                return
            for one in self.computations[name].values():
                for _, called in one.called:
                    visit(called)
            done[name] = None

        visit(self.entry)
        return list(done)[::-1]

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs: what XLA says, or the constant that its counter is compared with."""
        if known := re.search(r'known_trip_count[^\d]*(\d+)', loop.rest):
            return int(known[1])
        condition = self.computations[dict(loop.called)["condition"]]
        bounds = [int(one.operands[0]) for one in condition.values()
                  if one.operation == "constant" and re.match(r"[su]\d+\[\]", one.shape)]  # fmt: skip
        return max(bounds, default=1)

    def _collective(self, one: Instruction, operation: str, times: int, *, scattered: bool) -> Collective:
        groups = self._groups(one.rest)
        size = len(groups[0]) if groups else 0
        arrays = _arrays(one.shape)
        if one.operation == "all-gather-start":
            arrays = arrays[len(arrays) // 2 :]  # operands, results
        elif one.operation == "collective-permute-start":
            arrays = arrays[1:2]  # operand, result, and what the runtime keeps
        moved = sum(count for count, _ in arrays)
        share = (size - 1) / size if size else 1.0
        if operation == "reduce-scatter":
            moved *= size
        elif operation == "all-reduce":
            operation, moved = ("reduce-scatter", moved) if scattered else (operation, 2 * moved)
        elif operation == "collective-permute":
            share = 1.0
        crosses = bool(self._per_slice) and any(len({d // self._per_slice for d in group}) > 1 for group in groups)
        source = re.search(r'op_name="([^"]*)"', one.rest)
        return Collective(operation, times, moved * share, size, crosses, source[1] if source else "")

    def _groups(self, rest: str) -> list[tuple[int, ...]]:
        """The groups of devices of a collective, in any of the ways that XLA writes them."""
        if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", rest):
            return [tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", found[1])]
        if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
            ids = _laid_out(found[3], found[4]).reshape(int(found[1]), int(found[2]))
            return [tuple(group) for group in ids.tolist()]
        found = MESH_GROUPS.search(rest)
        if not found:
            return []
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        chosen = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", found[4])
        if any(part for _, part, _ in chosen):  # a part of an axis: only the size is needed
            size = math.prod(int(part or sizes[name]) for name, _, part in chosen)
            return [tuple(range(size))]
        ids = _laid_out(found[2], found[3]) if found[2] else np.arange(math.prod(sizes.values()))
        ids, names = ids.reshape(*sizes.values()), [name for name, _, _ in chosen]
        last = [list(sizes).index(name) for name in names]
        first = [axis for axis in range(len(sizes)) if axis not in last]
        ids = ids.transpose(*first, *last).reshape(-1, math.prod(sizes[name] for name in names))
        return [tuple(group) for group in ids.tolist()]

    def _traffic(self, computation: dict[str, Instruction], one: Instruction) -> float:
        if one.operation in FREE or one.operation.endswith(("-done", "-update")):
            return 0.0
        inside = self.computations.get(dict(one.called).get("calls", "")) if one.operation == "fusion" else None
        written = _in_memory(one.shape)
        if inside is None:
            if one.operation.endswith("-start") and one.operation != "all-reduce-start":
                # Its result names the operands once more, before what it writes.
                written -= sum(_in_memory(computation[name].shape) for name in one.operands if name in computation)
            if one.operation in ("slice-start", "dynamic-slice-start"):  # reads what it takes, wherever that goes
                named = sum(len(_arrays(computation[name].shape)) for name in one.operands if name in computation)
                taken, space = _arrays(one.shape)[named]
                return taken if space else 2 * taken
            if one.operation in ("dynamic-slice", "gather", "slice"):
                return 2 * written
            if one.operation in ("dynamic-update-slice", "scatter"):
                return 2 * sum(_in_memory(computation[name].shape) for name in one.operands[1:2] if name in computation)
            return written + sum(_in_memory(computation[name].shape) for name in one.operands if name in computation)
        parameters = {int(own.operands[0]): own.name for own in inside.values() if own.operation == "parameter"}
        users = collections.defaultdict(list)
        for own in inside.values():
            for name in own.operands:
                users[name].append(own)
        root = next(own for own in inside.values() if own.root)
        if root.operation == "dynamic-update-slice" and root.operands[1] in inside:
            written = min(written, _in_memory(inside[root.operands[1]].shape))
        read = 0.0
        for number, name in enumerate(one.operands):
            whole = _in_memory(computation[name].shape) if name in computation else 0.0
            uses = users[parameters.get(number, "")]
            if uses and all(use.operation == "dynamic-slice" for use in uses):
                whole = min(whole, sum(_bytes(use.shape) for use in uses))
            elif uses and all(use is root and use.operation == "dynamic-update-slice" for use in uses):
                whole = 0.0
            read += whole
        return read + written

    def _host_traffic(self, computation: dict[str, Instruction], one: Instruction) -> float:
        if one.operation in FREE or one.operation.endswith(("-done", "-update")):
            return 0.0
        written = _in_host(one.shape)  # a start names the operand as well, which is at the host or the result is
        if written and one.operation != "dynamic-update-slice":
            return written
        operands = [computation[name].shape for name in one.operands if name in computation]
        if one.operation == "dynamic-update-slice" and written:
            return _bytes(operands[1])
        read = sum(map(_in_host, operands))
        return min(read, _bytes(one.shape)) if one.operation in ("dynamic-slice", "slice") else read


def _split(rest: str) -> tuple[tuple[str, ...], str]:
    """What stands behind an operation's opening bracket -> (operands, what follows the closing one)."""
    depth, place = 1, -1
    while depth:
        place += 1
        depth += (rest[place] in "({") - (rest[place] in ")}")
    inside, after = rest[:place], rest[place + 1 :]
    if re.fullmatch(r"-?\d+", inside):
        return (inside,), after  # a constant's value, a parameter's number
    return tuple(re.findall(r"%([\w.-]+)", inside)), after


def _arrays(shape: str) -> list[tuple[float, str]]:
    """(bytes, memory space) of every array of a shape."""
    found = []
    for kind, sizes, layout in ARRAY.findall(shape):
        if kind in BYTES:
            space = re.search(r"S\((\d)\)", layout)
            count = math.prod(int(size) for size in sizes.split(",") if size)
            found.append((count * BYTES[kind], space[1] if space else ""))
    return found


def _bytes(shape: str) -> float:
    return sum(count for count, _ in _arrays(shape))


def _in_memory(shape: str) -> float:
    """Bytes of what lies in the device's large memory: TPU programs name other places."""
    return sum(count for count, space in _arrays(shape) if not space)


def _in_host(shape: str) -> float:
    """Bytes of what lies in the host's memory."""
    return sum(count for count, space in _arrays(shape) if space == HOST)


def _laid_out(sizes: str, order: str) -> np.ndarray:
    dims = [int(size) for size in sizes.split(",")]
    ids = np.arange(math.prod(dims)).reshape(dims)
    return (ids.transpose([int(axis) for axis in order.split(",")]) if order else ids).reshape(-1)


def _between_slices(one: Instruction, kind: str, times: int) -> Collective:
    """A `recv` that TPU slices exchange through their hosts, with a `send`, in place of a collective among them."""
    operation = kind.lower().replace("_", "-")
    target = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', one.rest)
    ranges = [part.split(":") for part in target[1].split(",")] if target else [["0", "1"]]
    size = sum(int(bounds[-1]) - int(bounds[0]) + 1 for bounds in ranges)
    moved = _arrays(one.shape)[0][0] * (2 if operation == "all-reduce" else 1)
    return Collective(operation, times, moved * (size - 1) / size, size, True, "")


def by_kind(collectives: Sequence[Collective]) -> dict[str, dict[str, float]]:
    """Operation -> how many, bytes that a device receives within its slice, and from others."""
    found: dict[str, dict[str, float]] = {}
    for one in collectives:
        row = found.setdefault(one.operation, {"count": 0, "slice_bytes": 0.0, "network_bytes": 0.0})
        row["count"] += one.times
        row["network_bytes" if one.crosses else "slice_bytes"] += one.total
    return found
