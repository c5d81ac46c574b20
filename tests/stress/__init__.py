"""Programs that kill training runs, let their system calls fail, and damage the files they read.

`python -m tests.stress.crash`, `.faults`, `.sweeps` and `.fuzz`, each with `--help`.
"""
