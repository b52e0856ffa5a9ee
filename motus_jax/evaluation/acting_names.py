"""The policies that can act in closed loop, by the names that flags, files and pages use."""

MODEL = ("vla", "joint", "plan")
"""Ways in which the model acts: what its server is asked for (`motus_jax.sampling.jobs.JOBS`)."""

BASELINES = ("hold_the_state", "random_motion", "mean_action")
POLICIES = (*MODEL, *BASELINES)
