"""The demo model trained as the paper does it: video and actions get independent noise levels.

  launch/local.sh experiments/unified.py

Hardware and time: as the demo (two CPU cores and 8 GB of memory, or one GPU). Each of the five modes is a corner or
an edge of the square of both noise levels. The demo spends all its steps on those edges, this spends most inside:
expect all five modes to work, after more steps than the demo needs.
"""

import ml_collections

from experiments import demo


def get_config() -> ml_collections.ConfigDict:
    """`demo` in the mode `unified`."""
    config = demo.get_config()
    config.mode = "unified"
    return config
