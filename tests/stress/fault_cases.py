"""The faults of tests.stress.faults, row by row, and the servers that they need."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from errno import EACCES, EIO, EMFILE, ENOSPC, EROFS, errorcode
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import requests

from jaxmnist.datasets.download import MIRRORS
from tests import servers
from tests.stress.injection import SHORT, Fault, injected, interrupted, limited


class Case(NamedTuple):
    """A fault, and how it must end."""

    kind: str
    """What the run does: "save", "resume", "load" MNIST's files, or MNIST "cached" before, or
    download it from a server as "serve"."""
    what: str
    cause: Fault | Callable[[], contextlib.AbstractContextManager[Any]] | str
    """A Fault, or a function that returns a context in which things go wrong, or what the server
    does."""
    code: int | None
    """The exit code; None where either is right."""
    says: str
    """A part of the last line on stderr; where it is empty there must be none."""
    name: str = ""
    """What the fault is called, where the cause does not say."""

    def happening(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which it happens, but for what a server does."""
        if isinstance(self.cause, Fault):
            return injected(self.cause)
        return contextlib.nullcontext() if isinstance(self.cause, str) else self.cause()

    def fault(self) -> str:
        """The fault in words."""
        if isinstance(self.cause, str) or self.name:
            return self.name or f"the server {self.cause}"
        assert isinstance(self.cause, Fault)
        call = self.cause.call.removeprefix("os.")
        if self.cause.effect == SHORT:
            return f"short {call}s"
        assert isinstance(self.cause.effect, int)
        return f"{errorcode[self.cause.effect]} in {call}"


def vanish(path: str) -> None:
    """Remove the directory that this file is in."""
    shutil.rmtree(Path(path).parent)


def stop(_: str) -> None:
    """Ask this process to stop."""
    os.kill(os.getpid(), signal.SIGTERM)


def stop_on_full_disk() -> contextlib.AbstractContextManager[None]:
    """SIGTERM in the first epoch, and no space for the checkpoint that it asks for."""
    return injected(
        Fault("open", "out/metrics.jsonl", stop, count=1), Fault("write", SAVED, ENOSPC)
    )


SAVED, LINES, TABLE = "out/checkpoint-*", "out/metrics*", "mnist/t10k-images-idx3-ubyte.gz"
EINTR, EFBIG = "EINTR: a signal each ms", "EFBIG: a real limit"
CASES = [
    Case("save", "a checkpoint", Fault("os.fsync", f"*/{SAVED}", EIO, count=1), 0, "continues"),
    Case("save", "checkpoints after one", Fault("write", SAVED, ENOSPC, 1), 1, "No space left"),
    Case("save", "checkpoints after one", Fault("open", SAVED, EACCES, 1), 1, "Permission denied"),
    Case("save", "checkpoints", Fault("os.replace", SAVED, EROFS), 1, "Read-only"),
    Case("save", "checkpoints", Fault("write", SAVED, SHORT), 0, ""),
    Case("save", "checkpoints too old", Fault("os.unlink", SAVED, EACCES), 0, ""),
    Case("save", "a checkpoint", stop_on_full_disk, 1, "/checkpoint-", "SIGTERM, ENOSPC in write"),
    Case("save", "checkpoints and weights", partial(limited, 10**5), 1, "weights.saf", EFBIG),
    Case(
        *("save", "the directory", Fault("os.replace", SAVED, vanish, 1, 1), None, "No such file"),
        name="it is removed",  # the last checkpoint is written before or after it is made again
    ),
    Case("save", "the directory", Fault("os.mkdir", "out", EACCES), 1, "out: cannot be made"),
    Case("save", "the lock", Fault("os.open", "*out/.lock", EROFS), 1, "Read-only file system"),
    Case("save", "config.json", Fault("write", "out/config*", ENOSPC), 1, "config.json: cannot"),
    Case("save", "metrics, one line", Fault("write", LINES, ENOSPC, count=1), 0, "metrics.jsonl"),
    Case("save", "metrics", Fault("write", LINES, ENOSPC), 1, "metrics.jsonl: cannot be"),
    Case("save", "metrics", Fault("open", LINES, EACCES, 1), 1, "metrics.jsonl: cannot be"),
    Case("save", "weights", Fault("write", "out/weights*", ENOSPC), 1, "weights.safetensors"),
    Case("save", "weights", Fault("write", "out/weights*", EIO), 1, "Input/output error"),
    Case("save", "weights", Fault("open", "out/weights*", EMFILE), 1, "Too many open files"),
    Case("save", "weights", Fault("os.replace", "out/weights*", EROFS), 1, "Read-only file system"),
    Case("save", "everything after the start", Fault("write", "out/*", ENOSPC, 2), 1, "weights"),
    Case("save", "everything", Fault("read", "*", SHORT), 0, ""),
    Case("save", "everything", interrupted, 0, "", EINTR),
    Case("resume", "the newest checkpoint", Fault("read", "*240.*", EIO), 0, "skipped"),
    Case("resume", "all checkpoints", Fault("open", SAVED, EACCES), 1, "out has no good check"),
    Case("resume", "checkpoints", Fault("read", SAVED, SHORT), 0, ""),
    Case("resume", "config.json", Fault("read", "out/config.json", EIO), 1, "out/config.json: "),
    Case("resume", "the directory", Fault("os.listdir", "out", EIO), 1, "out: Input/output error"),
    Case("resume", "everything", interrupted, 0, "", EINTR),
    Case("save", "compiled programs", Fault("os.mkdir", "*/programs-*", EACCES), 0, ""),
    Case("save", "compiled programs", Fault("read", "*-cache", EIO), 0, ""),
    Case("load", "MNIST's files", Fault("open", TABLE, EACCES), 1, f"{TABLE}: cannot be read"),
    Case("load", "MNIST's files", Fault("read", TABLE, EIO, 9), 1, "mnist: cannot be read"),
    Case("load", "MNIST's files", Fault("read", "mnist/*", SHORT), 0, ""),
    Case("load", "MNIST's files", interrupted, 0, "", EINTR),
    Case(
        "load",
        "the cache",
        Fault("write", "*/mnist.npz*", ENOSPC, 4),
        0,
        "Note: MNIST is not cached",
    ),
    Case(
        "load", "the cache", Fault("open", "*/mnist.npz*", EACCES), 0, "Note: MNIST is not cached"
    ),
    Case(
        "load",
        "the cache",
        Fault("os.replace", "*/mnist.npz*", EIO),
        0,
        "Note: MNIST is not cached",
    ),
    Case("load", "the cache", partial(limited, 10**7), 0, "Note: MNIST is not cached", EFBIG),
    Case("cached", "the cache", Fault("read", "*/mnist.npz", EIO, 9), 0, ""),
    Case("cached", "the cache", Fault("read", "*/mnist.npz", SHORT), 0, ""),
    Case("serve", "a download", partial(limited, 10**6), 0, "Note: MNIST is not cached", EFBIG),
    Case("serve", "a download", "refuses connections", 0, "ConnectionError"),
    Case("serve", "a download", "never answers", 0, "Timeout"),
    Case("serve", "a download", "sends 500", 0, "HTTP status 500"),
    Case("serve", "a download", "sends 404", 0, "HTTP status 404"),
    Case("serve", "a download", "stalls", 0, "Timeout"),
    Case("serve", "a download", "resets the connection", 0, "ConnectionError"),
    Case("serve", "a download", "ends too early", 0, "ProtocolError"),
    Case("serve", "a download", "sends a page of text", 0, "wrong checksum"),
    Case("serve", "a download", "flips one bit", 0, "wrong checksum"),
]


@contextlib.contextmanager
def served(files: Path, does: str = "") -> Iterator[str]:
    """The address of a server on loopback that has these files; `does` says what is wrong."""
    stall = servers.Stall()
    answers: dict[str, Callable[[servers.Handler], object]] = {
        "never answers": lambda handler: stall.over.wait(),
        "sends 404": lambda handler: servers.send(handler, 404),
        "sends 500": lambda handler: servers.send(handler, 500),
        "stalls": stall,
        "resets the connection": servers.reset,
        "ends too early": lambda handler: servers.send(handler, 200, bytes(1000), length=2000),
        "sends a page of text": lambda handler: servers.send(handler, 200, b"<html>Log in</html>"),
        "flips one bit": servers.flip_a_bit(files),
    }
    with servers.serving(answers.get(does, servers.send_file(files))) as url:
        if does != "refuses connections":
            try:
                yield url
            finally:
                stall.over.set()
    if does == "refuses connections":
        yield url


def redirect_downloads(url: str, seconds: float | None) -> None:
    """Let requests for MNIST's files go to this server, and be given up after this many seconds."""
    send = requests.adapters.HTTPAdapter.send

    def redirected(adapter: Any, request: Any, **options: Any) -> Any:
        for mirror in MIRRORS:
            request.url = request.url.replace(mirror, url)
        if seconds is not None:
            options["timeout"] = seconds
        return send(adapter, request, **options)

    requests.adapters.HTTPAdapter.send = redirected  # type: ignore[method-assign]
