"""What XLA is told about the functions that a run compiles."""

import os

import jax


def options(platform: str | None = None) -> dict[str, int | str] | None:
    """XLA's options for the functions of a run on a platform, by default the one that JAX has chosen.

    On CPUs the default level 3 compiles for half as long again as level 2 (22 s and 15 s for the demo's gradient on two
    cores) and the program is no faster; and products and sums stay with XLA and Eigen: YNNPACK, which takes them over
    by default, needs a third longer for the demo's. On TPUs sums of gradients are left whole: cut into one product for
    each device, as XLA does above this many MiB, they read activations again and again. What
    `XLA_FLAGS` says goes before.
    """
    known = {"cpu": {"xla_backend_optimization_level": 2, "xla_cpu_experimental_ynn_fusion_type": ""},
             "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}}  # fmt: skip
    found, said = known.get(platform or jax.default_backend()), os.environ.get("XLA_FLAGS", "")
    return found and {name: value for name, value in found.items() if f"--{name}=" not in said}
