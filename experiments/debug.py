"""The smallest run of the real thing: a few steps of a tiny model on the demo's data, for tests and first looks.

  python -m motus_jax.train --config=experiments/debug.py --workdir=runs/debug     CPU, under a minute
"""

import ml_collections

from experiments import demo


def get_config() -> ml_collections.ConfigDict:
    """`demo` with the `debug` variant, a short clip and 8 steps."""
    config = demo.with_shared_components(demo.get_config())
    config.steps = 8
    config.batch_size = 4
    config.data.chunk = 8
    config.data.video_frames = 4
    config.model.variant = "debug"
    config.model.overrides.update(remat="products", scan_unroll=1, trim_last_layer=False)  # quick to compile
    config.model.text_encoder = ml_collections.ConfigDict({"heads": 2, "head_dim": 8, "mlp": 32, "depth": 1})
    config.model.vlm = ml_collections.ConfigDict({"kind": "compact", "heads": 2, "mlp": 32, "depth": 1, "patch": 16})
    config.optimizer.schedule.warmup = 2
    config.checkpoint.every = 4
    config.log_every = 2
    config.validate_every = 4
    return config
