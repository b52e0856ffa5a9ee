"""All six layers of the data pyramid at demo size, from six sources in three formats, on a laptop.

  python -m motus_jax.data pyramid --out=datasets/pyramid        makes the data (simulator extra)
  python -m motus_jax.train --config=experiments/pyramid_small.py --workdir=runs/pyramid_small

Two sources are videos without states and actions, one has no words, one is another robot with 4 action dims. What a
source lacks is masked: videos train `video` alone, whatever mode is drawn. `metrics.jsonl` has the losses of every
source and layer. Evaluation takes the target robot, layer 6; `--source=NAME` takes another.
"""

import ml_collections

from experiments import demo

ROOT = "datasets/pyramid"
THREE = ("top", "left_wrist", "right_wrist")


def get_config() -> ml_collections.ConfigDict:
    """`demo` on a mixture of six sources."""
    config = demo.with_shared_components(demo.get_config())
    config.steps = 3800
    videos = {"kind": "videos", "cameras": ("video",), "action_space": "absolute", "normalisation": "none"}
    config.data.sources = ml_collections.ConfigDict({
        "web": {**videos, "path": f"{ROOT}/web", "layer": 1},
        "egocentric": {**videos, "path": f"{ROOT}/egocentric", "layer": 2},
        "synthetic": {
            "kind": "robotwin", "path": f"{ROOT}/synthetic", "layer": 3, "options": {"fps": 10.0},
            "cameras": ("head_camera", "left_camera", "right_camera"), "embodiment": "aloha",
        },
        "motion": {"path": f"{ROOT}/motion", "layer": 4, "cameras": THREE, "embodiment": "aloha"},
        "sawyer": {"path": f"{ROOT}/sawyer", "layer": 5, "cameras": ("front", "wrist")},
        "target": {"path": f"{ROOT}/target", "layer": 6, "cameras": THREE, "embodiment": "aloha"},
    })  # fmt: skip
    # Weights of the layers; the sources of a layer share its weight by their own (`weight`).
    config.data.layers = ml_collections.ConfigDict({"1": 0.5, "2": 1.0, "3": 1.0, "4": 1.0, "5": 1.0, "6": 3.0})
    return config
