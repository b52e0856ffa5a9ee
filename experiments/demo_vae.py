"""A small Wan2.2 VAE on the demo's video, from scratch: the video encoder of `experiments/demo_wan.py`.

  python -m motus_jax.train --config=experiments/demo_vae.py --workdir=runs/demo_vae

The release's architecture at a tenth of its width, on squares cut out of the clips.
"""

import ml_collections

from experiments import demo


def get_config() -> ml_collections.ConfigDict:
    """`demo` data, and nothing but the video encoder."""
    config = demo.with_shared_components(demo.get_config())
    config.system = "video_vae"
    config.steps = 600
    config.batch_size = 8
    config.data.image_size = (128, 96)
    config.model.overrides.video.latent_channels = 24
    config.model.video_codec = ml_collections.ConfigDict(
        {"kind": "wan", "width": 16, "decoder_width": 16, "multipliers": (1, 2, 4, 4), "blocks": 1}
    )
    config.loss = ml_collections.ConfigDict({"moments": 0.01, "crop": 64})
    config.optimizer.lr_multipliers = ((".*kernel", 7.0), (".*", 1.0))
    config.optimizer.weight_decay = ((".*", 0.0),)
    config.optimizer.schedule.peak = 3e-3
    config.validate_every = 200
    return config
