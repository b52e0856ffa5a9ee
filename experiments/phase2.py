"""Phase 2: all three experts at full size learn latent actions (paper, sections 4 and 5).

  python -m motus_jax.train --config=experiments/phase2.py --workdir=runs/phase2 --config.data.path=DATASET

The action expert has its action-only form: no state, no registers. Starts with the video expert of phase 1,
`runs/phase1`: a run of `experiments/phase1.py`, or the public weights,

  python -m motus_jax.convert import --source=FOLDER --kind=motus_stage1 --workdir=runs/phase1

The other two experts are new. DATASET is a LeRobot dataset whose `action` are 14 latent actions at 5 Hz; or any, with
labels of `python -m motus_jax.data label` beside it:

  --config.data.options.latents=LABELS --config.data.action_space=latent
"""

import ml_collections

from experiments import phase3


def get_config() -> ml_collections.ConfigDict:
    """`phase3` with other actions, and only the video expert to start from."""
    config = phase3.get_config()
    config.steps = 500_000
    config.data.update({"action_hz": 5.0, "chunk": 8, "action_space": "absolute"})
    config.model.overrides.action = ml_collections.ConfigDict({"state_dim": None, "registers": 0})
    config.init_from = (("motus/(layers/)?video/.*", "runs/phase1"), *phase3.ENCODERS)
    config.optimizer.schedule.warmup = 1000
    return config
