"""The training loop, step, optimiser, sharding, checkpoints and metrics."""
