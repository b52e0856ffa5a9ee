"""Numbers out: a JSONL curve that survives crashes, TensorBoard, the progress line and the ledger of time.

`metrics.jsonl` holds what the run computed and nothing that depends on the machine, so that two runs can be compared
byte by byte. `timing.jsonl` holds speed, memory and where the time went. Only process 0 writes.
"""

import contextlib
import json
import math
import os
import pathlib
import resource
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from motus_jax.errors import UserError

CRITICAL = ("loss", "grad_norm", "param_norm")
"""Metrics that must be finite. Others may be NaN where a step had nothing to average, e.g. an empty noise band."""


def note(message: str) -> None:
    """Prints one line of the run's story, on process 0."""
    if jax.process_index() == 0:
        print(message, flush=True)


class Curve:
    """The curve: one line per window of `log_every` steps, with the mean of every metric over the window.

    Device values are fetched late: a window is read when the next one ends, or at `flush`, so that logging does not
    wait for the step that is running. `rows` (what the open window holds) travels in the checkpoint, so that a window
    that a restart falls into comes out the same.
    """

    def __init__(self, writer: "Writer", rows: list[dict[str, float]]) -> None:
        self._writer = writer
        self.rows = list(rows)
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._ended: tuple[int, int] | None = None  # (last step of the window, how many of `_pending` belong to it)

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Remembers the device values of a step."""
        self._pending.append((step, metrics))

    def end_window(self, step: int) -> tuple[int, dict[str, float]] | None:
        """Ends the window at `step`; reads and writes the one before. Returns (its last step, its means), or None.

        Raises:
          UserError: a critical metric is not finite (also in `flush`).
        """
        written = self._write()
        self._ended = (step, len(self._pending))
        return written

    def flush(self) -> tuple[int, dict[str, float]] | None:
        """Reads everything there is; writes the window that has ended, if any, and returns it as `end_window` does."""
        written = self._write()
        self._collect(len(self._pending))
        return written

    def _write(self) -> tuple[int, dict[str, float]] | None:
        if self._ended is None:
            return None
        step, count = self._ended
        self._collect(count)
        means, self.rows, self._ended = window_means(self.rows), [], None
        self._writer.scalars(step, means)
        return step, means

    def _collect(self, count: int) -> None:
        ready, self._pending = self._pending[:count], self._pending[count:]
        fetched = jax.device_get([metrics for _, metrics in ready])
        steps = [step for step, _ in ready]
        for step, metrics in zip(steps, fetched):
            row = {name: float(value) for name, value in metrics.items()}
            _refuse_non_finite(row, step, steps)
            self.rows.append(row)


def window_means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every metric over steps, NaN entries left out."""
    names = sorted({name for row in rows for name in row})
    return {name: _mean([row[name] for row in rows if name in row]) for name in names}


def _mean(values: list[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return float(np.mean(finite)) if finite else math.nan


def _refuse_non_finite(row: Mapping[str, float], step: int, steps: list[int]) -> None:
    bad = [name for name in CRITICAL if not math.isfinite(row.get(name, 0.0))]
    if not bad:
        return
    parts = [f"{name} = {value}" for name, value in row.items() if name.startswith(bad[0]) and not math.isfinite(value)]
    raise UserError(
        f"training stopped: {', '.join(parts)} at step {step} (found while reading steps {steps[0]}-{steps[-1]});"
        " expected finite numbers. The last checkpoint is untouched: lower the learning rate or the clipping norm, or"
        " look at the data of that step"
    )


QUARANTINE = "quarantine.{process}.jsonl"
"""File of a workdir that says what data could not be read, one for each process."""


class Writer:
    """Writes `metrics.jsonl`, `timing.jsonl` and TensorBoard events under `workdir`; does nothing off process 0.

    Opening drops what an earlier run wrote after `start_step`, since those steps are about to be computed again.
    """

    def __init__(self, workdir: pathlib.Path, start_step: int) -> None:
        self._on, self._workdir = jax.process_index() == 0, workdir
        mine = workdir / QUARANTINE.format(process=jax.process_index())
        if mine.exists():
            _drop_after(mine, start_step)
        if not self._on:
            return
        self._metrics, self._timing = workdir / "metrics.jsonl", workdir / "timing.jsonl"
        _drop_after(self._metrics, start_step)
        import tensorboardX  # brings torch along where there is one: seconds that only a training shall wait

        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one line to the curve and the same numbers to TensorBoard; NaN (nothing to average) is left out."""
        if not self._on:
            return
        values = {name: value for name, value in values.items() if not math.isnan(value)}
        _append(self._metrics, {"step": step, **values})
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def timing(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds one line about the machine."""
        if self._on:
            _append(self._timing, {"step": step, **values})

    def quarantine(self, step: int, reason: str) -> None:
        """Adds one line about an example that could not be read; from every process, each into its own file."""
        _append(self._workdir / QUARANTINE.format(process=jax.process_index()), {"step": step, "reason": reason})

    def close(self) -> None:
        if self._on:
            self._board.close()


def read_curve(path: pathlib.Path) -> list[dict[str, float]]:
    """The lines of a JSONL curve; a line that a crash cut short is left out."""
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def _append(path: pathlib.Path, row: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _drop_after(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    kept = [row for row in read_curve(path) if row["step"] <= step]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
    os.replace(partial, path)


class Ledger:
    """Seconds of this process by what they were spent on; the rest of the wall time is `other`."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @property
    def wall(self) -> float:
        return time.perf_counter() - self._start

    def report(self) -> dict[str, float]:
        """All entries, `other` and `wall`, in seconds rounded to milliseconds."""
        spent = {**self.seconds, "other": self.wall - sum(self.seconds.values()), "wall": self.wall}
        return {name: round(value, 3) for name, value in spent.items()}


class Progress:
    """Speed since the last report, and the progress line.

    Attributes:
      operations: that one step needs on each device; 0: not known.
      peak: operations a second of a device; 0: not known.
    """

    operations = 0.0
    peak = 0.0

    def __init__(self, total_steps: int, batch_size: int, ledger: Ledger, start_step: int) -> None:
        self._total, self._batch, self._ledger = total_steps, batch_size, ledger
        self._last = (start_step, self._busy(), ledger.seconds.get("data_wait", 0.0))

    def _busy(self) -> float:
        """Seconds spent stepping, waiting for data and everything but validation, checkpoints and start-up."""
        idle = ("init", "compile", "checkpoint", "eval")
        return self._ledger.wall - sum(self._ledger.seconds.get(name, 0.0) for name in idle)

    def report(self, step: int) -> dict[str, float]:
        """Speed since the previous call and memory, for `timing.jsonl`."""
        then_step, then, then_wait = self._last
        now, wait = self._busy(), self._ledger.seconds.get("data_wait", 0.0)
        self._last = (step, now, wait)
        elapsed = max(now - then, 1e-9)
        per_step = elapsed / max(1, step - then_step)
        return {
            "seconds_per_step": per_step,
            "examples_per_second": self._batch / per_step,
            "data_wait_share": (wait - then_wait) / elapsed,
            "rss_gib": current_rss_gib(),
            "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "eta_seconds": per_step * (self._total - step),
        } | self._work(per_step)

    def _work(self, per_step: float) -> dict[str, float]:
        if not self.operations:
            return {}
        rate = self.operations / per_step
        return {"tflops_per_device": rate / 1e12} | ({"mfu": rate / self.peak} if self.peak else {})

    def line(self, step: int, means: Mapping[str, float], speed: Mapping[str, float]) -> str:
        """The progress line: losses of the window that ended at `step`, and the speed now.

        A loss that no example of the window had (`nan`: there are no actions in phase 1) is left out.
        """
        losses = "  ".join(
            f"{k} {v:.4f}"
            for k, v in means.items()
            if k in ("loss", "loss/video", "loss/action") and not math.isnan(v)
        )
        minutes, seconds = divmod(round(speed["eta_seconds"]), 60)
        utilised = f"MFU {speed['mfu']:.1%}  " if "mfu" in speed else ""
        return (
            f"step {step}/{self._total} ({step / self._total:.0%})  {losses}  "
            f"{speed['examples_per_second']:.1f} examples/s  {speed['seconds_per_step']:.3f} s/step  "
            f"data wait {speed['data_wait_share']:.0%}  memory {speed['rss_gib']:.2f} GiB  "
            f"{utilised}eta {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        )


def current_rss_gib() -> float:
    """Resident memory of this process in GiB (0 where /proc is missing)."""
    status = pathlib.Path("/proc/self/statm")
    if not status.exists():
        return 0.0
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
