"""The demo model trained to continue actions that the robot is already committed to (training-time real-time chunking).

  launch/local.sh experiments/realtime.py
  python -m motus_jax.serve --workdir=runs/realtime --modes=vla --prefix=conditioned

Hardware and time: as the demo (two CPU cores and 8 GB of memory, or one GPU). Half of the chunks whose actions are
denoised show their first one to four actions clean, with noise level 0, and train the others. At 10 actions a second
that covers answers that take up to 0.4 s. It was not trained to its end yet: what it gains with a prefix and costs
without one, `python -m benchmarks.chunking` will tell.
"""

import ml_collections

from experiments import demo


def get_config() -> ml_collections.ConfigDict:
    """`demo` with committed prefixes in training."""
    config = demo.get_config()
    config.noise.prefix.update(probability=0.5, longest=4)
    return config
