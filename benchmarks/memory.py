"""Memory of full-size training steps on accelerators that are not there, from the compiler.

  pip install 'libtpu==0.0.42.*'                                             compilers for JAX 0.10.2: for TPUs,
  pip install --no-deps jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2    for GPUs; neither needs its chip
  python -m benchmarks.memory --out=benchmarks/results/memory_aot.json [--row=REGEX]

Each row of `ROWS` compiles the train step of `motus_jax.training.step` with shapes in place of arrays, as a run from
features has it: no encoder on the device. The numbers are what the compiled program asks for on each chip: arguments
(parameters, moments, batch), temporaries, results that take no argument's place, and the program itself.

A TPU's compiler refuses a program that does not fit. A GPU's does not: there a row fits if it leaves `RESERVED` of the
memory free, and JAX must be allowed to take that much (XLA_PYTHON_CLIENT_MEM_FRACTION=.95). Without the GPU nothing is
timed, so that products may get other algorithms, with workspaces of some megabytes, than on the real one.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import ml_collections
import numpy as np
from absl import flags
from jax.sharding import AxisType, Mesh

from experiments import lora, phase3
from motus_jax import cli
from motus_jax.errors import UserError
from motus_jax.training import absent, sharding

VERSIONS = ("jax", "jaxlib", "flax", "optax", "libtpu", "jax-cuda12-pjrt")
TOPOLOGIES = {"v5e": "v5e:2x4", "v6e": "v6e:2x4", "h100": "h100:8"}
"""Chip -> eight of them."""
PARTS = ("argument_bytes", "temporary_bytes", "new_output_bytes", "program_bytes")


@dataclasses.dataclass(frozen=True)
class Row:
    """One step: an experiment with changes, on so many chips of a kind."""

    experiment: Any
    changes: Mapping[str, Any]
    chip: str
    chips: int = 1

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The experiment's config with the changes."""
        config = self.experiment.get_config()
        with config.unlocked():
            config.update_from_flattened_dict(dict(self.changes))
        return config


def _rows(chip: str, batches: Sequence[int]) -> dict[str, Row]:
    return {f"lora16_batch{batch}_{chip}": Row(lora, {"batch_size": batch}, chip) for batch in batches}


def _remat(policy: str) -> dict[str, Row]:
    return {f"lora16_batch4_{policy}_h100": Row(lora, {"batch_size": 4, "model.overrides.remat": policy}, "h100")}


FLOAT32 = {"batch_size": 4, "optimizer.frozen_dtype": "float32"}
ACTION_ONLY = {"batch_size": 4, "lora": (), "optimizer.trained": ("motus/(layers/)?action/.*",)}
ROWS: dict[str, Row] = {
    **_rows("h100", (1, 2, 4, 16, 64)),
    **_remat("attention_ffn"), **_remat("products"), **_remat("none"),
    "lora16_float32_base_batch4_h100": Row(lora, FLOAT32, "h100"),
    "action_expert_batch4_h100": Row(lora, ACTION_ONLY, "h100"),
    "full_batch1_h100": Row(phase3, {"batch_size": 1}, "h100"),
    "full_batch8_8chips_h100": Row(phase3, {"batch_size": 8}, "h100", 8),
    "full_batch64_8chips_h100": Row(phase3, {"batch_size": 64}, "h100", 8),
    **_rows("v5e", (1,)),
    **_rows("v6e", (1, 4)),
}  # fmt: skip
"""Name -> step. `full` trains all experts in float32 with AdamW and an average, its state split over the chips."""


def main(argv: Sequence[str]) -> None:
    """Compiles the chosen rows and writes each as soon as it is known."""
    out_flag = flags.DEFINE_string("out", None, "JSON file to write or go on with")
    row_flag = flags.DEFINE_string("row", ".*", "which rows: a regex over their whole names")
    cli.parse_flags(argv, __doc__)
    out, wanted = out_flag.value, row_flag.value
    chosen = [name for name in ROWS if re.fullmatch(wanted, name)]
    if out is None or not chosen:
        raise UserError(f"expected --out=FILE and a --row among {', '.join(ROWS)}; found {out}, {wanted!r}")
    path = pathlib.Path(out)
    report = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    report["versions"] = versions()
    for name in chosen:
        report["rows"][name] = measure(ROWS[name])
        path.write_text(json.dumps(report | {"rows": {n: report["rows"][n] for n in ROWS if n in report["rows"]}},
                                   indent=1) + "\n")  # fmt: skip
        print(name, json.dumps(report["rows"][name]))


def versions() -> dict[str, str]:
    """What decides the numbers."""
    return {name: metadata.version(name) for name in VERSIONS}


def measure(row: Row) -> dict[str, Any]:
    """Compiles one step; bytes per chip by what they are for, or how much is missing."""
    devices = absent.devices(TOPOLOGIES[row.chip])[: row.chips]
    mesh = Mesh(np.array(devices).reshape(1, -1, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    found = absent.measure(row.config, devices, features=True, mesh=mesh)
    described = {
        "chip": found["device"],
        "chips": row.chips,
        **{name: found[name] for name in ("batch_size", "remat", "trained_parameters", "frozen_parameters", "fits")},
    }
    return described | {name: found[name] for name in (*PARTS, "used_bytes", "limit_bytes") if name in found}


if __name__ == "__main__":
    cli.run(main)
