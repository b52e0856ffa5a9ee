"""launch/local.sh and launch/recipe.sh call the commands in order, and know what was done before."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parents[2]
PYTHON = r"""#!/bin/bash
# Records the commands of the package and leaves what they would leave; all else is done by the real interpreter.
case "$*" in
  "-m "*) echo "$*" >> calls ;;
  "- "*) cat > /dev/null; echo "one line a mode" ;;
  *) exec "$REAL" "$@" ;;
esac
for word in "$@"; do
  case "$word" in --workdir=*) run=${word#*=} ;; esac
done
case "$2" in
  motus_jax.train) mkdir -p "$run/checkpoints/8" ;;
  motus_jax.evaluation.report) mkdir -p "$run/report"; touch "$run/report/index.html" ;;
esac
"""
MODES = ("joint", "vla", "world_model", "inverse_dynamics", "video")


@pytest.fixture
def launch(tmp_path):
    """Runs a launcher in a repository whose interpreter records; (process, new calls)."""
    for folder in ("launch", "experiments"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    shutil.copy(REPOSITORY / "setup.py", tmp_path / "setup.py")
    (tmp_path / "datasets" / "aloha_sim" / "meta").mkdir(parents=True)
    (tmp_path / "datasets" / "aloha_sim" / "meta" / "info.json").touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(REPOSITORY / "setup.py", tmp_path / ".venv" / "setup_installed.py")
    for name in ("python", "pip"):
        (tmp_path / ".venv" / "bin" / name).write_text(PYTHON)
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)

    def run(*words):
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = os.environ | {"REAL": sys.executable, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(words, cwd=tmp_path, env=environment, timeout=120, capture_output=True, text=True)
        return done, calls.read_text().splitlines()

    return run


def reported(run):
    samples = [
        f"-m motus_jax.sample --workdir={run} --mode={mode} --episode=0 --frame=5 --out={run}/samples" for mode in MODES
    ]
    return [*samples, f"-m motus_jax.evaluate --workdir={run}", f"-m motus_jax.evaluation.report --workdir={run}"]


def train(experiment, run, *flags):
    return " ".join(["-m motus_jax.train", f"--config={experiment}", f"--workdir={run}", *flags])


def test_an_experiment_is_trained_sampled_evaluated_and_reported_once(launch, tmp_path):
    demo = str(tmp_path / "experiments/demo.py")
    done, calls = launch("launch/local.sh", "experiments/demo.py", "--config.steps=9")
    assert done.returncode == 0, done.stderr
    assert calls == [train(demo, "runs/demo", "--config.steps=9"), *reported("runs/demo")]
    assert "one line a mode" in done.stdout and f"report: {tmp_path}/runs/demo/report/index.html" in done.stdout
    done, calls = launch("launch/local.sh", "experiments/demo.py")
    assert calls == [train(demo, "runs/demo")] and "Done before: step 8 of runs/demo" in done.stdout


def test_what_an_experiment_starts_from_is_trained_first(launch, tmp_path):
    done, calls = launch("launch/local.sh", "experiments/demo_wan.py", "--config.platform=cpu")
    assert done.returncode == 0, done.stderr
    assert calls[0] == train("experiments/demo_vae.py", "runs/demo_vae.partial", "--config.platform=cpu")
    assert calls[1] == train(str(tmp_path / "experiments/demo_wan.py"), "runs/demo_wan", "--config.platform=cpu")
    assert (tmp_path / "runs" / "demo_vae").is_dir()


def test_the_recipe_is_all_phases_in_order(launch):
    done, calls = launch("launch/recipe.sh")
    assert done.returncode == 0, done.stderr
    assert calls == [
        train("experiments/latent_action.py", "runs/latent_action"),
        "-m motus_jax.evaluation.latents --workdir=runs/latent_action",
        train("experiments/phase1.py:demo", "runs/phase1_demo"),
        "-m motus_jax.data label --workdir=runs/latent_action --path=datasets/aloha_sim --out=latents/aloha_sim",
        train("experiments/phase2.py:demo", "runs/phase2_demo"),
        train("experiments/phase3.py:demo", "runs/phase3_demo"),
        *reported("runs/phase3_demo"),
    ]


def test_the_recipe_on_a_recording_of_ones_own(launch, tmp_path):
    done, calls = launch("launch/recipe.sh", "lift")
    assert done.returncode == 2 and not calls and "datasets/lift: expected a recording" in done.stderr
    shutil.copytree(tmp_path / "datasets" / "aloha_sim", tmp_path / "datasets" / "lift")
    done, calls = launch("launch/recipe.sh", "lift", "--config.platform=cpu")
    assert done.returncode == 0, done.stderr
    assert calls == [
        train("experiments/latent_action.py:lift", "runs/latent_action_lift", "--config.platform=cpu"),
        "-m motus_jax.evaluation.latents --workdir=runs/latent_action_lift",
        train("experiments/phase1.py:lift", "runs/phase1_lift", "--config.platform=cpu"),
        "-m motus_jax.data label --workdir=runs/latent_action_lift --path=datasets/lift --out=latents/lift",
        train("experiments/phase2.py:lift", "runs/phase2_lift", "--config.platform=cpu"),
        train("experiments/phase3.py:lift", "runs/phase3_lift", "--config.platform=cpu"),
        *reported("runs/phase3_lift"),
    ]


def test_no_experiment_is_one_line(launch):
    done, calls = launch("launch/local.sh", "experiments/none.py")
    assert done.returncode == 2 and not calls
    assert done.stderr == "error: expected an experiment file, e.g. experiments/demo.py; found no experiments/none.py\n"
