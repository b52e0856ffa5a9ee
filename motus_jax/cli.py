"""What every command shares: one clear line on bad input, and the `--config` flag."""

import sys
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags

from motus_jax.errors import UserError


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Calls `main(argv)` and exits: 0 when it returns, 2 with one line on stderr for a `UserError`."""
    try:
        main(sys.argv if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def parse_flags(argv: Sequence[str], doc: str) -> list[str]:
    """Parses absl flags and returns what is left.

    Args:
      argv: the program's arguments, name first.
      doc: shown by `--help`; the calling module's docstring with an example.

    Raises:
      UserError: an unknown flag, an unknown config key or a value of the wrong type.
    """
    if any(argument in ("--help", "-h", "-help") for argument in argv[1:]):
        print(doc.strip())
        print("\nFlags:\n" + flags.FLAGS.main_module_help())
        sys.exit(0)
    try:
        return flags.FLAGS(list(argv))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, FileNotFoundError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{message} (see --help)") from error


def define_config() -> flags.FlagHolder:
    """Defines `--config=FILE.py` with `--config.key=value` overrides; unknown keys are refused."""
    return config_flags.DEFINE_config_file("config", None, "experiment file, e.g. experiments/demo.py", lock_config=True)
