"""What a result was measured on."""

import os
import pathlib
import platform
from typing import Any


def describe(cores: int) -> dict[str, Any]:
    """Processor, cores used and Python's version."""
    return {"cpu": cpu_model(), "cores": cores, "python": platform.python_version()}


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_seconds() -> float:
    """Processor seconds spent by all processes since boot, waiting and idling left out (Linux)."""
    user, nice, system, _, _, irq, soft_irq = map(int, pathlib.Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")


def cpu_model() -> str:
    """The processor's name (Linux), or its architecture."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
