"""The demo model trained to act only, on many episodes of two tasks: for the simulator (simulator extra).

  python -m motus_jax.data record --robot=aloha_disturbed --tasks=lift_left,lift_right --episodes=800 \\
      --test_episodes=40 --seed=7 --out=datasets/lift
  python -m motus_jax.train --config=experiments/lift.py --workdir=runs/lift
  python -m motus_jax.evaluate --workdir=runs/lift --modes=vla --closed_loop --policies=vla --tasks=lift_left,lift_right

Which arm is meant says the instruction alone.
"""

import ml_collections

from experiments import demo


def get_config() -> ml_collections.ConfigDict:
    """`demo` in the mode `vla` on another recording."""
    config = demo.get_config()
    config.mode = "vla"
    config.data.path = "datasets/lift"
    config.steps = 2800
    return config
