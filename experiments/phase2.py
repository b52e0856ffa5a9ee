"""Phase 2: all three experts learn latent actions (paper, sections 4 and 5).

  python -m motus_jax.train --config=experiments/phase2.py --workdir=runs/phase2 --config.data.path=DATASET
  python -m motus_jax.train --config=experiments/phase2.py:demo --workdir=runs/phase2_demo      on a laptop

The action expert has its action-only form: no state, no registers. Starts with the video expert of phase 1; at full
size `runs/phase1`, a run of `experiments/phase1.py`, or the public weights,

  python -m motus_jax.convert import --source=FOLDER --kind=motus_stage1 --workdir=runs/phase1

The other two experts are new. DATASET is a LeRobot dataset whose `action` are 14 latent actions at 5 Hz; or any, with
labels of `python -m motus_jax.data label` beside it:

  --config.data.options.latents=LABELS --config.data.action_space=latent

The demo takes `runs/phase1_demo`, and labels in `latents/aloha_sim` of all of its episodes, whose actions it is not
told (launch/recipe.sh makes both); `lift` those of the other recording.
"""

import ml_collections

from experiments import phase3


def get_config(size: str = "full") -> ml_collections.ConfigDict:
    """`phase3` with other actions, and only the video expert to start from; `full`, `demo` or `lift`."""
    config = phase3.base(size)
    config.model.overrides.action = ml_collections.ConfigDict({"state_dim": None, "registers": 0})
    video = "motus/(layers/)?video/.*"
    if size != "full":
        config.steps = 800
        config.data.update({"episodes": 0, "action_hz": 5.0, "chunk": 4, "action_space": "latent"})
        config.data.options.latents = config.data.path.replace("datasets/", "latents/")
        config.init_from = ((video, f"runs/phase1_{size}"), phase3.encoders(f"runs/phase1_{size}"))
        return config
    config.steps = 500_000
    config.data.update({"action_hz": 5.0, "chunk": 8, "action_space": "absolute"})
    config.init_from = ((video, "runs/phase1"), *phase3.ENCODERS)
    config.optimizer.schedule.warmup = 1000
    return config
