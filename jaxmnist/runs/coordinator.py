"""What stands between the processes of a job: the coordinator's address, proxies, native output."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

from jaxmnist.errors import JaxmnistError, UsageError

# Run as a child: reads what XLA and Gloo write, and says in a line if one of them has ended us.
_NATIVE_STDERR = """
import re, sys
lines = sys.stdin.buffer.read().decode(errors="replace").splitlines()
fatal = [line for line in lines if line[:1] == "F" and line[1:5].isdigit()]
if fatal:
    lost = "Terminating process because" in fatal[0]
    twice = re.search(r"(\\d+) unexpectedly tried to connect with a different", fatal[0])
    if twice:
        reason = f"two processes have the number {twice[1]}; is a --process-id given twice, or is "
        reason += "there another job at this --coordinator?"
    elif lost:
        reason = "another process has failed or cannot be reached"
    else:
        reason = fatal[0][:300]
    print(f"{sys.argv[1]}: error: --distributed: {reason}", file=sys.stderr)
"""


def check_address(coordinator: str, processes: int, process_id: int) -> None:
    """Raise a UsageError where these cannot be right, before anything waits for them."""
    if not 0 <= process_id < processes <= 2**20:
        raise UsageError(
            f"--process-id {process_id} must be at least 0 and below --processes {processes}"
        )
    address = re.fullmatch(r"(\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]]+):(\d{1,5})", coordinator)
    if not address or not 1 <= int(address[2]) <= 65535:
        raise UsageError(
            f"--coordinator {coordinator} must be HOST:PORT, for instance 10.0.0.1:1234, with a "
            "port from 1 to 65535"
        )


def check_host(coordinator: str, *, first: bool) -> None:
    """Raise a JaxmnistError where no process can be reached there, or the port is in use."""
    host, _, port = coordinator.rpartition(":")
    host = host.strip("[]")
    try:
        family, *_, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise JaxmnistError(f"--coordinator {coordinator}: {error.strerror or error}") from error
    if first:
        with socket.socket(family) as probe, contextlib.suppress(PermissionError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise JaxmnistError(
                    f"--coordinator {coordinator}: process 0 cannot take this port: "
                    f"{error.strerror or error}; name another one in every process"
                ) from error


@contextlib.contextmanager
def without_proxies() -> Iterator[None]:
    """Within it no proxy is in the environment: gRPC would look for the coordinator through it."""
    proxies = {name: value for name, value in os.environ.items() if "_proxy" in name.lower()}
    for name in proxies:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(proxies)


_leave = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: os._exit(1))


def exit_where_xla_aborts() -> None:
    """Let it be exit code 1, without a core dump, when XLA calls abort() for a lost process.

    Python's own handlers would run too late, and never for this signal.
    """
    if os.name == "posix":
        ctypes.CDLL(None).signal(int(signal.SIGABRT), _leave)


@contextlib.contextmanager
def without_native_stderr() -> Iterator[None]:
    """Within it only Python writes to stderr. XLA ends a process with pages of text."""
    shown, name = os.dup(2), os.path.basename(sys.argv[0])
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _NATIVE_STDERR, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=shown,
        start_new_session=True,  # no Ctrl-C for it
    )
    assert child.stdin is not None
    os.dup2(child.stdin.fileno(), 2)
    child.stdin.close()
    try:
        with (
            open(shown, "w", buffering=1, errors="backslashreplace", closefd=False) as stream,
            contextlib.redirect_stderr(stream),
        ):
            yield
    except BaseException:
        child.kill()  # there is one line about it already
        raise
    finally:
        os.dup2(shown, 2)
        os.close(shown)
        child.wait()
