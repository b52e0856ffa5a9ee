"""The demo model trained for one job: to imagine the video that given actions lead to.

  launch/local.sh experiments/world_model.py

Hardware and time: as the demo (two CPU cores and 8 GB of memory, or one GPU). Every example trains the video, none
the actions: expect an empty action loss and, in the evaluation, only the mode world_model to win.
"""

import ml_collections

from experiments import demo


def get_config() -> ml_collections.ConfigDict:
    """`demo` in the mode `world_model`."""
    config = demo.get_config()
    config.mode = "world_model"
    return config
