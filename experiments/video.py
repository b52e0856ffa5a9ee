"""The demo model trained for one job: to imagine the future video from the picture and the instruction.

  launch/local.sh experiments/video.py

Hardware and time: as the demo (two CPU cores and 8 GB of memory, or one GPU). Actions are noise in every example and
carry no loss: expect an empty action loss and, in the evaluation, only the mode video to win.
"""

import ml_collections

from experiments import demo


def get_config() -> ml_collections.ConfigDict:
    """`demo` in the mode `video`."""
    config = demo.get_config()
    config.mode = "video"
    return config
