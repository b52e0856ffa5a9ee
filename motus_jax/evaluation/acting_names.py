"""What can be chosen in closed loop, by the names that flags, files and pages use."""

MODEL = ("vla", "joint", "plan")
"""Ways in which the model acts: what its server is asked for (`motus_jax.sampling.jobs.JOBS`)."""

BASELINES = ("hold_the_state", "random_motion", "mean_action")
POLICIES = (*MODEL, *BASELINES)

FUSIONS = ("latest", "blend", "average")
"""Ways in which chunks join (`motus_jax_client.fusion.FUSIONS`), known here without the packages of the client."""
