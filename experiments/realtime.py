"""The demo model trained to continue actions that the robot is already committed to (training-time real-time chunking).

  launch/local.sh experiments/realtime.py
  python -m motus_jax.serve --workdir=runs/realtime --modes=vla --prefix=conditioned

`experiments/realtime.py:lift` does the same to `experiments/lift.py`, whose head says how to record its data.

Hardware and time: as those two. Half of the chunks whose actions are denoised show their first one to four actions
clean, with noise level 0, and train the others. At 10 actions a second that covers answers that take up to 0.4 s.
`lift` was trained on one core of an AMD EPYC in 25 minutes: with answers that are 0.4 s late, `vla` does 85 of 100
unseen starts with the prefix, 79 without, 88 without a delay, and chunks join with half the jump (docs/realtime.md).
The demo's took 14 minutes on one core of an Intel Xeon, evaluation included: four modes beat, `vla` with 0.49 (the demo
0.44 there), inverse dynamics with 0.41 beside 0.45 is undecided. On such data, of which much is random play, prefixes
make chunks join and cost error in open loop.
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
