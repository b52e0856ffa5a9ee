"""What the three phases need on TPU slices, by the compiler: the table of docs/tpu.md.

  pip install 'libtpu==0.0.42.*'             the compiler for JAX 0.10.2
  python -m benchmarks.tpu_table             compiles what is not in benchmarks/results/tpu_aot.json; writes the table
  python -m benchmarks.tpu_table --row='phase2.*'      only these; minutes each on two cores

Each row is `python -m motus_jax.compile` of an experiment at full size with the paper's batch of 256, of features.
Nothing runs: bytes are the compiler's, operations are counted, milliseconds are the least that the documented peaks
allow.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

from absl import flags

from experiments import phase1, phase2, phase3
from motus_jax import cli
from motus_jax.errors import UserError
from motus_jax.training import absent

OUT = pathlib.Path("benchmarks/results/tpu_aot.json")
DOCS = pathlib.Path("docs/tpu.md")
MARKS = "<!-- made by benchmarks/tpu_table.py -->\n", "<!-- end -->\n"
VERSIONS = ("jax", "jaxlib", "flax", "libtpu")
SLICES = {
    "v4-32": ("v4:2x2x4", 1),
    "v5litepod-64": ("v5e:8x8", 1),
    "v5p-16": ("v5p:2x2x2", 1),
    "v5p-32": ("v5p:2x2x4", 1),
    "v5p-128": ("v5p:4x4x4", 1),
    "v6e-16": ("v6e:4x4", 1),
    "v6e-64": ("v6e:8x8", 1),
    "2 x v5p-32": ("v5p:2x2x4", 2),
    "tpu7x 2x2x2": ("tpu7x:2x2x2", 1),
    "v5p-8": ("v5p:2x2x1", 1),
    "v5litepod-16": ("v5e:4x4", 1),
    "v5litepod-8": ("v5e:2x4", 1),
    "v5litepod-4": ("v5e:2x2", 1),
    "v6e-8": ("v6e:2x4", 1),
    "v6e-4": ("v6e:2x2", 1),
}
"""What Google Cloud calls a slice -> topology, how many of them."""
AWAY = ("(opt_state|ema)/.*",)
SMALLEST: dict[str, tuple[str, dict[str, Any]]] = {
    "v5p-8": ("", {}),
    "v5litepod-16": (", accumulate 4", {"optimizer.accumulate": 4}),
    "v5litepod-8": (", accumulate 8, offload", {"optimizer.accumulate": 8, "optimizer.offload": AWAY}),
    "v5litepod-4": (", accumulate 32, offload", {"optimizer.accumulate": 32, "optimizer.offload": AWAY}),
    "v6e-8": (", accumulate 2", {"optimizer.accumulate": 2}),
    "v6e-4": (", accumulate 4, offload", {"optimizer.accumulate": 4, "optimizer.offload": AWAY}),
}
"""Slices that hold phase 2, if at all, with little to spare -> what the row is called, its changes."""
PHASES = {"phase 1": phase1, "phase 2": phase2, "phase 3": phase3}


class Row(NamedTuple):
    """One compilation."""

    phase: str
    slice: str
    changes: Mapping[str, Any]


def _rows() -> dict[str, Row]:
    rows = {f"{phase}, {name}": Row(phase, name, {}) for phase in PHASES for name in SLICES if name not in SMALLEST}
    for row in rows.values():
        if SLICES[row.slice][1] > 1:
            rows[f"{row.phase}, {row.slice}"] = row._replace(changes={"mesh.replica": SLICES[row.slice][1]})
    small = {f"phase 2, {name}{words}": Row("phase 2", name, changes) for name, (words, changes) in SMALLEST.items()}
    return rows | small


ROWS = _rows()


def main(argv: Sequence[str]) -> None:
    """Compiles the chosen rows that are missing, keeps each as soon as it is known, writes the table."""
    make(argv, __doc__, ROWS, OUT, MARKS, table)


def make(
    argv: Sequence[str], text: str, rows: Mapping[str, Row], out: pathlib.Path, marks: tuple[str, str],
    as_table: Callable[[Mapping[str, Any]], str],
) -> None:  # fmt: skip
    """The command of one table, with its flags.

    Args:
      text: what it says of itself.
      rows: by name; those that are not in `out` are compiled.
      marks: lines of the page between which the table stands.
      as_table: Markdown of what is known, by name.
    """
    own = flags.FlagValues()
    chosen = flags.DEFINE_string("row", ".*", "which: a regex over their whole names", flag_values=own)
    anew = flags.DEFINE_bool("anew", False, "also those that are there", flag_values=own)
    trace = flags.DEFINE_bool("trace", False, "only what is known before compiling: state, operations", flag_values=own)
    cli.parse_flags(argv, text, own)
    wanted = [name for name in rows if re.fullmatch(chosen.value, name)]
    if not wanted:
        raise UserError(f"--row: expected a regex over {', '.join(rows)}; found {chosen.value!r}")
    report = json.loads(out.read_text()) if out.exists() else {"rows": {}}
    for name in wanted:
        known = report["rows"].get(name, {})
        if anew.value or ("operations" if trace.value else "fits") not in known:
            print(f"{name}: {'tracing' if trace.value else 'compiling'}", flush=True)
            report["rows"][name] = measure(rows[name], compiled=not trace.value)
            report["versions"] = {package: metadata.version(package) for package in VERSIONS}
            out.write_text(json.dumps(report, indent=1) + "\n")
    before, rest = DOCS.read_text().split(marks[0])
    after = rest.split(marks[1], 1)[1]
    DOCS.write_text(f"{before}{marks[0]}{as_table(report['rows'])}{marks[1]}{after}")


def measure(row: Row, *, compiled: bool = True) -> dict[str, Any]:
    """What the compiler says of one row, or what is known before it is asked."""
    config = PHASES[row.phase].get_config()
    config.update_from_flattened_dict(dict(row.changes))
    return (absent.measure if compiled else absent.traced)(config, absent.devices(*SLICES[row.slice]), features=True)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a line a row in the order of `ROWS`."""
    names = ("", "devices", "batch of each", "memory of each, GiB", "of it state", "received in a step, GiB",
             "at least, ms", "MFU at most", "compiled in")  # fmt: skip
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    lines += [_line(name, rows[name]) for name in ROWS if "fits" in rows.get(name, {})]
    return "\n".join(lines) + "\n"


def _line(name: str, row: Mapping[str, Any]) -> str:
    first = f"| {name} | {row['devices']} | {row['batch_of_one_device']:g} "
    if not row["fits"]:
        return f"{first}| **does not fit**: {row['advice']} | {_gib(row['state_bytes'])} | | | | |"
    moved = sum(kind["slice_bytes"] + kind["network_bytes"] for kind in row["collectives"].values())
    roof = row["roofline"]
    return (
        f"{first}| {_gib(row['used_bytes'])} | {_gib(row['state_bytes'])} | {_gib(moved)} "
        f"| {1000 * roof['overlapped']:.0f} to {1000 * roof['one_after_another']:.0f} "
        f"| {roof['mfu_one_after_another']:.0%} to {roof['mfu_at_most']:.0%} | {row['compile_seconds']:.0f} s |"
    )


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f}"


if __name__ == "__main__":
    cli.run(main)
