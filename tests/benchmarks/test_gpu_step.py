"""The GPU benchmark: fewer layers until all sides fit, its report, and that PyTorch's ways compute the same."""

import json

import jax
import numpy as np
import pytest

from benchmarks import experts, gpu_step
from experiments import debug, phase3
from motus_jax.errors import UserError

ROW = {"step_s": 0.5, "walls_s": [0.5, 0.5], "warm_up_s": 9.0, "losses": [1.0], "peak_bytes": 7,
       "device": "NVIDIA H100 80GB HBM3"}  # fmt: skip


class Given:
    """Flags."""

    def __init__(self, **given):
        self.config, self.depth, self.turns, self.sides = debug.get_config(), 0, 2, ["torch layer", "jax xla"]
        self.config.batch_size = 2
        vars(self).update(given)


@pytest.fixture
def asked(monkeypatch):
    """Runs sides of which PyTorch's holds 22 layers; what was run."""
    seen = []

    def run(side, arguments, depth):
        seen.append((side, depth))
        if side == "fit":
            return {"depth": 24}
        if side in gpu_step.TORCH and depth > 22:
            raise gpu_step.NoRoomError(side)
        return ROW | {"walls_s": [0.75, 0.8]} if side in gpu_step.TORCH else ROW

    monkeypatch.setattr(gpu_step, "run", run)
    return seen


def test_layers_are_left_out_until_every_side_fits(asked, capsys):
    report = gpu_step.measure(["--config=x", "--out=y"], Given())
    assert report["depth"] == 22 and report["arguments"] == ["--config=x"]
    assert asked == [
        ("fit", 0), ("torch layer", 24),
        *[(side, 22) for side in ("torch layer", "jax xla", "jax xla", "torch layer")],
    ]  # fmt: skip
    assert report["torch_over_jax"] == pytest.approx(0.775 / 0.5)
    row = report["sides"]["jax xla"]
    assert row["mfu"] == pytest.approx(report["model_operations"] / 0.5 / 989e12) and len(row["turns"]) == 2
    assert json.loads(json.dumps(report)) == report
    said = gpu_step.table(report)
    assert "22 layers, batch 2" in said and "PyTorch's time over ours: 1.55" in said
    assert "torch layer: does not fit; 22 layers instead" in capsys.readouterr().out


def test_a_depth_that_was_asked_for_is_not_changed(asked):
    with pytest.raises(UserError, match="torch layer: 24 layers do not fit; try fewer, or a smaller batch"):
        gpu_step.measure([], Given(depth=24))


def test_without_a_gpu_the_depth_must_be_said():
    with pytest.raises(UserError, match="--depth: missing; without a GPU"):
        gpu_step.greatest_depth(debug.get_config())


def test_the_batch_is_of_the_public_sizes_and_has_no_padding():
    config = phase3.get_config()
    config.batch_size = 1
    batch = gpu_step.make_batch(config)
    assert not {"text_mask", "vlm_mask"} & batch.keys()
    assert batch["text_states"].shape == (1, 512, 4096) and batch["vlm_states"].shape[2] == 2048
    params = jax.eval_shape(experts.Experts(config).init, jax.random.key(0))
    video, actions = jax.eval_shape(experts.Experts(config).velocities, params, batch)
    assert video.shape == batch["latents"].shape and actions.shape == (1, 16, 14)


@pytest.mark.thorough
def test_our_side_runs_and_the_compiler_counts_its_bytes():
    config = gpu_step.with_depth(debug.get_config(), 1, "xla")
    config.batch_size = 2
    step, memory = gpu_step.our_side(config)
    losses = [step() for _ in range(3)]
    assert losses[2] < losses[0] and memory()["device"] == "cpu"
    params = jax.eval_shape(experts.Experts(config).init, jax.random.key(0))
    state = 4 * 4 * sum(leaf.size for leaf in jax.tree.leaves(params))  # parameters, two moments, average
    assert state < experts.bytes_of_step(config, gpu_step.make_batch(config)) < 20 * state


@pytest.mark.thorough
def test_checkpoints_and_real_numbers_change_nothing():
    """What is compiled is the model that test_torch_motus.py compares with ours."""
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    from torch.utils import checkpoint

    from benchmarks import torch_motus, torch_step

    config = debug.get_config()
    config.batch_size = 2
    ours = experts.Experts(config)
    params = jax.tree.map(
        lambda leaf: np.random.default_rng(leaf.size).normal(0, 0.05, leaf.shape).astype(np.float32),
        jax.eval_shape(ours.init, jax.random.key(0)),
    )
    batch = gpu_step.make_batch(config)
    model, tensors = torch_step.load(ours.system.motus_config, params), torch_step.to_torch(batch)

    def value_and_gradient():
        model.zero_grad()
        loss = torch_step.loss(model, tensors)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    expected, of_complex = value_and_gradient()
    assert expected == pytest.approx(float(ours.loss(params, {}, batch, None)[0]), rel=1e-5)
    model.complex_rope = False
    model.run_layer = lambda *given: checkpoint.checkpoint(torch_motus.joint_layer, *given, use_reentrant=False)
    found, of_real = value_and_gradient()
    assert found == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(of_real, of_complex, atol=1e-5, rtol=1e-4)
