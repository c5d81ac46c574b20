"""Programs that kill runs and sweeps, and damage the files that they read.

`python -m tests.stress.crash`, `.sweeps` and `.fuzz`, each with `--help`.
"""
