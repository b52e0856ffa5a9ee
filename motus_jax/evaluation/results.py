"""What an evaluation leaves on disk: `metrics.json`, and a few predictions for the report to show.

Both files appear whole or not at all; a failed evaluation leaves the earlier ones as they were.
"""

import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from motus_jax.errors import UserError

FORMAT = 1
METRICS_FILE = "metrics.json"
EXAMPLES_FILE = "evaluation_examples.npz"

_PREDICTION = "prediction/"
_TEXT = ("instruction", "names", "units")


@dataclasses.dataclass(frozen=True)
class Examples:
    """k held-out chunks with what each mode made of them; actions in the robot's units.

    Attributes:
      frames: real, uint8 [k, 1+F, H, W, 3].
      actions: real absolute targets [k, T, A]; `mask` is False where there is none.
      state: where the robot is at the start, same units as the actions [k, A].
      instruction, episode, frame: of each chunk.
      names, units: of each action dimension.
      video_hz, action_hz: frames and actions per second.
      predictions: label (a mode, or a mode with something changed) -> `video` [k, 1+F, H, W, 3], `actions` [k, T, A].
    """

    frames: np.ndarray
    actions: np.ndarray
    mask: np.ndarray
    state: np.ndarray
    instruction: list[str]
    episode: np.ndarray
    frame: np.ndarray
    names: list[str]
    units: list[str]
    video_hz: float
    action_hz: float
    predictions: dict[str, dict[str, np.ndarray]]

    def save(self, path: Path) -> None:
        """Writes one npz."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        predictions = arrays.pop("predictions")
        for label, kinds in predictions.items():
            arrays |= {f"{_PREDICTION}{label}/{kind}": values for kind, values in kinds.items()}
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(partial, **{name: np.asarray(value) for name, value in arrays.items()})
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> "Examples":
        """Reads what `save` wrote."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        predictions: dict[str, dict[str, np.ndarray]] = {}
        for name in [name for name in arrays if name.startswith(_PREDICTION)]:
            label, kind = name.removeprefix(_PREDICTION).split("/")
            predictions.setdefault(label, {})[kind] = arrays.pop(name)
        arrays |= {name: arrays[name].tolist() for name in _TEXT}
        arrays |= {name: float(arrays[name]) for name in ("video_hz", "action_hz")}
        return cls(**arrays, predictions=predictions)


def write_metrics(path: Path, results: Mapping[str, Any]) -> None:
    """Writes `metrics.json` in one move; NaN is refused, since JSON has none."""
    partial = path.with_suffix(".partial.json")
    partial.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)


def read_metrics(path: Path) -> dict[str, Any]:
    """Reads `metrics.json`.

    Raises:
      UserError: there is none, or it is of another format.
    """
    if not path.is_file():
        raise UserError(f"{path} not found: run `python -m motus_jax.evaluate --workdir={path.parent}` first")
    results = json.loads(path.read_text())
    if results.get("format") != FORMAT:
        raise UserError(f"{path}: expected format {FORMAT}, found {results.get('format')}; evaluate again")
    return results


def earlier_results(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The results of an earlier evaluation under the same facts (checkpoint, chunks, seed), to which a new one adds.

    Returns:
      An empty dictionary when there are none or when they were taken under other facts.
    """
    if not path.is_file():
        return {}
    results = json.loads(path.read_text())
    same = results.get("format") == FORMAT and results.get("facts") == json.loads(json.dumps(facts))
    return results if same else {}


def machine() -> dict[str, Any]:
    """Where the numbers were taken."""
    device = jax.devices()[0]
    return {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": f"{device.platform}: {device.device_kind}",
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
