"""The demo model trained for one job: to tell the actions behind a given video.

  launch/local.sh experiments/inverse_dynamics.py

Hardware and time: as the demo (two CPU cores and 8 GB of memory, or one GPU). Every example trains the actions, none
the video: expect an empty video loss and, in the evaluation, only the mode inverse_dynamics to win.
"""

import ml_collections

from experiments import demo


def get_config() -> ml_collections.ConfigDict:
    """`demo` in the mode `inverse_dynamics`."""
    config = demo.get_config()
    config.mode = "inverse_dynamics"
    return config
