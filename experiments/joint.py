"""The demo model trained for one job: to imagine the future video and the actions behind it, together.

  launch/local.sh experiments/joint.py

Hardware and time: as the demo (two CPU cores and 8 GB of memory, or one GPU). Expect video and actions that belong to
each other. The evaluation also measures the four other modes; they are not trained here and should lose.
"""

import ml_collections

from experiments import demo


def get_config() -> ml_collections.ConfigDict:
    """`demo` in the mode `joint`."""
    config = demo.get_config()
    config.mode = "joint"
    return config
