"""Runs scripts/train.py on 1,000 images; one call to the file system of the run's directory fails.

`python injection.py WHAT N OPTIONS...`: before the n-th time that a file there is opened, renamed
or removed, the process is killed ("kill"), or the call fails with an error's number. The number of
calls is then in the file `calls` beside the directory.
"""

import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from jaxmnist.datasets import synthetic
from tests.helpers import TRAIN, bright_rows

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir")


def inject(what: str, n: int, out: str) -> Callable[[], int]:
    """Let the n-th call fail so, from now on; the number of calls so far."""
    calls = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal calls
        path = args[0] if args and isinstance(args[0], str | os.PathLike) else ""
        if event not in EVENTS or not str(path).startswith(out):
            return
        calls += 1
        if calls != n:
            return
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(int(what), os.strerror(int(what)), str(path))

    sys.addaudithook(hook)
    return lambda: calls


def main(what: str, n: str, *options: str) -> None:
    """Run the script with these options, --out among them."""
    synthetic.load_synthetic = lambda seed, **_: (bright_rows(1000), bright_rows(200))
    out = options[options.index("--out") + 1]
    calls = inject(what, int(n), out)
    sys.argv = [str(TRAIN), *options]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        Path(out).with_name("calls").write_text(str(calls()))


if __name__ == "__main__":
    main(*sys.argv[1:])
