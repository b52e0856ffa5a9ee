"""Verdicts on predictors whose worth is known: an oracle wins, every cheat is caught."""

import json

import numpy as np
import pytest
import synthetic

from motus_jax.errors import UserError
from motus_jax.evaluation import baselines
from motus_jax.evaluation.held_out import HeldOut, from_other_episodes
from motus_jax.evaluation.runner import Evaluator
from motus_jax.modes import MODES


@pytest.fixture(scope="module")
def held_out():
    return HeldOut.of(synthetic.chunks(episodes=12, per_episode=4, seed=1))


@pytest.fixture(scope="module")
def memory():
    return baselines.remember([synthetic.chunks(episodes=10, per_episode=6, seed=2 + part) for part in range(3)])


def evaluator(predict, held_out, memory):
    said = []
    return Evaluator(
        predict, held_out, memory, synthetic.units(), batch_size=10, say=said.append, keep=np.array([0, 5])
    )


def test_oracle_beats_all_baselines_in_every_mode(held_out, memory):
    run = evaluator(synthetic.oracle, held_out, memory)
    entries = {mode: run.run(mode) for mode in MODES}
    cycle = run.cycle()
    assert {mode: entry["beats_baselines"] for mode, entry in entries.items()} == dict.fromkeys(MODES, True)
    assert cycle["beats_baselines"]
    assert entries["world_model"]["actions_of_another_episode"]["gets_worse"]
    assert entries["joint"]["metrics"].keys() == entries["video"]["metrics"].keys() | entries["vla"]["metrics"].keys()
    # Noise of 0.02 in normalised units: 0.0004 squared, 0.02 * sqrt(2 / pi) * 2 rad absolute.
    low, high = entries["vla"]["metrics"]["normalised_mse"]["interval"]
    assert low < 0.0004 < high
    np.testing.assert_allclose(entries["vla"]["metrics"]["joint_error"]["value"], 0.0319, rtol=0.1)
    np.testing.assert_allclose(entries["video"]["metrics"]["psnr"]["value"], 40.0, atol=0.3)
    assert run.kept["world_model"]["video"].shape == (2, 3, 32, 32, 3)
    json.dumps(entries, allow_nan=False)


def test_copying_and_holding_beat_nothing(held_out, memory):
    run = evaluator(synthetic.copy_last, held_out, memory)
    entries = {mode: run.run(mode) for mode in MODES}
    assert not any(entry["beats_baselines"] for entry in entries.values())
    copied = entries["video"]["comparisons"]["psnr"]["differences"]["copy_last"]
    assert copied["value"] == pytest.approx(0, abs=1e-4)
    assert not entries["world_model"]["actions_of_another_episode"]["gets_worse"]


def test_model_that_ignores_its_actions_is_not_a_world_model(held_out, memory):
    run = evaluator(synthetic.deaf, held_out, memory)
    entry = run.run("world_model")
    assert all(comparison["beats"] for comparison in entry["comparisons"].values())
    assert not entry["actions_of_another_episode"]["gets_worse"]
    assert not entry["beats_baselines"]
    assert run.run("video")["beats_baselines"]


def test_predicting_the_mean_beats_nothing(held_out, memory):
    def predict(mode, batch, key):
        return {"actions": baselines.predict_the_mean(batch, memory)}

    run = evaluator(predict, held_out, memory)
    assert not run.run("vla")["beats_baselines"]
    assert not run.run("inverse_dynamics")["beats_baselines"]


def test_every_batch_has_the_same_size_and_every_chunk_counts_once(held_out):
    sizes, seen = [], []
    for where, batch in held_out.batches(10):
        sizes.append(len(batch["frames"]))
        seen.extend(range(where.start, where.stop))
    assert set(sizes) == {10}
    assert seen == list(range(len(held_out)))


def test_partners_are_a_permutation_across_episodes(held_out):
    partner = from_other_episodes(held_out, seed=3)
    assert sorted(partner) == list(range(len(held_out)))
    assert (held_out.episodes[partner] != held_out.episodes).all()


def test_partner_refuses_when_one_episode_dominates():
    chunks = synthetic.chunks(episodes=4, per_episode=4, seed=1)
    chunks["episode"] = np.where(np.arange(16) < 10, 7, chunks["episode"]).astype(np.int32)
    with pytest.raises(UserError, match="10 of 16"):
        from_other_episodes(HeldOut.of(chunks), seed=0)


def test_one_episode_is_refused():
    with pytest.raises(UserError, match="at least 2 held-out episodes"):
        HeldOut.of(synthetic.chunks(episodes=1, per_episode=4, seed=1))
