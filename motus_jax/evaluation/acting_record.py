"""What closed-loop evaluation leaves in `closed_loop/`: the manifest, every episode's result, the summary.

`results.jsonl` grows by a line an episode, so that an evaluation that was killed goes on where it stopped. A line says
by its key what it depends on: those of other weights or options stay and do not count.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

from motus_jax.robots.closed_loop import Result

FORMAT = 1
FOLDER, MANIFEST, RESULTS, LINES = "closed_loop", "manifest.json", "results.json", "results.jsonl"
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "mujoco", "gym-aloha", "metaworld", "websockets")
GIT_WITHIN = 10.0
"""Seconds."""


def key_of(facts: Mapping[str, Any]) -> str:
    """Eight digits that stand for everything that a policy's episodes depend on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def append(folder: pathlib.Path, result: Result) -> None:
    """Adds an episode's line, whole even after one that a crash cut short."""
    path = folder / LINES
    text = json.dumps(dataclasses.asdict(result)) + "\n"
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode())


def read(folder: pathlib.Path) -> dict[tuple[str, str, int], Result]:
    """The episodes that were played, by key, task and seed; a line that was cut short counts as none."""
    path, names = folder / LINES, {field.name for field in dataclasses.fields(Result)}
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and row.keys() == names:
            found[row["key"], row["task"], row["seed"]] = Result(**row)
    return found


def write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """JSON in one move."""
    partial = path.with_suffix(".partial.json")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)


def versions() -> dict[str, str]:
    """Of Python and of the packages that shape the results; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> dict[str, Any] | None:
    """The commit of the code and whether files differ from it; None where it does not lie in a git repository."""
    home = pathlib.Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(home), *arguments], capture_output=True, text=True, check=True, timeout=GIT_WITHIN
        )
        return done.stdout.strip()

    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")).resolve() != home.resolve():
            return None  # installed below somebody else's repository
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def device() -> str:
    """What the policy ran on, where it ran in this process."""
    device = jax.devices()[0]
    return f"{jax.device_count()} x {device.platform}: {device.device_kind}"
