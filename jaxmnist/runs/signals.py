"""Signals that wait until what is being done can be saved."""

import contextlib
import os
import signal
import sys
import time
from types import FrameType

# Ctrl-C, a cluster's or a container's request to end, Slurm's --signal=USR1, a closed terminal.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
# Within this many seconds the same signal is the same request: wrappers pass Ctrl-C on once more.
_SAME = 1.0


class Signals:
    """Within it the first signal only sets `number`; a second request ends the process at once.

    A signal that is ignored from outside stays ignored, as SIGHUP is under nohup.
    """

    def __init__(self) -> None:
        self.number = 0
        self._time = 0.0
        # Windows lacks some of them.
        numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
        self._numbers = [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]

    def __enter__(self) -> "Signals":
        self._before = [signal.signal(number, self._handle) for number in self._numbers]
        return self

    def __exit__(self, *error: object) -> None:
        if self.number:  # once more, it would end the process while that ends by itself
            time.sleep(max(0.0, self._time + _SAME - time.monotonic()))
        for number, handler in zip(self._numbers, self._before, strict=True):
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number:
            if number == self.number and now - self._time < _SAME:
                return
            os._exit(128 + number)
        self.number, self._time = number, now
        # Not print: the signal may have come in the middle of one, which cannot be entered twice.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.write(
                sys.stderr.fileno(),
                b"stopping as soon as it is saved; a second signal stops at once\n",
            )
