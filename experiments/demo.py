"""Motus at demo size on simulated ALOHA episodes: all five modes from one model, on a laptop.

  launch/local.sh experiments/demo.py

Two CPU cores (AMD EPYC, no accelerator): 7 minutes from a fresh clone on fast ones, 5 of them training; 2 GiB. Slower
ones took twice to three times as long. Expected on 256 held-out chunks: action error (normalised MSE) 0.44 to 0.46 in
`vla` and 0.37 to 0.39 in `inverse_dynamics` (nearest neighbour 0.66 and 0.45), PSNR 25.4 to 25.8 dB in the video modes
(best baseline 22.1 dB); with another episode's actions the world model loses 0.6 dB.

What makes a small model learn within that time. Measured in short runs, on an earlier recording of the data: heads that
look near their own place at the start (world model after 400 steps 21.2 dB; without them 20.6 dB after 500, where
copying the frame gives 20.6); muon and noise levels shifted to where the sampler starts, changed together (action loss
at tau > 3/4 of 0.18 after 500 steps; AdamW with half the shift or less 0.52). Chosen by reasoning, not ablated: a
network that predicts clean data, because the noise of a patch must then not pass through its 128 channels. Four steps
of muon's orthogonalisation in place of five, its rate lowered as the updates grow, and 3500 training steps in place of
3800: errors of actions as before, 0.1 dB less in `world_model`.

Latent channels that weigh as they do in pixels, 24 instead of 48 evened out (`whitening` 0.5): after 400 steps the
world model has 23.63 dB instead of 23.48, and loses 0.20 dB instead of 0.08 with another episode's actions. A third of
the examples in `world_model` instead of a fifth, and a table without a pattern: changed together, not ablated.

Trained in `world_model` alone for 700 steps of 16, PSNR of all and of moving pixels: 26.04 and 21.05 dB; tokens that
know their place (`places`) 26.20 and 21.20; with it, and 32 channels of each place's own (`local`), 26.46 and 21.45;
with these in 1400 steps of 8 26.70 and 21.70. 48 channels, which decode better still, were as good as 32 in a run
without `places` only. The whole of the training was tried once with all of it.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The demo; every other experiment starts from it and changes what differs."""
    config = ml_collections.ConfigDict()
    config.system = "motus"  # or video_vae: its video encoder alone (experiments/demo_vae.py)
    config.seed = 0
    config.platform = ""  # cpu, gpu, tpu, or empty: JAX chooses
    config.steps = 3500
    config.batch_size = 8
    # One of the five modes, `unified`, or weights over them.
    config.mode = "joint:1,vla:2,world_model:3,inverse_dynamics:2,video:1"
    config.data = _data()
    config.model = ml_collections.ConfigDict({
        "variant": "demo",
        # Layers unrolled, nothing recomputed: 12 s more to compile, and each step a tenth faster.
        # `attention`: xla, or a kernel that its chip alone has: cudnn on GPUs (bfloat16), splash on TPUs.
        "overrides": {"depth": 4, "attention": "xla", "remat": "none", "scan_unroll": 3, "trim_last_layer": True,
                      "video": {"locality": 6.0, "latent_channels": 48, "places": True}},
        # What the network itself outputs; the sampler always integrates the velocity that follows from it.
        "prediction": {"video": "clean", "action": "clean"},
        "text_encoder": {"heads": 4, "head_dim": 16, "mlp": 128, "depth": 1},
        "vlm": {"kind": "compact", "heads": 4, "mlp": 256, "depth": 2},
        "video_codec": {"kind": "linear", "patch": 8, "group": 4, "whitening": 0.0, "local": True, "clips": 1500},
        "frozen": ("video_codec",),  # encoders that are not trained
    })
    # Rows (regex over parameters, folder of an import or of an earlier run); what none names starts fresh.
    config.init_from = ()
    # Rows (regex over kernels, rank): low-rank adapters beside them are trained in their place (LoRA); () is none.
    config.lora = ()
    config.noise = ml_collections.ConfigDict({
        "video": {"schedule": "shift", "parameter": 6.0},
        "action": {"schedule": "shift", "parameter": 4.0},
        "endpoint_probability": 0.02,
        # So many chunks show their first 1 to `longest` actions clean, as a robot that acts while it is answered has
        # committed them (experiments/realtime.py); 0: none.
        "prefix": {"probability": 0.0, "longest": 0},
    })
    # `weighting` clean: squared error of the clean data, in which no noise level outweighs the others.
    config.loss = ml_collections.ConfigDict(
        {"video": 1.0, "action": 1.5, "video_average": "future", "weighting": "clean"}
    )
    config.optimizer = ml_collections.ConfigDict({
        "name": "muon_polar",
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "clip": 1.0,
        "schedule": {"name": "warmup_cosine", "peak": 3e-3, "warmup": 50, "end": 3e-5},
        "lr_multipliers": (("motus/layers/.*kernel", 5.8), (".*", 1.0)),
        "weight_decay": ((".*(bias|scale|modulation|registers|position.*|embedding)$", 0.0), (".*", 0.01)),
        # Regexes over parameters. None in `trained`: all of them or, with LoRA, its adapters; `frozen` never are.
        "trained": (),
        "frozen": (),
        "frozen_dtype": "float32",  # or bfloat16: what matrices of layers that are not trained are kept in
        "mu_dtype": "float32",  # or bfloat16: what the first moment is kept in
        "ema": 0.995,  # decay of the averaged copy that is evaluated and sampled; 0 keeps none
        "accumulate": 1,
        # Regexes over the state: what waits in the host's memory between updates, e.g. opt_state/.*/(mu|nu)/.*
        "offload": (),
    })
    config.mesh = ml_collections.ConfigDict({"replica": 1, "fsdp": -1, "tensor": 1})
    config.sampling = ml_collections.ConfigDict({
        "video_steps": 2, "action_steps": 4, "solver": "euler", "grid_shift": 5.0,
        # What makes a sampler faster and no longer exact (docs/serving.md); these are off.
        "reuse": 0.0,  # velocities that change by less than this share are taken again in the next step
        "action_tail": 0,  # joint steps, after which the actions go on alone
        "dtype": "",  # of the experts' products: float32 or bfloat16; empty: the model's
        "weights": "",  # or int8: what a policy keeps the layers' matrices in
    })
    config.checkpoint = ml_collections.ConfigDict({"every": 500, "keep": 2})
    config.log_every = 20
    config.validate_every = 500
    config.stall_seconds = 900.0  # without a step, after which the stacks of all threads are written; 0: never
    config.profile = ml_collections.ConfigDict({"first": 20, "steps": 0})  # steps that a profiler's trace is taken of
    return config


def with_shared_components(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The smaller video codec, whose components all places of the picture share, and the batch that went with it.

    It is quicker to fit and to run and does not mind cameras that are elsewhere in every source. The demo had it
    before, and muon with five steps; the figures of experiments that take it were measured with both.
    """
    config.batch_size = 16
    config.optimizer.update(name="muon", lr_multipliers=(("motus/layers/.*kernel", 7.0), (".*", 1.0)))
    config.model.overrides.video.update(latent_channels=24, places=False)
    config.model.video_codec.update(local=False, clips=64)
    return config


def _data() -> ml_collections.ConfigDict:
    """Where the examples come from and what they are."""
    return ml_collections.ConfigDict({
        "kind": "lerobot",  # format (motus_jax.data.sources); `options` are its own
        "path": "datasets/aloha_sim",
        "options": {"latents": ""},  # latents: folder of `python -m motus_jax.data label`
        "episodes": 0,  # of the training split, one out of each of as many equal stretches; 0: all
        "hide_actions": False,  # whether examples carry no actions, as those of videos
        "cameras": ("top", "left_wrist", "right_wrist"),
        "image_size": (112, 96),  # height, width of the tiled picture
        "action_hz": 10.0,
        "video_hz": 5.0,
        "chunk": 8,
        "video_frames": 4,
        "action_space": "delta",
        "normalisation": "meanstd",
        "action_dim": 14, "state_dim": 14,
        "instruction_length": 64,
        "text_tokenizer": "bytes",  # or a folder with umT5's tokenizer.json
        "chat": "",  # for Qwen3-VL: train or deploy, with chat_length tokens and chat_tokenizer's tokenizer.json
        "chat_length": 0,
        "chat_tokenizer": "",
        "prompt_template": "plain",
        "augment": {},  # random changes of the pictures in training: crop, brightness, contrast, saturation
        "features": "",  # folder of `python -m motus_jax.data encode`: read in place of the videos
        # A mixture: name -> what differs from the keys above; `layers` weighs layers of the pyramid against each other.
        "sources": {},
        "layers": {},
        "broken_limit": 0.01,  # share of examples that may be broken before training stops
        "cache_gib": 2.0,
        "threads": 2,  # that assemble batches; with workers, in each of so many processes
        "workers": 0,
        "prefetch": 4,
    })
