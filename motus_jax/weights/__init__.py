"""Name maps between public checkpoints and our parameter trees."""
