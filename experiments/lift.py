"""A robot that does its task in the simulator: the demo model on many episodes of two tasks (simulator extra).

  python -m motus_jax.data record --robot=aloha_disturbed --tasks=lift_left,lift_right --episodes=800 \\
      --test_episodes=40 --seed=7 --out=datasets/lift
  python -m motus_jax.train --config=experiments/lift.py --workdir=runs/lift
  python -m motus_jax.evaluate --workdir=runs/lift --modes= --closed_loop --tasks=lift_left,lift_right --episodes=50

Which arm is meant says the instruction alone. Two cores of an AMD EPYC: training 15.7 minutes, then of 50 unseen starts
`vla` did 44 (76 to 94 %), `joint` 43 (74 to 93 %), `plan` with 8 candidates 42 (71 to 92 %); holding still and the mean
action 0 (0 to 7 %). Recorded and trained again on one core of an Intel Xeon: 48, 49 and 49 of 50, baselines 0. With
`--config.mode=vla --config.steps=2000`, `vla` did 50 (93 to 100 %).

The demo itself, with 53 episodes of each of these tasks, five tasks and no pushes, did none of 50. Which of these makes
the difference was not taken apart.
"""

import ml_collections

from experiments import demo


def get_config() -> ml_collections.ConfigDict:
    """`demo` on another recording, acting more than anything else."""
    config = demo.with_shared_components(demo.get_config())
    config.mode = "joint:1,vla:3,world_model:1,inverse_dynamics:1,video:1"
    config.data.path = "datasets/lift"
    config.steps = 2200
    config.batch_size = 24
    return config
