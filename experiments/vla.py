"""The demo model trained for one job: to act on the current picture, the state and the instruction.

  launch/local.sh experiments/vla.py

Hardware and time: as the demo (two CPU cores and 8 GB of memory, or one GPU). Every example trains the actions, none
the video: expect an empty video loss and, in the evaluation, only the mode vla to win.
"""

import ml_collections

from experiments import demo


def get_config() -> ml_collections.ConfigDict:
    """`demo` in the mode `vla`."""
    config = demo.get_config()
    config.mode = "vla"
    return config
