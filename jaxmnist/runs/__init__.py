"""A training run on this machine: its directory, checkpoints, logs, programs and processes."""
