"""The latent-action model: optical flow of frame pairs becomes 14 numbers, aligned with a few real actions.

  python -m motus_jax.train --config=experiments/latent_action.py --workdir=runs/latent_action       demo size, on CPU
  python -m motus_jax.train --config=experiments/latent_action.py:full --workdir=runs/latent_action

By default the demo's data and a small autoencoder trained along. As in the paper nine tenths of what is drawn is video
without actions, and one tenth, the target robot's 32 episodes that `experiments/phase3.py:demo` trains on and episodes
of task-agnostic motion, shows them.
`lift` is the same of the recording of `experiments/lift.py`. `full` is the paper's: 256x256 pictures, DPFlow, the
public DC-AE (f128c512, four tokens of 512) kept as it is, loss weights lambda 1 and beta 1e-6; both networks are first
imported,

  python -m motus_jax.convert import --source=FILE --kind=dpflow --workdir=runs/dpflow
  python -m motus_jax.convert import --source=FOLDER --kind=dc_ae --workdir=runs/dc_ae

and `config.data.sources` is to name the corpus, in the weights of the demo's. Steps, batch, learning rate and the form
of the reconstruction are ours: the paper has none.
"""

import ml_collections

from experiments import demo, lift, phase3

SIZES = ("demo", "lift", "full")


def get_config(size: str = "demo") -> ml_collections.ConfigDict:
    """`demo`, `lift` or `full`."""
    if size not in SIZES:
        raise ValueError(f"expected one of {', '.join(SIZES)} after the colon, found {size!r}")
    few = phase3.FEW.get(size, phase3.FEW["demo"])
    config = (lift if size == "lift" else demo).get_config()
    config.system = "latent_action"
    config.mode = "video"
    config.data.update({"video_frames": 1, "chunk": 1, "action_hz": 5.0, "video_hz": 5.0, "image_size": (64, 64)})
    config.data.flow = "dis"
    config.data.sources = ml_collections.ConfigDict({
        "video": {"path": config.data.path, "hide_actions": True, "embodiment": "aloha", "layer": 5},
        "motion": {"path": "datasets/aloha_motion", "embodiment": "aloha", "layer": 4},
        "target": {"path": config.data.path, "episodes": few, "embodiment": "aloha", "layer": 6},
    })
    config.data.layers = ml_collections.ConfigDict({"4": 0.5, "5": 9.0, "6": 0.5})
    config.model = ml_collections.ConfigDict({
        "flow_network": "",  # or dpflow: flow is estimated inside the step, and `data.flow` is empty
        "flow_autoencoder": {"variant": "demo", "tuned": True},
        "latent_action": {"dim": 14, "hidden": 256, "depth": 1},
    })  # fmt: skip
    config.loss = ml_collections.ConfigDict({
        "picture": 5.0, "form": "l1", "motion": 10.0, "tokens": 0.1, "autoencoder": 5.0, "action": 1.0,
        "head": "mean", "kl": 1e-6,
    })  # fmt: skip
    config.steps, config.batch_size = 1500 if size == "demo" else 1000, 32
    config.validate_every = 500
    config.optimizer.name = "adamw"
    config.optimizer.lr_multipliers = ((".*", 1.0),)
    config.optimizer.weight_decay = ((".*/kernel", 0.01), (".*", 0.0))
    config.optimizer.schedule.update({"peak": 5e-4, "warmup": 50, "end": 5e-6})
    if size == "full":
        config.data.update({"image_size": (256, 256), "workers": 8})
        config.data.augment = ml_collections.ConfigDict()
        config.data.flow, config.model.flow_network = "", "dpflow"
        config.model.flow_autoencoder.update({"variant": "f128c512", "tuned": False})
        config.model.latent_action.update({"hidden": 1024, "depth": 2})
        config.init_from = (
            ("flow_network/.*", "runs/dpflow"), ("flow_autoencoder/.*", "runs/dc_ae"), (".*", "new"),
        )
        config.steps, config.batch_size = 100_000, 256
        config.optimizer.schedule.update({"peak": 2e-4, "warmup": 1000})
    return config
