"""Programs that kill training runs, let their system calls fail, and damage the files they read.

`python -m tests.stress.crash`, `.sweeps`, `.faults` and `.fuzz`, each with `--help`; `pytest -m
slow` runs them in short.
"""
