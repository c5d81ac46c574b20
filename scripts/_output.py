"""What the scripts print, and the streams that it goes to."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from typing import Any

CLOSED = "closed"  # before the start: nobody wants that output


def markdown(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """The rows as a Markdown table, the first as its header; columns from `left` on align right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width if k < left else "-" * (width - 1) + ":" for k, width in enumerate(widths)]
    lines = [
        [
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a cell; an empty one where it is not known."""
    return "" if share is None else f"{share:.{digits}%}"


def printable(name: object) -> str:
    """A file's name, with escapes for what could do something to a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))


class Stream(io.TextIOBase):
    """Writes to a stream for as long as that can be written to; `lost` is the reason why not."""

    def __init__(self, stream: Any, number: int, notices: Any = None) -> None:
        self.lost: str | None = None if stream else CLOSED  # as sys.stdout is after `>&-`
        self._stream, self._number, self._notices = stream, number, notices
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write, or drop what nobody can read."""
        return self._try(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        """Flush, if there is what can be flushed."""
        self._try(lambda: self._stream.flush(), None)

    def fileno(self) -> int:
        """The stream's file descriptor."""
        return self._number if self._stream is None else self._stream.fileno()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self.lost is None and self._stream.isatty()

    def give_up(self) -> None:
        """Discard what is still in the buffer of the stream."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)

    def _try(self, action: Callable[[], Any], otherwise: Any) -> Any:
        if self.lost is None and getattr(self._stream, "closed", False):
            self.lost = CLOSED  # by Python, on its way out
        if self.lost is not None:
            return otherwise
        try:
            return action()
        except BrokenPipeError:
            raise
        except OSError as error:
            self.lost = str(error.strerror or error)
            self.give_up()
            if self._notices:
                print(f"Warning: the output is lost: {self.lost}; continuing", file=self._notices)
            return otherwise
