"""How large a batch a chip holds, by the compiler: the second table of docs/tpu.md.

  pip install 'libtpu==0.0.42.*'             the compiler for JAX 0.10.2
  python -m benchmarks.tpu_batch             goes on from benchmarks/results/tpu_batch_aot.json; writes the table
  python -m benchmarks.tpu_batch --slice=v5litepod-64      only this; minutes a batch on two cores

`experiments/phase2.py` at full size, of features, with the batch as the only thing that changes. Whether one fits is
the compiler's verdict. What it needs at its peak grows nearly in proportion to the batch: the next one to compile is
where the line through what is known meets the chip's memory, until one that fits and one that does not are `GRAIN`
examples a chip apart. Nothing runs.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from absl import flags

from benchmarks import tpu_table
from motus_jax import cli
from motus_jax.errors import UserError

OUT = pathlib.Path("benchmarks/results/tpu_batch_aot.json")
MARKS = "<!-- made by benchmarks/tpu_batch.py -->\n", "<!-- end of the batches -->\n"
PHASE = "phase 2"
GRAIN = {"v4-32": 4, "v5litepod-64": 2, "v5p-32": 16, "v6e-16": 4}
"""Slice -> examples a chip to which its largest batch is found."""
MEMORY = {"v4-32": 30.75, "v5litepod-64": 15.75, "v5p-32": 95.74, "v6e-16": 31.25}
"""What a chip's programs may use, GiB, as the compiler says when it refuses one: the first guess needs it."""
KEPT = ("device", "devices", "batch_size", "batch_of_one_device", "accumulate", "remat", "optimizer", "features",
        "trained_parameters", "state_bytes", "used_bytes", "peak_bytes", "fits", "compile_seconds")  # fmt: skip
GIB = 2**30


def main(argv: Sequence[str]) -> None:
    """Compiles until every chosen slice's largest batch is known, keeps each as soon as it is, writes the table."""
    own = flags.FlagValues()
    chosen = flags.DEFINE_list("slice", list(GRAIN), "which", flag_values=own)
    cli.parse_flags(argv, __doc__, own)
    for name in chosen.value:
        if name not in GRAIN:
            raise UserError(f"--slice: expected some of {', '.join(GRAIN)}; found {name!r}")
    report = json.loads(OUT.read_text()) if OUT.exists() else {"rows": {}}
    for name in chosen.value:
        while (batch := next_batch(known(name, report["rows"]), GRAIN[name], round(MEMORY[name] * GIB))) is not None:
            print(f"{name}: compiling {batch} examples a chip", flush=True)
            row = compiled(name, batch)
            print(f"{name}: {batch} examples a chip {words(row)}", flush=True)
            report["rows"][f"{name}, {batch}"] = row
            report["versions"] = {package: metadata.version(package) for package in tpu_table.VERSIONS}
            OUT.write_text(json.dumps(report, indent=1) + "\n")
    before, rest = tpu_table.DOCS.read_text().split(MARKS[0])
    after = rest.split(MARKS[1], 1)[1]
    tpu_table.DOCS.write_text(f"{before}{MARKS[0]}{table(report['rows'])}{MARKS[1]}{after}")


def known(name: str, rows: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What was compiled for a slice: the paper's batch (`benchmarks/tpu_table.py`) and those of this search."""
    base = json.loads(tpu_table.OUT.read_text())["rows"][f"{PHASE}, {name}"]
    return [base, *(row for key, row in rows.items() if key.rpartition(", ")[0] == name)]


def next_batch(rows: Sequence[Mapping[str, Any]], grain: int, limit: int) -> int | None:
    """Examples a chip to compile next; None where the largest that fits is known.

    Args:
      rows: what is known, at least one that fits.
      grain: how near the largest that fits and the smallest that does not must be.
      limit: bytes that a chip's programs may use.
    """
    use = {round(row["batch_of_one_device"]): _need(row) for row in rows}
    peaks = {round(row["batch_of_one_device"]) for row in rows if "peak_bytes" in row or not row["fits"]}
    fits = {round(row["batch_of_one_device"]): row["fits"] for row in rows}
    low = max(batch for batch, fit in fits.items() if fit)
    high = min((batch for batch, fit in fits.items() if not fit and batch > low), default=math.inf)
    if high - low <= grain:
        return None
    others = [batch for batch in use if batch != low and (low in peaks) == (batch in peaks)]
    near = min(others, key=lambda batch: abs(batch - low)) if others else 0
    origin = use.get(near, rows[0]["state_bytes"])
    # Near the limit the compiler recomputes more, and a larger batch may need less than a smaller one.
    mean = (use[low] - rows[0]["state_bytes"]) / low
    slope = max((use[low] - origin) / (low - near), mean / 2)
    meets = low + (limit - use[low]) / slope
    # Whole grains from what fits, at least one; below what does not.
    steps = max(1, math.floor((meets - low) / grain))
    return min(low + steps * grain, high - 1 if high - low <= 2 * grain else high - grain)


def compiled(name: str, batch: int) -> dict[str, Any]:
    """What the compiler says of so many examples a chip."""
    row = tpu_table.ROWS[f"{PHASE}, {name}"]
    chips = known(name, {})[0]["devices"]
    found = tpu_table.measure(row._replace(changes={**row.changes, "batch_size": batch * chips}))
    return {key: found[key] for key in (*KEPT, "limit_bytes", "roofline") if key in found}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a line a slice whose search has begun."""
    names = ("", "the most that fit a chip", "a batch of", "memory at the peak, GiB", "in sum", "MFU at most",
             "does not fit")  # fmt: skip
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for name in GRAIN:
        found = known(name, rows)
        if len(found) == 1:
            continue
        best = max((row for row in found if row["fits"]), key=lambda row: row["batch_of_one_device"])
        over = [row for row in found if not row["fits"]]
        least = min(over, key=lambda row: row["batch_of_one_device"]) if over else None
        beyond = f"{least['batch_of_one_device']:g}, {words(least)}" if least else "not tried"
        roof = best["roofline"]
        lines.append(
            f"| {name} | {best['batch_of_one_device']:g} | {best['batch_size']} "
            f"| {_need(best) / GIB:.1f} | {best['used_bytes'] / GIB:.1f} "
            f"| {roof['mfu_one_after_another']:.0%} to {roof['mfu_at_most']:.0%} "
            f"| {beyond} |"
        )
    return "\n".join(lines) + "\n"


def words(row: Mapping[str, Any]) -> str:
    """How a compilation ended."""
    need = f"{_need(row) / GIB:.1f} GiB"
    return f"fits, {need}" if row["fits"] else f"needs {need} of {row['limit_bytes'] / GIB:.1f}"


def _need(row: Mapping[str, Any]) -> int:
    """Bytes at the peak, of a row that was refused as the compiler says; the sum, where that is all that is known."""
    return row.get("peak_bytes", row["used_bytes"])


if __name__ == "__main__":
    cli.run(main)
