"""What every test shares: JAX on CPU, a compilation cache, and the golden folder."""

import os
import pathlib
from importlib import metadata

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Tests compile much and run it once: what XLA optimizes least is done in less than half the time. XLA ends the process
# over a flag that it does not know, and the second is gone from jaxlib 0.12 on.
os.environ["XLA_FLAGS"] = " ".join((
    "--xla_backend_optimization_level=0",
    "" if metadata.version("jaxlib") >= "0.12" else "--xla_cpu_use_fusion_emitters=false",
    os.environ.get("XLA_FLAGS", ""),
))  # fmt: skip

import pytest

GOLDEN = pathlib.Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that take long come first: begun last, one would keep a process busy while the others have nothing."""
    long = {item.path for item in items for name in ("thorough", "compiler") if item.get_closest_marker(name)}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def golden_dir() -> pathlib.Path:
    return GOLDEN
