"""Runs scripts/train.py on 640 images and prints, after each epoch, what it holds.

`python long_run.py SCRIPT OPTIONS...`: each line of stdout that is JSON has the memory in use in
bytes, the number of open files, and how often the step has been traced.
"""

import json
import os
import resource
import runpy
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # before JAX is imported, which the script does later

from jaxmnist import Dataset, objective
from jaxmnist.datasets import synthetic
from jaxmnist.runs import run_logs, setup

traced = 0
load, make = synthetic.load_synthetic, objective.classifier_objective
add = run_logs.RunLogs.add_record


def load_little(seed):
    train, test = load(seed)
    return Dataset(*(array[:640] for array in train)), Dataset(*(array[:100] for array in test))


def make_counting(apply_fn, *args, **kwargs):
    def counting(params, images):
        global traced
        traced += 1
        return apply_fn(params, images)

    return make(counting, *args, **kwargs)


def holding():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(os.listdir("/proc/self/fd"))
    return {"memory": pages * resource.getpagesize(), "files": files, "traced": traced}


def add_and_tell(logs, record):
    add(logs, record)
    print(json.dumps(holding()), flush=True)


if __name__ == "__main__":
    synthetic.load_synthetic, setup.classifier_objective = load_little, make_counting
    run_logs.RunLogs.add_record = add_and_tell
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
