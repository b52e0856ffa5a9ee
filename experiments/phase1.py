"""Phase 1: the video expert learns robots' futures from a picture and an instruction (paper, section 5).

  python -m motus_jax.train --config=experiments/phase1.py --workdir=runs/phase1 --config.data.path=DATASET
  python -m motus_jax.train --config=experiments/phase1.py:demo --workdir=runs/phase1_demo      on a laptop

Full size starts from Wan2.2-TI2V-5B, imported once:

  python -m motus_jax.convert import --source=FOLDER --kind=wan --workdir=runs/wan

The other two experts stand by, untrained and without tokens. The paper gives the rate and the batch; data are all
layers with video, and how long it lasts is ours.
"""

import ml_collections

from experiments import phase3


def get_config(size: str = "full") -> ml_collections.ConfigDict:
    """`phase3` with the video expert alone; `full`, `demo` or `lift`."""
    config = phase3.base(size)
    config.mode = "video"
    config.model.overrides.video_only = True
    config.optimizer.frozen = ("motus/(layers/)?(action|understanding)/.*",)
    if size != "full":
        config.steps = 800
        config.data.episodes, config.data.hide_actions = 0, True
        config.init_from = ()
        return config
    config.init_from = (("motus/(layers/)?video/.*", "runs/wan"), *phase3.ENCODERS)
    config.optimizer.schedule.peak = 8e-5
    return config
