"""How fast frame pairs become latent actions, and what that costs for the paper's corpus.

  python -m benchmarks.labelling --out=benchmarks/results/labelling.json [--turns=5]

Pairs of 256x256 go through DIS or DPFlow, DC-AE (f128c512) and the encoder to 14 numbers, weights drawn at random: the
time does not depend on them. Each stage is timed alone, in turns; whole ways follow from the sums. ptlflow's own DPFlow
runs in the same turns where it is installed (tests/dpflow_fixture.py says how).

The corpus is what the paper's table 12 lists below the web data, 1,012,602 items. It does not say how long they are:
`SECONDS` each, as EgoDex (829 hours in 338,000) and AgiBot World (2,976 hours in 1.0 million) have on average by their
own papers. Operations are counted in the traced program (products and convolutions, each twice for multiply and add).
TPUs were not at hand: their time is that count over `SHARE` of their peak, an assumption, not a measurement.
"""

import importlib.util
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.machine import cores, describe
from motus_jax import cli, flow_picture
from motus_jax.data.optical_flow import make_estimator
from motus_jax.models import flow_autoencoder, flow_network
from motus_jax.models.latent_action import LatentAction, LatentActionConfig
from motus_jax.training import flops

SIZE, BATCH = 256, 4
ITEMS, SECONDS, PAIRS_A_SECOND = 1_012_602, 10, 5
SHARE = 0.2
PEAKS = {"v5litepod-16": 16 * 197e12, "v5p-16": 8 * 459e12, "v6e-16": 16 * 918e12}
"""TPU slice -> bfloat16 operations a second of all its chips, by Google's documentation (a v5p slice's name counts
cores, two a chip)."""


def main(argv: Sequence[str]) -> None:
    """Measures and writes."""
    own = flags.FlagValues()
    out = flags.DEFINE_string("out", None, "JSON file of the result", flag_values=own)
    turns = flags.DEFINE_integer("turns", 5, "of all stages", lower_bound=1, flag_values=own)
    cli.parse_flags(argv, __doc__, own)
    stages, work = make_stages()
    for stage in stages.values():
        stage()  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    for turn in range(turns.value):
        for name, stage in stages.items():
            begun = time.perf_counter()
            stage()
            seconds[name].append((time.perf_counter() - begun) / BATCH)
        print(f"turn {turn + 1} of {turns.value}", file=sys.stderr, flush=True)
    each = {name: statistics.median(values) for name, values in seconds.items()}
    ways = {flow: 1 / (each[flow] + each["dc_ae and encoder"]) for flow in ("dis", "dpflow")}
    pairs = ITEMS * SECONDS * PAIRS_A_SECOND
    found = {
        "machine": describe(cores()),
        "device": jax.devices()[0].device_kind,
        "size": SIZE,
        "seconds_a_pair": {name: {"median": each[name], "turns": seconds[name]} for name in stages},
        "pairs_a_second": ways,
        "operations_a_pair": work,
        "corpus": {"items": ITEMS, "seconds_each": SECONDS, "pairs": pairs, "share_of_peak": SHARE,
                   "hours": {name: pairs * sum(work.values()) / (SHARE * peak) / 3600 for name, peak in PEAKS.items()},
                   "dis_core_hours": pairs * each["dis"] * 2 / 3600},
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if out.value:
        pathlib.Path(out.value).write_text(json.dumps(found, indent=1) + "\n")


def make_stages() -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """(name -> one call over a batch, name -> operations of one pair)."""
    random = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(random.integers(0, 256, (BATCH, 33, 33, 3)), 8, 1), 8, 2).astype(np.uint8)
    frames = np.ascontiguousarray(smooth[:, :SIZE, :SIZE]), np.ascontiguousarray(smooth[:, 3:, 2:][:, :SIZE, :SIZE])
    first, second = (jnp.asarray(frame, jnp.float32) / 255 for frame in frames)
    network = flow_network.FlowNetwork(flow_network.VARIANTS["dpflow"])
    autoencoder = flow_autoencoder.FlowAutoencoder(flow_autoencoder.VARIANTS["f128c512"])
    encoder = LatentAction(LatentActionConfig(hidden=1024, depth=2))
    params = [part.init(jax.random.key(k)) for k, part in enumerate((network, autoencoder, encoder))]
    flow = network.estimate(params[0], first, second)

    @jax.jit
    def encode(params: Any, flow: jax.Array) -> jax.Array:
        tokens = autoencoder.encode(params[1], 2 * flow_picture.to_picture(flow) - 1)
        return encoder.encode(params[2], tokens.reshape(len(flow), 4, -1))[0]

    dis, pool = make_estimator("dis"), ThreadPoolExecutor(2)

    def both() -> list[Any]:
        return list(pool.map(lambda k: dis(frames[0][k : k + 1], frames[1][k : k + 1]), range(BATCH)))

    stages = {
        "dis": both,
        "dpflow": lambda: jax.block_until_ready(network.estimate(params[0], first, second)),
        "dc_ae and encoder": lambda: jax.block_until_ready(encode(params, flow)),
    }
    if importlib.util.find_spec("ptlflow"):
        stages["dpflow, ptlflow"] = _theirs(frames)
    work = {
        "dpflow": flops.count(network.estimate, params[0], first, second) / BATCH,
        "dc_ae and encoder": flops.count(encode, params, flow) / BATCH,
    }
    return stages, work


def _theirs(frames: tuple[np.ndarray, np.ndarray]) -> Callable[[], Any]:
    from tests import dpflow_fixture

    model = dpflow_fixture.theirs(flow_network.VARIANTS["dpflow"])
    return lambda: dpflow_fixture.their_flow(model, *(np.float32(frame) / 255 for frame in frames))


if __name__ == "__main__":
    cli.run(main)
