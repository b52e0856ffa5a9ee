"""Public weights <-> our checkpoints, and proof that both give the same numbers.

  python -m motus_jax.convert verify --golden=DIR --config=FILE    compare with golden files, tensor by tensor
  python -m motus_jax.convert shapes --variant=5b                  public names, shapes and parameter counts
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from motus_jax import cli
from motus_jax.errors import UserError
from motus_jax.models.config import VARIANTS, get_variant
from motus_jax.weights import golden
from motus_jax.weights import motus as names


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
    """Prints every tensor of a variant under its public name, and the parameter count of each expert."""
    config = get_variant(arguments.variant)
    counts: dict[str, int] = {}
    for rule in names.rules(config):
        for name in rule.names(config.depth):
            print(name, "x".join(map(str, rule.shape)), sep="\t")
            expert = name.split(".")[0]
            counts[expert] = counts.get(expert, 0) + int(np.prod(rule.shape))
    for expert, count in counts.items():
        print(f"# {expert}: {count:,} parameters")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("verify", help="compare with golden files")
    command.add_argument("--golden", type=pathlib.Path, required=True, help="folder of golden safetensors")
    command.add_argument("--config", type=pathlib.Path, required=True, help="JSON sidecar with the sizes")
    command.set_defaults(run=verify)
    command = commands.add_parser("shapes", help="names and shapes of a variant")
    command.add_argument("--variant", choices=list(VARIANTS), default="5b")
    command.set_defaults(run=shapes)
    arguments = parser.parse_args(argv[1:])
    arguments.run(arguments)


if __name__ == "__main__":
    cli.run(main, sys.argv)
