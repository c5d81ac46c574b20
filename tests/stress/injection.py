"""Faults on demand: what an operating system may answer to a program that uses files."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import fnmatch
import io
import itertools
import os
import resource
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tests.helpers import ROOT, TRAIN

SHORT = 0
ALWAYS = 10**9


@dataclasses.dataclass(frozen=True)
class Fault:
    """Some calls about some files fail."""

    call: str
    """"read" or "write" for open files, "open", or a function of the module os: "os.replace"."""
    path: str
    """The file's path, as a pattern of fnmatch."""
    effect: int | Callable[[str], object]
    """A number of errno; or SHORT: only a part is read or written, as is allowed; or what happens
    just before, for instance to the file's directory."""
    skip: int = 0
    """How many calls go well first."""
    count: int = ALWAYS
    """How many of them fail then."""
    calls: Iterator[int] = dataclasses.field(default_factory=itertools.count, repr=False)

    def happened(self) -> bool:
        """Whether it ever struck."""
        return next(self.calls) > self.skip

    def strikes(self, call: str, path: str) -> bool:
        """Whether this call fails."""
        if call != self.call or not fnmatch.fnmatch(path, self.path):
            return False
        return self.skip <= next(self.calls) < self.skip + self.count

    def happen(self, path: str, *names: str) -> None:
        """Raise the error, which names the files if the call was given names and no descriptor."""
        if callable(self.effect):
            self.effect(path)
        elif self.effect != SHORT:
            raise OSError(self.effect, os.strerror(self.effect), *names)


@contextlib.contextmanager
def injected(*faults: Fault) -> Iterator[None]:
    """Within it these calls fail, whichever Python code of this process makes them."""
    places = [(builtins, "open"), (io, "open")]
    places += [(os, fault.call[3:]) for fault in faults if fault.call.startswith("os.")]
    before = {place: getattr(*place) for place in places}
    try:
        for (module, name), call in before.items():
            wrap = _calling if module is os else _opening
            setattr(module, name, wrap(faults, call, f"os.{name}"))
        yield
    finally:
        for (module, name), call in before.items():
            setattr(module, name, call)


@contextlib.contextmanager
def interrupted(seconds: float = 0.001) -> Iterator[None]:
    """Within it a signal arrives this often, so that every system call that waits ends in EINTR."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """Within it no file of this process or its children can grow above `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def child_environment(**more: str) -> dict[str, str]:
    """The environment of a child process that imports this module, wherever it is started."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", **more}


def run_train(options: list[str]) -> None:
    """Run scripts/train.py in this process, as `python scripts/train.py` does."""
    sys.argv = [str(TRAIN), *options]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _opening(faults: tuple[Fault, ...], call: Callable[..., Any], _: str) -> Callable[..., Any]:
    def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
        path = os.fspath(file) if isinstance(file, str | os.PathLike) else None
        if not isinstance(path, str):  # a descriptor
            return call(file, mode, buffering, *args, **kwargs)
        for fault in faults:
            if fault.strikes("open", path):
                fault.happen(path, path)
        mine = [fault for fault in faults if fnmatch.fnmatch(path, fault.path)]
        if not {"read", "write"} & {fault.call for fault in mine}:
            return call(file, mode, buffering, *args, **kwargs)
        raw = _File(path, mode.replace("b", "").replace("t", ""))
        raw.faults = mine
        if buffering == 0:
            return raw
        if "+" in mode:
            buffered: Any = io.BufferedRandom(raw)
        else:
            buffered = io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **kwargs)

    return opened


def _calling(faults: tuple[Fault, ...], call: Callable[..., Any], name: str) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        names = [os.fspath(arg) for arg in args if isinstance(arg, str | os.PathLike)]
        path = names[-1] if names else os.readlink(f"/proc/self/fd/{args[0]}")
        for fault in faults:
            if fault.strikes(name, path):
                fault.happen(path, *names[:1])
        return call(*args, **kwargs)

    return called


class _File(io.FileIO):
    """An open file of which reading and writing fails."""

    faults: list[Fault]

    def readinto(self, buffer: Any) -> int | None:
        view = memoryview(buffer)
        for fault in self.faults:
            if fault.strikes("read", str(self.name)):
                fault.happen(str(self.name))
                view = view[: max(1, len(view) // 3)]
        return super().readinto(view)

    # FileIO's own do not call readinto.
    read = io.RawIOBase.read  # type: ignore[assignment]
    readall = io.RawIOBase.readall

    def write(self, data: Any) -> int:
        for fault in self.faults:
            if fault.strikes("write", str(self.name)):
                view = memoryview(data)
                written = super().write(view[: max(1, len(view) // 2)])  # as on a disk that fills
                fault.happen(str(self.name))
                return written
        return super().write(data)
