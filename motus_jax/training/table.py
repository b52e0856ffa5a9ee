"""The tables that a run prints at its start: its parameters, and what of its state is at the host."""

import math
from collections.abc import Sequence

from motus_jax.training import offload
from motus_jax.training.optimizer import Optimizer
from motus_jax.training.plan import Plan
from motus_jax.weights import tree


def placement_table(plan: Plan, rows: Sequence[str]) -> str:
    """The parameter table and, where there are any, a line for each of the rows of `config.optimizer.offload`."""
    lines = [parameter_table(plan.params, plan.optimizer)]
    if rows:
        lines += ["  in the host's memory between updates:", offload.table(plan.state, rows)]
    return "\n".join(lines)


def parameter_table(params: tree.Tree, optimizer: Optimizer) -> str:
    """One line per leaf: path, shape, sharding, learning-rate multiplier and weight decay (or `frozen`); then totals.

    Args:
      params: all parameters, as arrays or shapes with shardings.
    """
    flat = tree.flatten(params)
    rows = [("parameter", "shape", "type", "split over", "rate x", "decay")]
    for path, leaf in flat.items():
        trained = path in optimizer.trained
        rate = f"{optimizer.multipliers[path]:g}" if trained else "frozen"
        decay = f"{optimizer.decays[path]:g}" if trained else ""
        spec = leaf.sharding.spec
        split = " ".join(str(axis or "-") for axis in spec) if any(spec) else "replicated"
        rows.append((path, "x".join(map(str, leaf.shape)), str(leaf.dtype), split, rate, decay))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    total = sum(math.prod(leaf.shape) for leaf in flat.values())
    trained = sum(math.prod(leaf.shape) for path, leaf in flat.items() if path in optimizer.trained)
    return "\n".join([*lines, f"  {total:,} parameters, {trained:,} of them trained"])
