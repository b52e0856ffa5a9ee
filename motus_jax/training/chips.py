"""What accelerators can do, by their makers' documentation."""

import dataclasses

GB, TERA = 1e9, 1e12


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them.

    Attributes:
      name: what people call it.
      peak: bfloat16 operations a second, dense.
      memory: bytes a second from its own memory.
      link: bytes a second that it can receive from its neighbours: half of the bidirectional figure.
      network: bytes a second that it can receive from another slice: its share of the host's cards. The documentation
        gives it for v5e only (6.4 Tbit/s for 256 chips); the others are assumed twice as well off.
      host: bytes a second that it copies from or to its host's memory: what PCIe has one way. For TPUs "How to scale
        your model" (jax-ml.github.io/scaling-book) gives about 15 GB/s, for v6e 32.
      per_host: devices of one host.
    """

    name: str
    peak: float
    memory: float
    link: float
    network: float = 6.25 * GB
    per_host: int = 4
    host: float = 15 * GB


CHIPS: dict[str, Chip] = {
    "TPU v4": Chip("v4", 275 * TERA, 1228 * GB, 300 * GB),
    "TPU v5 lite": Chip("v5e", 197 * TERA, 819 * GB, 200 * GB, 3.125 * GB, 8),
    "TPU v5": Chip("v5p", 459 * TERA, 2765 * GB, 600 * GB),
    "TPU v6 lite": Chip("v6e", 918 * TERA, 1638 * GB, 400 * GB, per_host=8, host=32 * GB),
    # Two devices a chip.
    "TPU7x": Chip("tpu7x", 2307 / 2 * TERA, 7380 / 2 * GB, 300 * GB, 3.125 * GB, 8),
    "NVIDIA A100-SXM4-80GB": Chip("A100", 312 * TERA, 2039 * GB, 300 * GB, per_host=8, host=32 * GB),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989 * TERA, 3352 * GB, 450 * GB, per_host=8, host=64 * GB),
    "NVIDIA H200": Chip("H200", 989 * TERA, 4800 * GB, 450 * GB, per_host=8, host=64 * GB),
}
"""`device_kind` -> chip. One that is not here trains as well; what share of its peak a run reaches is then not said."""
