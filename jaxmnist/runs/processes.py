"""The processes of a job, which train together by JAX's own distributed runtime."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from jaxmnist.errors import JaxmnistError, Stopped, UsageError


class OneProcess:
    """A job of this process alone."""

    first = True

    def broadcast(self, tree: Any) -> Any:
        """The first process's arrays, in every process."""
        return tree

    def maximum(self, number: int) -> int:
        """The largest of the processes' numbers, in every process."""
        return number

    def agree(self, options: dict[str, Any]) -> None:
        """Raise a UsageError in every process where their options differ."""


class ProcessGroup(OneProcess):
    """A job of several processes, of which the first writes and prints."""

    def __init__(self, first: bool) -> None:
        self.first = first

    def broadcast(self, tree: Any) -> Any:
        """The first process's arrays, in every process."""
        from jax.experimental import multihost_utils

        return multihost_utils.broadcast_one_to_all(tree)

    def maximum(self, number: int) -> int:
        """The largest of the processes' numbers, in every process."""
        import numpy as np
        from jax.experimental import multihost_utils

        return int(np.max(multihost_utils.process_allgather(np.int32(number))))

    def agree(self, options: dict[str, Any]) -> None:
        """Raise a UsageError that names the first option of which they have different values."""
        import numpy as np
        from jax.experimental import multihost_utils

        names = sorted(options)
        digests = [hashlib.sha256(repr(options[name]).encode()).digest() for name in names]
        table = np.frombuffer(b"".join(digests), np.uint8).reshape(len(names), -1)
        tables = multihost_utils.process_allgather(table)  # [processes, options, 32]
        for name, rows in zip(names, np.moveaxis(tables, 1, 0), strict=True):
            if (rows != rows[0]).any():
                raise UsageError(
                    f"--distributed: the processes have different values of "
                    f"--{name.replace('_', '-')}, this one {options[name]}; use one in all"
                )


@contextlib.contextmanager
def join(
    coordinator: str | None, processes: int | None, process_id: int | None, timeout: int
) -> Iterator[ProcessGroup]:
    """Within it this process trains with the others.

    A process that fails leaves at once, and the others fail with it, instead of waiting for one
    another.

    Args:
        coordinator: HOST:PORT of process 0; None where a cluster tells it, and so for the next two.
        processes: how many there are.
        process_id: which one this is, from 0.
        timeout: seconds after which a process that does not answer is given up.
    """
    import jax

    try:
        _initialize(coordinator, processes, process_id, timeout)
        yield ProcessGroup(_is_first())
    except BaseException as error:
        # Registered last it runs first, before JAX's own, which waits for all to end well.
        atexit.register(os._exit, _exit_code(error))
        if isinstance(error, jax.errors.JaxRuntimeError):
            reason = str(error).partition("\n")[0][:200]
            raise JaxmnistError(
                f"another process has failed or cannot be reached: {reason}"
            ) from None
        raise


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


def _exit_code(error: BaseException) -> int:
    if isinstance(error, Stopped):
        return error.code
    return {KeyboardInterrupt: 130, UsageError: 2}.get(type(error), 1)


def _initialize(
    coordinator: str | None, processes: int | None, process_id: int | None, timeout: int
) -> None:
    import jax

    if coordinator is not None:
        _check_host(coordinator, first=process_id == 0)
    # With it a SIGTERM would be taken by JAX and only be logged.
    jax.config.update("jax_enable_preemption_service", False)
    # At its own time limit JAX aborts the process with a page of text; ours comes before.
    timer = threading.Timer(timeout, _give_up, (timeout, coordinator))
    timer.daemon = True
    timer.start()
    try:
        with _without_proxies():
            jax.distributed.initialize(
                coordinator,
                processes,
                process_id,
                initialization_timeout=timeout + 60,
                heartbeat_timeout_seconds=timeout,
                shutdown_timeout_seconds=timeout,
            )
    except ValueError as error:
        raise JaxmnistError(
            f"--distributed: {error} JAX knows no cluster here: "
            "name --coordinator HOST:PORT, --processes N and --process-id I"
        ) from error
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:200]
        raise JaxmnistError(
            f"--distributed: {reason}; has every process a --process-id of its own, and is nothing "
            f"else at {coordinator or 'the coordinator'}?"
        ) from error
    finally:
        timer.cancel()


@contextlib.contextmanager
def _without_proxies() -> Iterator[None]:
    """Within it no proxy is in the environment: gRPC would look for the coordinator through it."""
    proxies = {name: value for name, value in os.environ.items() if "_proxy" in name.lower()}
    for name in proxies:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(proxies)


def _check_host(coordinator: str, *, first: bool) -> None:
    """Raise a JaxmnistError where nobody can be reached there, or the port is taken already."""
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


def _give_up(seconds: int, coordinator: str | None) -> None:
    where = coordinator or "the coordinator"
    print(
        f"{os.path.basename(sys.argv[0])}: error: --distributed: the other processes did not come "
        f"within {seconds} s; are all started, with the same --coordinator and --processes, and is "
        f"nothing else at {where}?",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _is_first() -> bool:
    """Whether this process has the number 0; if not, nothing more of it goes to stdout."""
    import jax

    first = jax.process_index() == 0
    if not first:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)  # not only Python's: Gloo tells there that it is connected
    return first
