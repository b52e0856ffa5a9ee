"""Verification against golden files: the public release's numbers for a small random model.

A folder holds `params.safetensors` under public names, inputs, outputs and intermediates; a JSON sidecar gives the
sizes. Every tensor of every file that `CHECKS` knows is recomputed and compared.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from motus_jax import flow_matching
from motus_jax.errors import UserError
from motus_jax.models import layers
from motus_jax.models.config import (
    ActionExpertConfig,
    MotusConfig,
    UnderstandingExpertConfig,
    VideoExpertConfig,
)
from motus_jax.models.losses import action_loss, video_loss
from motus_jax.models.motus import Motus
from motus_jax.modes import MODES
from motus_jax.sampling.denoise import denoise, make_plan, with_condition
from motus_jax.weights import golden_extras
from motus_jax.weights import motus as names
from motus_jax.weights.name_map import to_public, to_tree

Tensors = dict[str, np.ndarray]

FORWARD_LIMIT = 3e-5
"""Largest absolute deviation of forward passes, sampling, losses and tables."""
GRADIENT_LIMIT = 2e-5
"""Largest deviation of a gradient, relative to the largest entry of the golden gradient."""
NORM_LIMIT = 1e-5
"""Relative deviation of the gradients' global norm."""


@dataclasses.dataclass(frozen=True)
class Deviation:
    """One compared tensor; within the limits when `value` <= `limit`."""

    name: str
    value: float
    limit: float


def model_config(sidecar: dict, form: str) -> MotusConfig:
    """The model of a sidecar in form `finetune` or `pretrain` (action-only)."""
    wan, action, understanding = sidecar["wan"], sidecar["action_expert"], sidecar["und_expert"]
    finetune = form == "finetune"
    return MotusConfig(
        depth=wan["num_layers"],
        video=VideoExpertConfig(
            heads=wan["num_heads"],
            head_dim=wan["dim"] // wan["num_heads"],
            mlp=wan["ffn_dim"],
            latent_channels=wan["in_dim"],
            text_width=wan["text_dim"],
            frequencies=wan["freq_dim"],
            patch=tuple(sidecar["video"]["patch_size"]),
            eps=float(wan["eps"]),
        ),
        action=ActionExpertConfig(
            width=action["dim"],
            mlp=action["ffn_dim"],
            action_dim=action["action_dim"],
            state_dim=action["state_dim"] if finetune else None,
            registers=action["num_registers_finetune"] if finetune else 0,
            frequencies=action["freq_dim"],
            eps=float(action["norm_eps"]),
        ),
        understanding=UnderstandingExpertConfig(
            width=understanding["dim"],
            mlp=understanding["ffn_dim"],
            input_width=understanding["vlm_input_dim"],
            eps=float(understanding["norm_eps"]),
        ),
    )


class Golden:
    """A golden folder: its tensors, its sidecar, and the parameters of both forms in our layout."""

    def __init__(self, folder: pathlib.Path, sidecar: dict) -> None:
        self.folder, self.sidecar = folder, sidecar
        self.inputs = load_file(folder / "inputs.safetensors")
        self.public = load_file(folder / "params.safetensors")
        self.chunk = sidecar["sampling"]["action_chunk_size"]

    def forms(self) -> list[str]:
        has_pretrain = (self.folder / "params_pretrain_delta.safetensors").exists()
        return ["finetune", "pretrain"] if has_pretrain else ["finetune"]

    @functools.cache  # noqa: B019 (one object a process)
    def load(self, form: str) -> tuple[MotusConfig, dict]:
        """(config, parameters); the position buffer is checked against ours and left out."""
        tensors = dict(self.public)
        if form == "pretrain":
            fresh = ("action_expert.registers", "action_expert.input_encoder.state_encoder.")
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(fresh)}
            tensors |= load_file(self.folder / "params_pretrain_delta.safetensors")
        config = model_config(self.sidecar, form)
        buffer = tensors.pop(names.POSITION_BUFFER, None)
        if buffer is not None and np.abs(buffer - names.position_buffer(config, self.chunk)).max() > FORWARD_LIMIT:
            raise UserError(f"{names.POSITION_BUFFER} in {self.folder} is not the table that the model computes")
        tree = to_tree(tensors, names.rules(config), config.depth)
        return config, jax.tree.map(jnp.asarray, tree)

    def state(self, form: str) -> jax.Array | None:
        return jnp.asarray(self.inputs["state"]) if form == "finetune" else None

    def velocities(self, form: str, params: dict, video: jax.Array, actions: jax.Array, t_video: jax.Array,
                   t_action: jax.Array, trace: bool = False) -> tuple:
        """The model on the golden conditioning; `video` channel-last, timesteps in [0, 1000]."""
        text, vlm = (jnp.asarray(self.inputs[name]) for name in ("t5_embeddings", "vlm_hidden_states"))
        arguments = (video, actions, self.state(form), t_video, t_action, text, None, vlm, None)
        return self._apply(form, trace)({"params": params}, *arguments)

    @functools.cache  # noqa: B019
    def _apply(self, form: str, trace: bool) -> Callable[..., tuple]:
        """The model as one program: operation by operation it would be hundreds."""
        return jax.jit(Motus(self.load(form)[0], trace).apply)


def verify(folder: pathlib.Path, config_file: pathlib.Path) -> dict[str, list[Deviation]]:
    """Compares every known golden file in `folder`.

    Returns:
      File name -> deviations, one a tensor.

    Raises:
      UserError: a file is missing, or parameters do not match the name map.
    """
    for path in (config_file, folder / "params.safetensors", folder / "inputs.safetensors"):
        if not path.exists():
            raise UserError(f"golden file {path} does not exist; --golden is the folder, --config the sidecar")
    missing = _listed(folder) - {path.name for path in folder.iterdir()}
    if missing:
        raise UserError(f"golden file {min(missing)} is listed in {folder / 'manifest.json'} but does not exist")
    golden = Golden(folder, json.loads(config_file.read_text()))
    found = {}
    with jax.default_matmul_precision("highest"):
        for name, check in CHECKS.items():
            path = next((place / name for place in (folder, folder.parent / "common") if (place / name).exists()), None)
            if path is not None:
                found[name] = _compare(check(golden, load_file(path)), load_file(path))
        for name, check in golden_extras.CHECKS.items():
            if (folder / name).exists():
                tensors = load_file(folder / name)
                found[name] = _compare(check(folder, tensors), tensors, golden_extras.LIMIT)
    if not found:
        known = ", ".join((*CHECKS, *golden_extras.CHECKS))
        raise UserError(f"{folder} holds none of {known}: nothing to verify")
    return found


def _listed(folder: pathlib.Path) -> set[str]:
    manifest = folder / "manifest.json"
    return {row["file"] for row in json.loads(manifest.read_text())} if manifest.exists() else set()


def _compare(
    ours: Iterator[tuple[str, np.ndarray]], golden: Tensors, limit: float = FORWARD_LIMIT
) -> list[Deviation]:
    """Pairs by name; a golden tensor that is neither an input nor recomputed is an error."""
    deviations, seen = [], set()
    for name, value in ours:
        if name not in golden:
            continue
        seen.add(name)
        deviations.append(_deviation(name, np.asarray(value, np.float64), golden[name].astype(np.float64), limit))
    forgotten = {name for name in golden if not name.startswith(_NOT_RECOMPUTED)} - seen
    if forgotten:
        raise UserError(f"golden tensor {min(forgotten)!r} has no counterpart in this model")
    return deviations


_NOT_RECOMPUTED = ("in.", "rope.in", "sinusoid.t", "step.model_output", "step.noise", "step.sample", "unipc10",
                   "train1000.linear_timesteps_weights", "step.training_weight")
"""Inputs, and what the release computes without using it: its UniPC tables and its per-timestep loss weights."""


def _deviation(name: str, ours: np.ndarray, golden: np.ndarray, limit: float) -> Deviation:
    if ours.shape != golden.shape:
        raise UserError(f"golden tensor {name!r}: expected shape {golden.shape}, found {ours.shape}")
    worst = float(np.abs(ours - golden).max()) if np.isfinite(ours).all() else float("inf")
    scale = max(float(np.abs(golden).max()), 1e-30)
    if ".grad." in name:
        return Deviation(name, worst / scale, GRADIENT_LIMIT)
    if name.endswith("grad_global_norm"):
        return Deviation(name, worst / scale, NORM_LIMIT)
    if "timesteps" in name or name in ("derived.t_video", "derived.t_action"):
        return Deviation(name, worst / 1000, FORWARD_LIMIT)
    return Deviation(name, worst, limit)


def channel_last(x: np.ndarray) -> jax.Array:
    """Public video layout [B, C, F, H, W] -> ours."""
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def channel_first(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -1, 1)


def _forward(golden: Golden, form: str) -> Iterator[tuple[str, np.ndarray]]:
    inputs = golden.inputs
    video = channel_last(inputs["noisy_video_latent_with_condition"])
    times = (jnp.asarray(inputs[name]) for name in ("t_video", "t_action"))
    params = golden.load(form)[1]
    velocity, action, seen = golden.velocities(form, params, video, inputs["noisy_actions"], *times, trace=True)
    yield "out.video_velocity", channel_first(velocity)
    yield "out.action_velocity", action
    yield "out.action_full", seen.pop("action_full")
    for name, value in seen.items():
        public = name.replace("understanding", "und")
        if name.startswith("time."):
            yield f"mid.{public}", value[:, 0]
        elif name.startswith(("tokens.", "text_")):
            yield f"mid.{public}", value
        else:
            for layer, part in enumerate(value):
                yield f"mid.layer{layer}.{public}", part


def _forward_finetune(golden: Golden, _: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    return _forward(golden, "finetune")


def _forward_pretrain(golden: Golden, _: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    return _forward(golden, "pretrain")


def _train_step(golden: Golden, tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    schedule = golden.sidecar["training"]["scheduler"]
    table = flow_matching.release_table(schedule["num_train_timesteps"], schedule["shift"])
    inputs = golden.inputs
    tau = {name: jnp.asarray(table[tensors[f"in.{name}_timestep_ids"]]) for name in ("video", "action")}
    times = {name: flow_matching.TIMESTEP_SCALE * value for name, value in tau.items()}
    clean = channel_last(inputs["clean_video_latent"]), jnp.asarray(inputs["clean_actions"])
    noise = channel_last(tensors["in.video_noise"]), jnp.asarray(tensors["in.action_noise"])
    condition = channel_last(inputs["condition_latent"])
    video = with_condition(flow_matching.interpolate(clean[0], noise[0], tau["video"]), condition)
    actions = flow_matching.interpolate(clean[1], noise[1], tau["action"])
    target = with_condition(flow_matching.velocity(clean[0], noise[0]), jnp.zeros_like(condition))
    for name in ("video", "action"):
        yield f"derived.sigma_{name}", tau[name]
        yield f"derived.t_{name}", times[name]
    yield "derived.noisy_video_latent", channel_first(video)
    yield "derived.noisy_actions", actions
    yield "derived.video_target", channel_first(target)
    yield "derived.action_target", flow_matching.velocity(clean[1], noise[1])
    for form in golden.forms():
        yield from _one_step(golden, form, (video, actions), (target, noise[1] - clean[1]), tau, times)


def _one_step(
    golden: Golden, form: str, noisy: tuple, target: tuple, tau: dict, times: dict
) -> Iterator[tuple[str, np.ndarray]]:
    config, params = golden.load(form)
    weights = golden.sidecar["loss_weights"]

    def objective(params: dict) -> tuple[jax.Array, tuple]:
        velocity, action = golden.velocities(form, params, *noisy, times["video"], times["action"])
        losses = jnp.mean(video_loss(velocity, target[0], "all")), jnp.mean(action_loss(action, target[1]))
        return weights["video"] * losses[0] + weights["action"] * losses[1], (losses, velocity, action)

    (total, (losses, velocity, action)), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    yield f"{form}.video_loss", losses[0][None]
    yield f"{form}.action_loss", losses[1][None]
    yield f"{form}.total_loss", total[None]
    for name in ("video", "action"):
        yield f"{form}.{name}_sigma_mean", jnp.mean(tau[name])[None]
    yield f"{form}.video_velocity", channel_first(velocity)
    yield f"{form}.action_velocity", action
    flat = to_public(gradients, names.rules(config), config.depth)
    for name, value in flat.items():
        yield f"{form}.grad.{name}", value
    yield f"{form}.grad_global_norm", np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in flat.values()))[None]


def _inference(golden: Golden, tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    steps = golden.sidecar["inference"]["num_inference_steps"]
    params = golden.load("finetune")[1]
    plan = make_plan(MODES["joint"], steps, steps)
    condition = channel_last(golden.inputs["condition_latent"])
    x = channel_last(tensors["in.initial_video_noise"]), jnp.asarray(tensors["in.initial_action_noise"])
    yield "t", flow_matching.time_grid(steps)
    yield "timesteps", flow_matching.TIMESTEP_SCALE * flow_matching.time_grid(steps)[:-1]

    def velocities(video: jax.Array, actions: jax.Array, *taus: jax.Array) -> tuple[jax.Array, jax.Array]:
        times = (flow_matching.TIMESTEP_SCALE * tau for tau in taus)
        return golden.velocities("finetune", params, video, actions, *times)

    for i in range(steps):
        row = jax.tree.map(lambda array, i=i: array[i : i + 1], plan)
        taus = (jnp.broadcast_to(tau, (len(condition),)) for tau in (row.tau_video[0], row.tau_action[0]))
        v = velocities(with_condition(x[0], condition), x[1], *taus)
        yield f"step{i}.video_velocity", channel_first(v[0])
        yield f"step{i}.action_velocity", v[1]
        x = denoise(velocities, *x, condition, row)
        yield f"step{i}.video_latent", channel_first(x[0])
        yield f"step{i}.action_latent", x[1]
    yield "out.video_latent", channel_first(x[0])
    yield "out.actions", x[1]


def _aux(golden: Golden, tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    config = golden.load("finetune")[0]
    head_dim = config.video.head_dim
    dims = layers.rope_axis_dims(head_dim)
    ladder = np.concatenate([layers.ROPE_BASE ** (-np.arange(0, n, 2) / n) for n in dims])
    angle = np.arange(tensors["rope.freqs_cos"].shape[0])[:, None] * ladder
    yield "rope.freqs_cos", np.cos(angle)
    yield "rope.freqs_sin", np.sin(angle)
    cos, sin = layers.rope_table(tuple(golden.sidecar["video"]["token_grid"]), head_dim)
    yield "rope.grid_cos", cos
    yield "rope.grid_sin", sin
    yield "rope.out", layers.apply_rope(jnp.asarray(tensors["rope.in"]), cos, sin)
    yield "sinusoid.embedding_256", layers.timestep_embedding(jnp.asarray(tensors["sinusoid.t"]), 256)
    for form in ("finetune", "pretrain"):
        if f"action.pos_embedding_{form}" in tensors:
            config = model_config(golden.sidecar, form)
            yield f"action.pos_embedding_{form}", names.position_buffer(config, golden.chunk)


def _scheduler(golden: Golden, tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    for word, steps in (("train1000", 1000), ("infer10", 10), ("infer50", 50), ("default100", 100)):
        table = flow_matching.release_table(steps)
        for suffix, round_to in (("", np.float64), ("_bf16_as_f32", jnp.bfloat16)):
            yield f"{word}.sigmas{suffix}", table.astype(round_to)
            yield f"{word}.timesteps{suffix}", (np.float32(1000) * table).astype(round_to)
    for steps in (4, 10, 50):
        grid = flow_matching.time_grid(steps)
        yield f"euler{steps}.t", grid
        yield f"euler{steps}.dt", np.diff(grid)
        yield f"euler{steps}.timesteps", 1000 * grid[:-1]
        low = grid.astype(jnp.bfloat16)
        yield f"euler{steps}.t_bf16_as_f32", low
        yield f"euler{steps}.dt_bf16_as_f32", low[1:] - low[:-1]
        yield f"euler{steps}.timesteps_bf16_as_f32", (low[:-1] * jnp.bfloat16(1000))
    table = np.append(flow_matching.release_table(10), 0)
    sample, noise = tensors["step.sample"], tensors["step.noise"]
    for i in (0, 9):
        yield f"step.prev_sample_i{i}", sample + tensors["step.model_output"] * (table[i + 1] - table[i])
    yield "step.training_target", flow_matching.velocity(sample, noise)
    yield "step.add_noise_i3", flow_matching.interpolate(sample, noise, np.full(len(sample), table[3]))


CHECKS: dict[str, Callable[[Golden, Tensors], Iterator[tuple[str, np.ndarray]]]] = {
    "aux.safetensors": _aux,
    "fm_scheduler.safetensors": _scheduler,
    "forward_finetune.safetensors": _forward_finetune,
    "forward_pretrain.safetensors": _forward_pretrain,
    "train_step.safetensors": _train_step,
    "inference.safetensors": _inference,
}
"""Golden file -> function that recomputes its tensors."""
