"""Compiles the training step of an experiment for accelerators that are not there: does it fit, and what does it cost?

  pip install 'libtpu==0.0.42.*'          the compiler for JAX 0.10.2; other versions need theirs
  python -m motus_jax.compile --config=experiments/phase2.py --topology=v5p:2x2x4
  python -m motus_jax.compile --config=experiments/phase2.py --topology=v5e:8x8 --num_slices=2 --config.mesh.replica=2

Topologies: v4, v5e, v5p, v6e, tpu7x with the shape of a slice; h100:8 with JAX's CUDA plugin. The step is the real one,
with shapes in place of arrays. By default batches hold what the frozen encoders made, as after `python -m
motus_jax.data encode`; with --pixels the encoders run in the step. Exit codes: 0 it fits, 1 it does not, 2 bad input.
"""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from motus_jax import cli
from motus_jax.errors import UserError
from motus_jax.training import absent


def main(argv: Sequence[str]) -> None:
    """Compiles, prints, exits.

    Raises:
      UserError: a flag that is missing or wrong, or a config that does not fit the devices.
    """
    config_flag = cli.define_config()
    topology = flags.DEFINE_string("topology", None, "devices: v5p:4x4x4, v6e:4x4, h100:8")
    slices = flags.DEFINE_integer("num_slices", 1, "of a TPU, joined by the data-centre network", lower_bound=1)
    pixels = flags.DEFINE_bool("pixels", False, "batches hold pixels and text, and the encoders run in the step")
    out = flags.DEFINE_string("out", None, "JSON file of the result")
    text = flags.DEFINE_string("program", None, "file for the compiled program's text")
    cli.parse_flags(argv, __doc__)
    for name, value in (("config", config_flag.value), ("topology", topology.value)):
        if value is None:
            raise UserError(f"--{name} is missing: expected e.g. --config=experiments/phase2.py --topology=v5p:2x2x4")
    chips = absent.devices(topology.value, slices.value)
    print(f"compiling for {len(chips)} x {chips[0].device_kind}: minutes at full size", file=sys.stderr, flush=True)
    found = absent.measure(config_flag.value, chips, features=not pixels.value, text=text.value)
    print(describe(found))
    if out.value:
        pathlib.Path(out.value).write_text(json.dumps(found, indent=1) + "\n")
    if not found["fits"]:
        sys.exit(1)


def describe(found: Mapping[str, Any]) -> str:
    """What `absent.measure` found, to be read."""
    lines = [
        f"{found['devices']} x {found['device']}, {found['slices']} slice(s), mesh {found['mesh']}",
        f"batch {found['batch_size']}, {found['batch_of_one_device']:g} on each device, remat {found['remat']}, "
        f"{found['optimizer']}, "
        f"{found['trained_parameters'] / 1e9:.2f} billion trained parameters",
        f"compiled in {found['compile_seconds']:.0f} s",
    ]  # fmt: skip
    if not found["fits"]:
        return "\n".join([*lines, f"does not fit: {found['advice']}"])
    lines += ["", "memory of one device, GiB"]
    for name in ("argument", "temporary", "new_output", "program"):
        lines.append(f"  {name.replace('_', ' '):12} {found[f'{name}_bytes'] / 2**30:8.2f}")
    lines.append(f"  in sum       {found['used_bytes'] / 2**30:8.2f}     more than at any one moment")
    lines.append(f"  at the peak  {found['peak_bytes'] / 2**30:8.2f}")
    if found["host_bytes"]:
        lines.append(f"  at the host  {found['host_bytes'] / 2**30:8.2f}     copied in a step, both ways: "
                     f"{found['host_traffic_bytes'] / 2**30:.2f}")  # fmt: skip
    lines += ["", "operations of one device and step, 10^12",
              f"  of the model  {found['model_operations'] / 1e12:8.2f}",
              f"  computed      {found['operations'] / 1e12:8.2f}     with what is computed twice",
              "", "received by one device in a step, GiB"]  # fmt: skip
    for name, row in sorted(found["collectives"].items()):
        within, across = row["slice_bytes"] / 2**30, row["network_bytes"] / 2**30
        lines.append(f"  {name:20} {within:8.2f} within the slice  {across:8.2f} from others  ({row['count']} times)")
    if "roofline" in found:
        roof = found["roofline"]
        lines += ["", "least milliseconds of a step, at documented peaks"]
        names = ("products", "memory", "links", "network", "host", "overlapped", "one_after_another")
        lines += [f"  {name.replace('_', ' '):20} {1000 * roof[name]:8.1f}" for name in names]
        low, high = roof["mfu_one_after_another"], roof["mfu_at_most"]
        lines.append(f"  MFU between {low:.0%} (nothing overlaps) and {high:.0%} (everything does)")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
