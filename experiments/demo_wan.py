"""The demo with the architectures of the pretrained parts, small and from scratch: Wan2.2 VAE, umT5 and Qwen3-VL.

  launch/local.sh experiments/demo_wan.py

That trains the VAE first (`experiments/demo_vae.py`).

Everything that runs at full size runs here: the causal VAE's latents, chat tokens around the picture, DeepStack, three
axes of rotary positions. `experiments/demo.py` learns more in the same time, because its stand-ins cost less.
"""

import ml_collections

from experiments import demo, demo_vae


def get_config() -> ml_collections.ConfigDict:
    """`demo` with other encoders, of which the VAE comes from its own run and is frozen."""
    config = demo.with_shared_components(demo.get_config())
    config.steps = 1200
    vae = demo_vae.get_config()
    config.data.image_size = vae.data.image_size
    config.data.instruction_length = 48
    config.data.text_tokenizer = "experiments/tokenizers/umt5"
    config.data.chat = "train"
    config.data.chat_length = 48
    config.data.chat_tokenizer = "experiments/tokenizers/qwen"
    config.model.overrides.video = vae.model.overrides.video
    config.model.overrides.video.patch = (1, 1, 1)
    config.model.video_codec = vae.model.video_codec
    config.model.text_encoder.vocabulary = 132
    config.model.vlm = ml_collections.ConfigDict({
        "kind": "qwen3_vl",
        "vision": {"depth": 3, "width": 64, "heads": 4, "mlp": 128, "taps": (0, 1), "positions": 8},
        "vocabulary": 419, "depth": 3, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp": 128, "sections": (4, 2, 2),
        "image_token": 418,
    })  # fmt: skip
    config.init_from = (("video_codec/.*", "runs/demo_vae"),)
    return config
