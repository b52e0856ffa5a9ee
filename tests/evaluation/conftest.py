"""A run that was evaluated: the oracle on the synthetic world, with the files that training leaves."""

import json

import numpy as np
import pytest
import synthetic

from motus_jax import evaluate
from motus_jax.data.texts import Texts
from motus_jax.evaluation import baselines, results
from motus_jax.evaluation.held_out import HeldOut
from motus_jax.evaluation.runner import Evaluator
from motus_jax.modes import MODES


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory):
    """A workdir with metrics.json, evaluation_examples.npz, metrics.jsonl and timing.jsonl."""
    workdir = tmp_path_factory.mktemp("run")
    held_out = HeldOut.of(synthetic.chunks(episodes=8, per_episode=4, seed=1))
    memory = baselines.remember([synthetic.chunks(episodes=10, per_episode=6, seed=2)])
    evaluator = Evaluator(
        synthetic.oracle, held_out, memory, synthetic.units(), 16, say=lambda _: None, keep=np.array([0, 9, 30])
    )
    rate = {"value": 0.8, "interval": [0.49, 0.943], "successes": 8, "episodes": 10, "reward": 0.9}
    found = {
        "format": results.FORMAT,
        "facts": {
            "step": 300, "parameters": 1_234_567, "chunks": 32, "episodes": 8, "train_chunks": 60, "seed": 0,
            "sampling": {"video_steps": 4},
        },
        "machine": results.machine(),
        "definitions": evaluate.definitions(),
        "seconds": 1.0,
        "modes": {mode: evaluator.run(mode) for mode in MODES},
        "cycle": evaluator.cycle(),
        "closed_loop": {
            "beats_baselines": True, "seconds": 1.0, "tasks": ["push"],
            "policies": {"this_model": {**rate, "tasks": {"push": rate}}},
        },
    }  # fmt: skip
    results.write_metrics(workdir / results.METRICS_FILE, found)
    contract = synthetic.contract()
    evaluate.keep_examples(evaluator, contract, Texts(contract, {}), {}, workdir / results.EXAMPLES_FILE)
    write_curves(workdir)
    return workdir


def write_curves(workdir):
    """Curves as the trainer writes them, the last line cut short by a crash."""
    rng = np.random.default_rng(0)
    with (workdir / "metrics.jsonl").open("w") as file:
        for step in range(10, 301, 10):
            row = {"step": step, "loss/video": 1 / step, "loss/action": 2 / step, "lr": 1e-3}
            row |= {
                f"loss/{name}/tau_{k}of4": (k + 1 + rng.random()) / step
                for name in ("video", "action")
                for k in range(4)
            }
            if step % 100 == 0:
                row |= {f"val/{mode}/loss": 3 / step for mode in MODES}
            file.write(json.dumps(row) + "\n")
        file.write('{"step": 310, "loss/vi')
    with (workdir / "timing.jsonl").open("w") as file:
        for step in range(10, 301, 10):
            wall = step if step < 200 else step - 150  # restarted at step 200
            row = {
                "step": step,
                "examples_per_second": 40 + rng.random(),
                "peak_rss_gib": 2.5,
                "seconds": {"wall": wall},
            }
            file.write(json.dumps(row) + "\n")
