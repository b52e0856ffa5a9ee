"""The demo model trained to continue actions that the robot is already committed to (training-time real-time chunking).

  launch/local.sh experiments/realtime.py
  python -m motus_jax.serve --workdir=runs/realtime --modes=vla --prefix=conditioned

`experiments/realtime.py:lift` does the same to `experiments/lift.py`, whose head says how to record its data.

Hardware and time: as those two. Half of the chunks whose actions are denoised show their first one to four actions
clean, with noise level 0, and train the others. At 10 actions a second that covers answers that take up to 0.4 s.
`lift` was trained on one core of an AMD EPYC in 25 minutes: with answers that are 0.4 s late, `vla` does 85 of 100
unseen starts with the prefix, 79 without, 88 without a delay, and chunks join with half the jump (docs/realtime.md).
The demo's was not trained to its end yet: `python -m benchmarks.chunking` will tell what it gains.
"""

import ml_collections

from experiments import demo, lift

SIZES = {"demo": demo.get_config, "lift": lift.get_config}


def get_config(size: str = "demo") -> ml_collections.ConfigDict:
    """`demo` or `lift` with committed prefixes in training."""
    if size not in SIZES:
        raise ValueError(f"expected one of {', '.join(SIZES)} after the colon, found {size!r}")
    config = SIZES[size]()
    config.noise.prefix.update(probability=0.5, longest=4)
    return config
