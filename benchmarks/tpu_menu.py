"""What remat, optimizer, accumulation and offload cost, by the compiler: the menu of docs/tpu.md.

  pip install 'libtpu==0.0.42.*'             the compiler for JAX 0.10.2
  python -m benchmarks.tpu_menu              compiles what benchmarks/results/tpu_menu_aot.json lacks; writes the table
  python -m benchmarks.tpu_menu --row=muon   only this; minutes each on two cores
  python -m benchmarks.tpu_menu --trace      only what is known without compiling, state and operations; seconds each

Each row is `experiments/phase2.py` at full size with the paper's batch of 256, of features, on a v5p-32, with one thing
changed; the step as it is, is the row of `benchmarks/tpu_table.py`. Nothing runs.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import tpu_table
from motus_jax import cli

OUT = pathlib.Path("benchmarks/results/tpu_menu_aot.json")
MARKS = "<!-- made by benchmarks/tpu_menu.py -->\n", "<!-- end of the menu -->\n"
BASE = "phase 2, v5p-32"
MOMENTS, ALL = ("opt_state/.*/(mu|nu)/.*",), ("(opt_state|ema)/.*",)
CHANGES: dict[str, dict[str, Any]] = {
    "remat attention": {"model.overrides.remat": "attention"},
    "remat attention_ffn": {"model.overrides.remat": "attention_ffn"},
    "remat products": {"model.overrides.remat": "products"},
    "attention splash": {"model.overrides.attention": "splash"},
    "products in float32": {"model.overrides.dtype": "float32"},
    "adafactor": {"optimizer.name": "adafactor"},
    "muon": {"optimizer.name": "muon"},
    "first moment in bfloat16": {"optimizer.mu_dtype": "bfloat16"},
    "accumulate 4": {"optimizer.accumulate": 4},
    "moments offloaded": {"optimizer.offload": MOMENTS},
    "moments and average offloaded": {"optimizer.offload": ALL},
    "accumulate 4, moments and average offloaded": {"optimizer.accumulate": 4, "optimizer.offload": ALL},
}
ROWS = {name: tpu_table.ROWS[BASE]._replace(changes=changes) for name, changes in CHANGES.items()}


def main(argv: Sequence[str]) -> None:
    """Compiles the chosen rows that are missing, keeps each as soon as it is known, writes the table."""
    tpu_table.make(argv, __doc__, ROWS, OUT, MARKS, table)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, the step as it is and a line a row in the order of `ROWS`."""
    names = ("", "memory of each, GiB", "of it state", "temporaries", "at its host", "operations, 10^12",
             "from and to memory, GiB", "received", "from and to the host", "at least, ms")  # fmt: skip
    base = json.loads(tpu_table.OUT.read_text())["rows"][BASE]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|", _line("as it is: remat full, adamw", base)]
    return "\n".join(lines + [_line(name, rows[name]) for name in ROWS if name in rows]) + "\n"


def _line(name: str, row: Mapping[str, Any]) -> str:
    operations = f"{row['operations'] / 1e12:.0f}"
    if not row.get("fits"):
        whole = f"**does not fit**: {row['advice']}" if "fits" in row else "not compiled"
        cells = [whole, _gib(row["state_bytes"]), "", _gib(row["host_state_bytes"]), operations, "", "", "", ""]
        return f"| {name} | {' | '.join(cells)} |"
    moved = sum(kind["slice_bytes"] + kind["network_bytes"] for kind in row["collectives"].values())
    sizes = [row["used_bytes"], row["state_bytes"], row["temporary_bytes"], row["host_bytes"]]
    traffic = [row["memory_traffic_bytes"], moved, row.get("host_traffic_bytes", 0)]
    roof = row["roofline"]
    least = f"{1000 * roof['overlapped']:.0f} to {1000 * roof['one_after_another']:.0f}"
    return f"| {name} | {' | '.join([*map(_gib, sizes), operations, *map(_gib, traffic), least])} |"


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f}"


if __name__ == "__main__":
    cli.run(main)
