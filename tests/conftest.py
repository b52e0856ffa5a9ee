"""What every test shares: JAX on CPU, a compilation cache, and the golden folder."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Tests compile much and run it once: what XLA optimizes least is done a third sooner. Commands that tests start as
# processes of their own compile what they train as users do.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"

import pytest

from motus_jax import compiler

LEVEL = "xla_backend_optimization_level"
_options = compiler.options


def _least_optimized(platform: str | None = None) -> dict[str, int | str] | None:
    found = _options(platform)
    return found | {LEVEL: 0} if found and LEVEL in found else found


compiler.options = _least_optimized

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_dir() -> pathlib.Path:
    return GOLDEN


@pytest.fixture(scope="module")
def compiled_as_commands_do():
    """For modules that compare with a process of its own bit by bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "options", _options)
        yield
