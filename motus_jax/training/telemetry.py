"""What watches a run: the ledger over restarts, a watchdog for stalls, a profiler's trace, programs compiled."""

import contextlib
import datetime
import faulthandler
import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from motus_jax.errors import UserError
from motus_jax.training.metrics import Ledger, note

ATTEMPTS = "attempts.json"
"""File of a workdir: one entry for each time that the training was started."""
COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's event for a program that was compiled, or read from the cache."""


class Attempts:
    """The run over its restarts, in `attempts.json`; only process 0 writes.

    Each entry: `begun`, `seen` (seconds since 1970), `first` and `last` (steps before and after), `seconds` by what
    they were spent on.
    """

    def __init__(self, folder: pathlib.Path, start_step: int, ledger: Ledger) -> None:
        self._path, self._ledger = folder / ATTEMPTS, ledger
        self._on = jax.process_index() == 0
        self._rows: list[dict[str, Any]] = json.loads(self._path.read_text()) if self._path.exists() else []
        self._rows.append({"begun": time.time() - ledger.wall, "first": start_step})
        self.update(start_step)

    def update(self, step: int) -> None:
        """Writes how far this attempt has come."""
        self._rows[-1] |= {"seen": time.time(), "last": step, "seconds": self._ledger.report()}
        if self._on:
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(self._rows, indent=1) + "\n")
            os.replace(partial, self._path)

    def report(self) -> dict[str, float]:
        return goodput(self._rows)


def goodput(attempts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Where the time since the first start went, in seconds, over all attempts.

    Returns:
      `wall`: from the first start until now. `steps`: spent on steps that count. `lost`: on steps that a restart
      computed again. `down`: between attempts. What the ledger knows else (`init`, `compile`, `eval`, `checkpoint`,
      `data_wait`, `other`). `goodput`: the share of `steps` in `wall`.
    """
    found: dict[str, float] = {"steps": 0.0, "lost": 0.0, "down": 0.0}
    for k, one in enumerate(attempts):
        counted, later = one["last"] - one["first"], attempts[k + 1 :]
        kept = max(0, min([one["last"], *(other["first"] for other in later)]) - one["first"])
        spent = dict(one["seconds"])
        stepping, share = spent.pop("step", 0.0), kept / counted if counted else 0.0
        found["steps"] += stepping * share
        found["lost"] += stepping * (1 - share)
        if k:
            found["down"] += max(0.0, one["begun"] - attempts[k - 1]["seen"])
        spent.pop("wall", None)
        for name, seconds in spent.items():
            found[name] = found.get(name, 0.0) + seconds
    found["wall"] = attempts[-1]["seen"] - attempts[0]["begun"]
    found["goodput"] = found["steps"] / max(found["wall"], 1e-9)
    return {name: round(value, 3) for name, value in found.items()}


class Watchdog:
    """Writes the stacks of all threads when nothing has happened for too long; use as a context manager.

    Args:
      seconds: without a call of `alive` after which they are written, to stderr and to `stall.TIME.txt` of the folder;
        once for each stall. 0: never.
    """

    def __init__(self, seconds: float, folder: pathlib.Path) -> None:
        if seconds < 0:
            raise UserError(f"config.stall_seconds: expected 0 (never) or more, found {seconds}")
        self._seconds, self._folder = seconds, folder
        self._last, self._told = time.monotonic(), False
        self._end = threading.Event()

    def alive(self) -> None:
        """Says that the run is going on."""
        self._last, self._told = time.monotonic(), False

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()

    def _watch(self) -> None:
        while not self._end.wait(self._seconds / 10):
            silent = time.monotonic() - self._last
            if silent > self._seconds and not self._told:
                self._told = True
                self._tell(silent)

    def _tell(self, silent: float) -> None:
        moment = datetime.datetime.now().strftime("%Y%m%d_%H%M%S")
        path = self._folder / f"stall.{jax.process_index()}.{moment}.txt"
        with path.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        message = f"nothing has happened for {silent:.0f} s; what every thread is doing: {path}"
        print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def compiled_programs() -> Iterator[list[float]]:
    """A list that grows by the seconds of each program that JAX compiles meanwhile, or reads from its cache."""
    found: list[float] = []

    def heard(event: str, seconds: float, **_: Any) -> None:
        if event == COMPILED:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


class Trace:
    """A profiler's trace of some steps (`config.profile`), in `profile/` of the folder; xprof and Perfetto show it.

    Args:
      config: `first`, the first step that is traced, and `steps`, how many; 0: none.
    """

    def __init__(self, config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
        if config.steps < 0 or (config.steps and config.first < 1):
            raise UserError(f"config.profile: expected first >= 1 and steps >= 0, found {config.to_dict()}")
        self._first, self._last, self._folder, self._on = config.first, config.first + config.steps - 1, folder, False

    def before(self, step: int) -> None:
        """Starts with the first step that is to be traced."""
        if step == self._first <= self._last:
            jax.profiler.start_trace(self._folder / "profile")
            self._on = True

    def after(self, step: int, values: Any) -> None:
        """Ends with the last, once its values are there."""
        if self._on and step >= self._last:
            jax.block_until_ready(values)
            self.close()

    def close(self) -> None:
        """Ends what still runs."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
            note(f"  trace of steps {self._first} to {self._last} in {self._folder / 'profile'}")


class Telemetry:
    """All of them for one run; use as a context manager."""

    def __init__(
        self, config: ml_collections.ConfigDict, folder: pathlib.Path, start_step: int, ledger: Ledger
    ) -> None:
        self._trace = Trace(config.profile, folder)
        self._watchdog = Watchdog(config.stall_seconds, folder)
        self._attempts = Attempts(folder, start_step, ledger)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Telemetry":
        self._compiled = self._stack.enter_context(compiled_programs())
        self._stack.enter_context(self._watchdog)
        self._stack.callback(self._trace.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def before(self, step: int) -> None:
        """A step is about to start."""
        self._watchdog.alive()
        self._trace.before(step)

    def after(self, step: int, values: Any) -> None:
        """A step was started, and this is what it will return."""
        self._watchdog.alive()
        self._trace.after(step, values)

    def report(self, step: int) -> dict[str, Any]:
        """For `timing.jsonl`: the run over its restarts, and how many programs this attempt has compiled."""
        self._watchdog.alive()
        self._attempts.update(step)
        return {"run": self._attempts.report(), "compiled_programs": len(self._compiled)}
