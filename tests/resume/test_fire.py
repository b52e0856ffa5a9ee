"""Checkpoints under fire: killed at any moment, also while a save is running; a disk that takes no more."""

import random
import resource
import subprocess
import time

import pytest
from test_kill import FAKE, REPOSITORY, assert_same_run, environment, run

from motus_jax.training import checkpoint

KILLS = 50
SAVES_OFTEN = ["--config.checkpoint.every=4", "--config.checkpoint.keep=3", "--config.validate_every=0"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def kill_after(seconds, command, workdir, cache):
    """Kills a run so long after its loop has begun; whether a save was running, or None if the run had ended."""
    with subprocess.Popen([*command, f"--workdir={workdir}"], env=environment(cache), cwd=REPOSITORY, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:  # fmt: skip
        for line in process.stdout:
            if line.startswith("Loop: "):
                break
        time.sleep(seconds)
        process.kill()
        process.wait()
    if process.returncode == 0:
        return None
    assert process.returncode == -9
    # Orbax writes into a folder of another name, which becomes the checkpoint's when it is complete.
    return any(not path.name.isdigit() for path in (workdir / "checkpoints").iterdir())


@pytest.mark.heavy
def test_fifty_kills_change_nothing(cache, tmp_path):
    """At random moments; the end is that of an unbroken run, to the bit."""
    draw = random.Random(0)
    during, kills = 0, 0
    # Long enough that no run comes to its end before the last kill.
    command = [*FAKE, *SAVES_OFTEN, f"--config.steps={40 * KILLS}"]
    while kills < KILLS:
        found = kill_after(draw.uniform(0.0, 0.8), command, tmp_path / "killed", cache)
        assert found is not None, f"the run ended after {kills} kills"
        kills, during = kills + 1, during + found
    assert during > KILLS / 10, "kills while a save was running"
    assert "restored step" in run(command, tmp_path / "killed", environment(cache))
    run(command, tmp_path / "unbroken", environment(cache))
    assert_same_run(tmp_path / "killed", tmp_path / "unbroken")


def test_a_full_disk_is_told_and_nothing_is_lost(cache, tmp_path):
    """Files above some size cannot be written: the checkpoint before stays, and the run goes on from it."""
    command = [*FAKE, "--config.model.width=256", "--config.checkpoint.every=3", "--config.validate_every=0"]
    run([*command, "--config.steps=3"], tmp_path / "full", environment(cache))
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'full'}"], env=environment(cache), cwd=REPOSITORY, text=True,
        capture_output=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1, done.stderr
    assert "a checkpoint could not be written" in errors[0] and "complete ones: 3. Make room" in errors[0]
    assert checkpoint.available_steps(tmp_path / "full") == [3]
    assert "restored step 3" in run(command, tmp_path / "full", environment(cache))
    for steps in (3, 12):  # the schedule of the first three steps is that of a run of three
        run([*command, f"--config.steps={steps}"], tmp_path / "roomy", environment(cache))
    assert_same_run(tmp_path / "full", tmp_path / "roomy")
