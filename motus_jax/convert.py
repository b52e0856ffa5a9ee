"""Public weights <-> our checkpoints, and proof that both give the same numbers.

  python -m motus_jax.convert import --source=PATH --kind=motus_stage3 --workdir=DIR   public weights -> DIR/imported
  python -m motus_jax.convert export --workdir=DIR --out=DIR                           our weights -> safetensors
  python -m motus_jax.convert verify --golden=DIR --config=FILE     compare with golden files, tensor by tensor
  python -m motus_jax.convert shapes --variant=5b                   public names and shapes of a kind

An export of a run with LoRA has the adapters merged into their kernels, in float32 unless --dtype says otherwise.

PATH is a .safetensors, .pt, .pth or .bin file, an index, or a folder with one checkpoint. Arrays are split over all
devices; JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 imagines eight.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from motus_jax import cli
from motus_jax.data import run_path
from motus_jax.data.mixture import primary_name
from motus_jax.errors import UserError
from motus_jax.models.config import VARIANTS
from motus_jax.models.system import System
from motus_jax.training import checkpoint, sharding
from motus_jax.weights import exporter, golden, importer, kinds, lora, tree
from motus_jax.weights.matching import match
from motus_jax.weights.sources import open_source

DEFAULT_CHUNK = 16
"""Actions of the public RoboTwin release."""


def import_(arguments: argparse.Namespace) -> None:
    """Imports and prints what went where."""
    parts = kinds.parts_of(arguments.kind, arguments.variant, arguments.overrides)
    matched = match(open_source(arguments.source), arguments.kind, parts, arguments.allow)
    description = {"kind": arguments.kind, "variant": arguments.variant, "overrides": arguments.overrides}
    record = importer.import_weights(matched, parts, arguments.workdir, _place, arguments.dtype, description)
    size = f"{len(record['keys'])} keys, {record['bytes'] / 1e9:.2f} GB"
    print(f"{arguments.kind} in the layout {matched.layout!r}: {size} in {record['seconds']:.1f} s")
    for line in _table(record):
        print(line)
    print(f"every key of the source: {importer.imported_directory(arguments.workdir) / importer.REPORT}")


def _place(abstract: tree.Tree) -> tree.Tree:
    mesh = sharding.make_mesh(ml_collections.ConfigDict({"replica": 1, "fsdp": -1, "tensor": 1}))
    return sharding.tree_shardings(abstract, mesh, sharding.FROZEN_RULES)


def _table(record: dict[str, Any]) -> list[str]:
    """Per group of leaves: tensors, parameters, type in the source and ours; then the other keys."""
    rows: dict[tuple[str, ...], list[int]] = {}
    kept = {f"{subtree}/{path}": leaf["dtype"] for subtree, entry in record["subtrees"].items()
            for path, leaf in entry["leaves"].items()}  # fmt: skip
    for key in record["keys"].values():
        path = key["becomes"].partition("[")[0]
        group = "/".join(path.split("/")[: 3 if "/layers/" in path else 2]) if path in kept else path.partition(" ")[0]
        row = rows.setdefault((group, key["dtype"], kept.get(path, "")), [0, 0])
        row[0] += 1
        row[1] += int(np.prod(key["shape"], dtype=np.int64)) if path in kept else 0
    return [
        f"  {group:32} {tensors:5} tensors {parameters:16,} parameters  {stored}{' -> ' * bool(ours)}{ours}"
        for (group, stored, ours), (tensors, parameters) in rows.items()
    ]


def export(arguments: argparse.Namespace) -> None:
    """Writes imported or trained weights under public names."""
    trained = checkpoint.available_steps(arguments.workdir)
    make = _trained if trained and arguments.kind is None else _imported
    trees, parts, contract, chunk = make(arguments)
    limit = int(arguments.shard_gb * 1e9)
    where = exporter.export_weights(trees, parts, arguments.out, contract, chunk, limit, arguments.dtype)
    print(f"{len(where)} tensors in {len(set(where.values()))} files in {arguments.out}")


def _trained(arguments: argparse.Namespace) -> tuple[dict, tuple[kinds.Part, ...], dict, int]:
    """The three experts of a run's newest checkpoint, averaged where it averages, LoRA's adapters merged."""
    workdir, root = arguments.workdir, checkpoint.directory_of(arguments.workdir)
    steps = checkpoint.available_steps(workdir)
    meta = checkpoint.newest_readable(root, steps, lambda step: checkpoint.read_meta(root, step))
    part = kinds.motus_part(System(checkpoint.config_from_json(meta["config"])).motus_config)
    stored = {path: jax.numpy.dtype(dtype) for path, (_, dtype) in meta["parameters"].items()}
    # A merged kernel in what holds all three: rounding to the base's bfloat16 would lose what a short training changed.
    stored |= {path: jax.numpy.result_type(*(stored[leaf] for leaf in (path, *adapters)))
               for path, adapters in lora.adapted(stored).items()}  # fmt: skip
    dtypes = {leaf.path: stored[f"motus/{leaf.path}"] for leaf in part.leaves}
    targets = _targets(part, dtypes)
    loaded = checkpoint.load_leaves(workdir, tree.flatten({"motus": targets}))
    contract = meta["contracts"][primary_name(checkpoint.config_from_json(meta["config"]).data)]
    return tree.unflatten(loaded), (part,), contract, contract["chunk"]


def _targets(part: kinds.Part, dtypes: dict[str, Any]) -> tree.Tree:
    abstract = part.abstract(dtypes)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, _place(abstract)
    )


def _imported(arguments: argparse.Namespace) -> tuple[dict, tuple[kinds.Part, ...], dict, int]:
    records = {record["kind"]: record for record in importer.read_report(arguments.workdir)}
    kind = arguments.kind or next(iter(records))
    if kind not in records or (arguments.kind is None and len(records) > 1):
        raise UserError(f"--kind={arguments.kind}: {arguments.workdir} holds {', '.join(records)}; name one of them")
    record = records[kind]
    parts = kinds.parts_of(kind, record["variant"], record["overrides"])
    targets = {}
    for part in parts:
        leaves = record["subtrees"][part.subtree]["leaves"]
        targets[part.subtree] = _targets(
            part, {path: jax.numpy.dtype(leaf["dtype"]) for path, leaf in leaves.items()}
        )
    chunks = [entry["chunk"] for entry in record["subtrees"].values() if "chunk" in entry]
    chunk = chunks[0] if chunks else DEFAULT_CHUNK
    contract = {name: record[name] for name in ("kind", "variant", "overrides", "source", "layout")} | {"chunk": chunk}
    return importer.load_imported(arguments.workdir, targets), parts, contract, chunk


def verify(arguments: argparse.Namespace) -> None:
    """Prints the largest deviation per golden file."""
    failed = 0
    for file, deviations in golden.verify(arguments.golden, arguments.config).items():
        worst = max(deviations, key=lambda d: d.value / d.limit)
        verdict = "ok" if worst.value <= worst.limit else "FAILED"
        failed += worst.value > worst.limit
        print(f"{verdict:6} {file:32} {len(deviations):4} tensors, largest deviation {worst.value:.2e} "
              f"of {worst.limit:.0e} allowed, in {worst.name}")
    if failed:
        raise UserError(f"{failed} golden files deviate by more than allowed")


def shapes(arguments: argparse.Namespace) -> None:
    """Prints every tensor of a kind as an export writes it: `name<TAB>AxBxC`; parameter counts go to stderr."""
    for part in kinds.parts_of(arguments.kind, arguments.variant):
        for name, shape in part.exported(arguments.chunk).items():
            print(name, "x".join(map(str, shape)), sep="\t")
        counts: dict[str, int] = {}
        for name, shape in part.public().items():
            expert = name.split(".")[0] if part.subtree == "motus" else part.subtree
            counts[expert] = counts.get(expert, 0) + int(np.prod(shape, dtype=np.int64))
        for expert, count in counts.items():
            print(f"{expert}: {count:,} parameters", file=sys.stderr)


def json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="command")
    rows = "; ".join(f"{name}: {kind.summary}" for name, kind in kinds.KINDS.items())

    command = commands.add_parser("import", help="public weights -> WORKDIR/imported")
    command.add_argument("--source", type=pathlib.Path, required=True, help="file, index or folder")
    command.add_argument("--kind", choices=list(kinds.KINDS), required=True, help=rows)
    command.add_argument("--workdir", type=run_path.local, required=True, help="gets imported/SUBTREE and a report")
    command.add_argument("--variant", choices=list(VARIANTS), default=kinds.FULL, help="size that is expected")
    command.add_argument("--overrides", type=json_object, default={}, metavar="JSON",
                         help='fields of the variant, e.g. {"action": {"action_dim": 7, "state_dim": 7}}')
    command.add_argument("--dtype", choices=importer.DTYPES, help="type to keep; default: the kind's own")
    command.add_argument("--allow", action="append", default=[], metavar="REGEX", help="names that may be left over")
    command.set_defaults(run=import_)

    command = commands.add_parser("export", help="imported or trained weights -> safetensors under public names")
    command.add_argument("--workdir", type=run_path.of, required=True, help="of an import or a training run")
    command.add_argument("--out", type=run_path.local, required=True, help="a new folder")
    command.add_argument("--kind", choices=list(kinds.KINDS), help="which import; left out, the run's checkpoint")
    command.add_argument("--dtype", choices=exporter.DTYPES, default="stored", help="type to write")
    command.add_argument("--shard_gb", type=float, default=5, help="largest file in GB (10^9 bytes)")
    command.set_defaults(run=export)

    command = commands.add_parser("verify", help="compare with golden files")
    command.add_argument("--golden", type=pathlib.Path, required=True, help="folder of golden safetensors")
    command.add_argument("--config", type=pathlib.Path, required=True, help="JSON sidecar with the sizes")
    command.set_defaults(run=verify)

    command = commands.add_parser("shapes", help="public names and shapes of a kind")
    command.add_argument("--variant", choices=list(VARIANTS), default=kinds.FULL)
    command.add_argument("--kind", choices=list(kinds.KINDS), default="motus_stage3", help=rows)
    command.add_argument("--chunk", type=int, default=DEFAULT_CHUNK, help="actions, for the stored position table")
    command.set_defaults(run=shapes)
    return parser


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv[1:])
    arguments.run(arguments)


if __name__ == "__main__":
    cli.run(main, sys.argv)
