"""Ctrl-C and SIGTERM that wait until what is being done can be saved."""

import contextlib
import os
import signal
from types import FrameType, TracebackType


class Signals:
    """Within it the first SIGINT or SIGTERM only sets `number`; a second one ends the process."""

    def __init__(self, enabled: bool) -> None:
        self.number = 0
        self._numbers = (signal.SIGINT, signal.SIGTERM) if enabled else ()

    def __enter__(self) -> "Signals":
        """Take the signals over."""
        self._before = [signal.signal(number, self._handle) for number in self._numbers]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in zip(self._numbers, self._before, strict=True):
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
        # Not print: the signal may have come in the middle of one, which cannot be entered twice.
        with contextlib.suppress(OSError):
            os.write(2, b"stopping as soon as it is saved; once more ends at once\n")
