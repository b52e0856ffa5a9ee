"""The training step of an experiment, compiled for accelerators that are not there.

TPUs need `pip install libtpu`, GPUs JAX's CUDA plugin; neither needs its chip.
"""

import dataclasses
import math
import os
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding

from motus_jax.errors import UserError
from motus_jax.models.latent_system import LatentActionSystem
from motus_jax.models.system import System
from motus_jax.models.vae_system import VaeSystem
from motus_jax.training import flops, offload, program, sharding, step
from motus_jax.training.chips import CHIPS
from motus_jax.training.plan import Plan, make_plan
from motus_jax.weights import tree

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # nothing asks a metadata server for chips that are not there
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
SYSTEMS = {"motus": System, "video_vae": VaeSystem, "latent_action": LatentActionSystem}
"""`config.system` -> what is trained."""
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 8 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
"""
"""What XLA asks of a GPU, as its protocol buffer's text."""
MEMORY = {"NVIDIA H100 80GB HBM3": 84978434048}
"""Bytes of the devices whose compiler does not refuse what does not fit."""
RESERVED = 0.05
"""Share of these that a program must leave free."""
UNTIMED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""Without the GPU no tiles can be tried out: products are left to cuBLAS."""
NO_ROOM = (
    re.compile(r"[Uu]sed ([\d.]+)([MGT]) of ([\d.]+)([MGT]) hbm"),
    re.compile(r"required for HLO temporaries \(([\d.]+)([MGT])\) exceeds available HBM \(([\d.]+)([MGT])\)"),
)
"""What the TPU's compiler says of a program that does not fit: when all is laid out, and before it tries to."""
UNITS = {"M": 2**20, "G": 2**30, "T": 2**40}


def devices(topology: str, slices: int = 1) -> Sequence[jax.Device]:
    """The devices of a slice that is not there, or of several: `v5p:4x4x4`; or of a host with GPUs: `h100:8`.

    To be called before JAX looks for devices; what is there is then left alone.

    Raises:
      UserError: no such slice, or no compiler for it.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    name, _, shape = topology.partition(":")
    try:
        if name == "h100":
            layout = {"target_config": H100, "topology": f"{slices}x1x{shape or 1}"}
            return topologies.get_topology_desc(platform="cuda", topology_name="h100", **layout).devices
        if name in TPUS:
            more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
            if name == "v4":  # else a device is a core, of which a chip has two; meshes are laid over chips
                more["chip_config_name"] = "megacore"
            return topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices
    except (RuntimeError, ValueError) as error:  # JaxRuntimeError is a RuntimeError
        reason = " ".join(str(error).split())
        raise UserError(f"--topology={topology}: no compiler for it, or no such slice: {reason[:200]}") from error
    known = f"{', '.join(TPUS)} with a shape, as v5p:4x4x4, or h100:8"
    raise UserError(f"--topology: expected one of {known}; found {topology!r}")


@dataclasses.dataclass(frozen=True)
class Step:
    """A step that is ready to be compiled."""

    lowered: Any
    plan: Plan
    mesh: Mesh
    operations: float
    useful: float


def lower(
    config: ml_collections.ConfigDict, chips: Sequence[jax.Device], *, features: bool, mesh: Mesh | None = None
) -> Step:
    """The step of a run on these devices.

    Args:
      features: whether batches hold what frozen encoders made, as after `python -m motus_jax.data encode`: no encoder
        is on the devices then.
      mesh: by default that of `config.mesh` over all of them.

    Returns:
      The step, with its operations over all devices: as it is traced, and as a model without rematerialisation has.

    Raises:
      UserError: the config does not fit the devices.
    """
    mesh = mesh or sharding.make_mesh(config.mesh, chips)
    sharding.check_batch(config.batch_size, config.optimizer.accumulate, mesh)
    system = SYSTEMS[config.system](config)
    frozen = {} if features else {**system.frozen_shapes(), **system.fitted_shapes()}
    batch = placed(batch_shapes(config, system, features=features), NamedSharding(mesh, sharding.BATCH))
    key = placed(jax.eval_shape(lambda: jax.random.key(0)), sharding.replicated(mesh))
    plan = make_plan(config, system, mesh)
    train_step = step.make_train_step(system, plan.optimizer, config.optimizer, mesh, plan.placements)
    base = tree.overlay(sharding.targets(frozen, mesh, sharding.FROZEN_RULES), plan.base)
    with jax.set_mesh(mesh):
        traced = train_step.trace(plan.state, base, batch, key)
        useful = flops.of_training(SYSTEMS[config.system], config, plan.state["params"], base, batch, key)
        return Step(traced.lower(), plan, mesh, flops.operations(traced.jaxpr.jaxpr), useful)


def traced(config: ml_collections.ConfigDict, chips: Sequence[jax.Device], *, features: bool) -> dict[str, Any]:
    """Of what `measure` finds what is known before compiling: the devices, the state, the operations."""
    return _known(config, lower(config, chips, features=features), features)


def measure(
    config: ml_collections.ConfigDict, chips: Sequence[jax.Device], *, features: bool, mesh: Mesh | None = None,
    text: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compiles one step.

    Args:
      features, mesh: see `lower`.
      text: file that receives the program's text.

    Returns:
      JSON: the devices and the mesh; bytes of one device by what they are for, or how much is missing; of it in the
      host's memory; operations; bytes that collectives move, and copies between device and host; and how long the step
      takes at least (`roofline`). Bytes and operations are of one device.
    """
    begun = time.monotonic()
    made = lower(config, chips, features=features, mesh=mesh)
    found = _known(config, made, features) | {"lower_seconds": round(time.monotonic() - begun, 1)}
    kind = found["device"]
    begun = time.monotonic()
    try:
        compiled = made.lowered.compile(UNTIMED if kind in MEMORY else None)
    except jax.errors.JaxRuntimeError as error:
        sizes = missing_room(str(error))
        if not sizes:
            raise
        found |= {"fits": False, "used_bytes": sizes[0], "limit_bytes": sizes[1]}
        return found | {"compile_seconds": round(time.monotonic() - begun, 1), "advice": advice(found)}
    found["compile_seconds"] = round(time.monotonic() - begun, 1)
    memory = compiled.memory_analysis()
    sizes = {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "new_output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
    }
    found |= sizes | {"used_bytes": sum(sizes.values()), "peak_bytes": memory.peak_memory_in_bytes}
    found["host_bytes"] = memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes
    limit = MEMORY.get(kind)
    found["fits"] = limit is None or found["used_bytes"] <= limit * (1 - RESERVED)
    if not found["fits"]:
        found["limit_bytes"] = round(limit * (1 - RESERVED))
        return found | {"advice": advice(found)}
    written = compiled.as_text()
    if text:
        pathlib.Path(text).write_text(written)
    read = program.Program(written, found["devices"] // found["slices"])
    collectives = read.collectives()
    found["collectives"] = program.by_kind(collectives)
    found["memory_traffic_bytes"] = read.memory_traffic()
    found["host_traffic_bytes"] = read.host_traffic()
    return found | ({"roofline": roofline(found)} if kind in CHIPS else {})


def missing_room(message: str) -> tuple[int, int] | None:
    """Bytes that a refused program needs and has, by the compiler's message; None if that is about something else."""
    for pattern in NO_ROOM:
        if found := pattern.search(message):
            used, limit = (round(float(found[i]) * UNITS[found[i + 1]]) for i in (1, 3))
            return used, limit
    return None


def _known(config: ml_collections.ConfigDict, made: Step, features: bool) -> dict[str, Any]:
    held = jax.tree.leaves((made.plan.state, made.plan.base))
    away = [leaf for leaf in held if offload.in_host_memory(leaf)]
    devices = made.mesh.devices.flat
    return {
        "device": devices[0].device_kind,
        "devices": made.mesh.size,
        "slices": made.mesh.size // sum(getattr(one, "slice_index", 0) == 0 for one in devices),
        "mesh": dict(made.mesh.shape),
        "batch_size": config.batch_size,
        "batch_of_one_device": config.batch_size / (made.mesh.shape["replica"] * made.mesh.shape["fsdp"]),
        "accumulate": config.optimizer.accumulate,
        "remat": config.model.overrides.remat if "overrides" in config.model else "",
        "optimizer": config.optimizer.name,
        "features": features,
        "trained_parameters": _count(made.plan.state["params"]),
        "frozen_parameters": _count(made.plan.base),
        "state_bytes": sharding.bytes_of_one_device(held) - sharding.bytes_of_one_device(away),
        "host_state_bytes": sharding.bytes_of_one_device(away),
        "model_operations": made.useful / made.mesh.size,
        "operations": made.operations / made.mesh.size,
    }


def roofline(found: Mapping[str, Any]) -> dict[str, float]:
    """The least time of a step, in seconds, by what limits it; of what `measure` found.

    Assumed: products at the peak that the documentation gives, memory and links at their documented rates, a ring for
    each collective, copies from and to the host one after another. `overlapped` lets all of it happen at once,
    `one_after_another` nothing.
    """
    chip = CHIPS[found["device"]]
    parts = {
        "products": found["operations"] / chip.peak,
        "memory": found["memory_traffic_bytes"] / chip.memory,
        "links": sum(row["slice_bytes"] for row in found["collectives"].values()) / chip.link,
        "network": sum(row["network_bytes"] for row in found["collectives"].values()) / chip.network,
        "host": found["host_traffic_bytes"] / chip.host,
    }
    least, most = max(parts.values()), sum(parts.values())
    useful = found["model_operations"] / chip.peak
    examples = found["batch_size"] / found["devices"]
    return parts | {
        "overlapped": least,
        "one_after_another": most,
        "mfu_at_most": useful / least,
        "mfu_one_after_another": useful / most,
        "examples_per_second_and_device_at_most": examples / least,
    }


def advice(found: Mapping[str, Any]) -> str:
    """What to try where a step does not fit, computed from what it needs."""
    room, state = found["limit_bytes"], found["state_bytes"]
    rest = found["used_bytes"] - state
    if state > 0.9 * room:
        chips = found["devices"] * math.ceil(state / (0.5 * room))
        return (f"the state alone takes {_gib(state)} of {_gib(room)} GiB of each device: try config.mesh.fsdp over at "
                f"least {chips} devices")  # fmt: skip
    fitting = int(found["batch_of_one_device"] / found["accumulate"] * 0.9 * (room - state) / rest)
    parts = []
    if found["remat"] not in ("full", ""):
        parts.append("config.model.overrides.remat=full")
    if fitting >= 1:
        pieces = math.ceil(found["batch_of_one_device"] / fitting)
        batch = fitting * round(found["batch_size"] / found["batch_of_one_device"])
        parts += [f"config.optimizer.accumulate={pieces}", f"config.batch_size={batch}"]
    parts.append(f"{2 * found['devices']} devices")
    return f"needs {_gib(found['used_bytes'])} of {_gib(room)} GiB: try {' or '.join(parts)}"


def batch_shapes(config: ml_collections.ConfigDict, system: Any, *, features: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch (schema: `motus_jax.data.example`); as features give it, in what encoders compute in."""
    data, b = config.data, config.batch_size

    def shape(dtype: Any, *rest: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((b, *rest), dtype)

    given = {
        "state": shape(jnp.float32, data.state_dim),
        "actions": shape(jnp.float32, data.chunk, data.action_dim),
        "action_mask": shape(jnp.bool_, data.chunk, data.action_dim),
        "instruction": shape(jnp.int32, data.instruction_length),
        "instruction_mask": shape(jnp.bool_, data.instruction_length),
    }
    seen = given | {"frames": shape(jnp.uint8, 1 + data.video_frames, *data.image_size, 3)}
    if data.chat:
        seen |= {
            "chat": shape(jnp.int32, data.chat_length),
            "chat_mask": shape(jnp.bool_, data.chat_length),
            "chat_positions": shape(jnp.int32, data.chat_length, 3),
        }
    if data.get("flow"):
        seen["flow"] = shape(jnp.float16, *data.image_size, 2)
    if not features:
        return seen
    frozen = {**system.frozen_shapes(), **system.fitted_shapes()}
    found = jax.eval_shape(system.chunk_features, frozen, seen)
    if "text_encoder" in frozen:
        found["text_states"] = jax.eval_shape(system.text_states, frozen, seen)
    for part, name in (("video_codec", "latents"), ("text_encoder", "text_states"), ("vlm", "vlm_states")):
        if name in found:
            found[name] = jax.ShapeDtypeStruct(found[name].shape, system.encoder_dtype(part))
    return given | found


def placed(shapes: Any, place: NamedSharding) -> Any:
    """The same shapes, all with one sharding."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes)


def _count(leaves: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(leaves))


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f}"
