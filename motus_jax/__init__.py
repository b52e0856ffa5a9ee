"""Motus, a unified latent-action world model, in JAX/Flax."""
