"""Processes that assemble batches: they end when they must, and memory stays flat."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import lerobot_fixture as fixture
import pytest

from motus_jax.data import process_tree
from motus_jax.data.mixture import make_mixture
from motus_jax.data.pipeline import Batches, make_iterator
from motus_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = {
    "chunk": 8, "video_frames": 4, "image_size": (28, 24), "threads": 1, "prefetch": 2, "cameras": ("top",),
    "workers": 2,
}  # fmt: skip
PARENT = f"""
import sys, time
from motus_jax.data.mixture import make_mixture
from motus_jax.data.pipeline import make_iterator
if __name__ == "__main__":
    batches = make_iterator(make_mixture({{**{SETTINGS!r}, "path": sys.argv[1]}}, "train"), 4, 0)
    batch = next(batches)
    print("ready", flush=True)
    time.sleep(0 if sys.argv[2] == "exit" else 60)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("worker") / "set"
    return str(fixture.write(folder, lengths=(40, 30, 50, 20), cameras={"top": (24, 32)}))


def opened(path, **changes) -> Batches:
    return make_iterator(make_mixture({**SETTINGS, "path": path, **changes}, "train"), 4, 0)


def loaders(pid: int | None = None) -> set[int]:
    """Processes below this one that assemble batches; not the one that tracks shared memory."""
    return {child for child in process_tree.children(pid) if "spawn_main" in process_tree.command(child)}


def wait_for_end(processes, seconds=10.0):
    assert len(processes) == 2
    end = time.monotonic() + seconds
    while any(map(process_tree.command, processes)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(process_tree.command, processes))


def test_workers_end_when_the_iterator_is_closed(path):
    before = loaders()
    batches = opened(path)
    next(batches)
    mine = loaders() - before
    batches.close()
    wait_for_end(mine)


def test_workers_end_when_nobody_holds_the_iterator(path):
    before = loaders()
    batches = opened(path)
    next(batches)
    mine = loaders() - before
    del batches
    wait_for_end(mine)


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_workers_end_with_their_parent(path, tmp_path, end):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), path, end]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as parent:
        found = set()
        while parent.poll() is None and len(found) < 2:
            found = loaders(parent.pid)
            time.sleep(0.02)
        assert parent.stdout.readline() == "ready\n"
        if end == "kill":
            parent.send_signal(signal.SIGKILL)
        _, errors = parent.communicate(timeout=30)
    wait_for_end(found)
    if end == "exit":
        assert parent.returncode == 0 and "Traceback" not in errors and "leaked" not in errors


def test_an_error_in_a_worker_arrives_as_it_is(tmp_path):
    folder = fixture.write(tmp_path / "set", "v2.1", lengths=(20, 20), cameras={"top": (24, 32)})
    for file in folder.glob("videos/*/*/*.mp4"):
        file.write_bytes(b"")
    batches = opened(str(folder))
    with pytest.raises(UserError, match=r"20 chunks in a row are broken, the last one: .*truncated"):
        next(batches)
    batches.close()


def test_a_killed_worker_is_one_clear_line(path):
    before = loaders()
    batches = opened(path)
    next(batches)
    for process in loaders() - before:
        os.kill(process, signal.SIGKILL)
    with pytest.raises(UserError, match=r"config\.data\.workers: expected 2 processes.*exit code -9"):
        for _ in range(50):
            next(batches)
    batches.close()


def test_a_worker_outlives_a_signal_to_all(path):
    """A batch system's SIGTERM and Ctrl-C reach every process; the run still wants batches until it has saved."""
    before = loaders()
    batches = opened(path)
    next(batches)
    mine = loaders() - before
    for process in mine:
        os.kill(process, signal.SIGTERM)
        os.kill(process, signal.SIGINT)
    for _ in range(20):
        next(batches)
    assert all(map(process_tree.command, mine))
    batches.close()


def test_a_worker_outlives_a_signal_that_comes_before_it_is_ready(path):
    before, mine = loaders(), set()
    batches = opened(path)
    first = threading.Thread(target=lambda: next(batches))
    first.start()
    while len(mine) < 2:  # at once, while they still import
        for process in loaders() - before - mine:
            os.kill(process, signal.SIGTERM)
            os.kill(process, signal.SIGINT)
            mine.add(process)
    first.join()
    for _ in range(5):
        next(batches)
    assert all(map(process_tree.command, mine))
    batches.close()


def measure(path, batch_size, warm_up, steps) -> list[int]:
    """Memory of this process and its workers: after the warm-up, in the middle and at the end."""
    before = loaders()
    mixture = make_mixture({**SETTINGS, "path": path}, "train")
    batches = make_iterator(mixture, batch_size, 0)
    for _ in range(warm_up):
        next(batches)
    mine = [os.getpid(), *(loaders() - before)]
    assert len(mine) == 3
    found = [sum(map(process_tree.memory_bytes, mine))]
    for _ in range(2):
        for _ in range(steps // 2):
            next(batches)
        found.append(sum(map(process_tree.memory_bytes, mine)))
    batches.close()
    return found


def test_memory_stays_flat(path):
    first, _, last = measure(path, 16, 30, 120)
    assert last < 1.05 * first


@pytest.mark.heavy
def test_memory_stays_flat_over_20000_examples(path):
    first, middle, last = measure(path, 32, 100, 625)
    assert max(middle, last) < 1.05 * first
