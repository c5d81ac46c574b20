"""The processes of a job, which train as one by JAX's own distributed runtime."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from jaxmnist.errors import JaxmnistError, Stopped, UsageError
from jaxmnist.runs.coordinator import (
    check_host,
    exit_where_xla_aborts,
    without_native_stderr,
    without_proxies,
)


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

    def leave(self) -> None:
        """Wait until every process is here; from then on none needs another."""


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
                self.leave()
                raise UsageError(
                    f"--distributed: the processes have different values of "
                    f"--{name.replace('_', '-')}, this one {options[name]}; use one in all"
                )

    def leave(self) -> None:
        """Wait until every process is here; from then on none needs another.

        If the first one, which runs the coordinator, just ended, XLA would end the others.
        """
        import jax

        jax.distributed.shutdown()


@contextlib.contextmanager
def join(
    coordinator: str | None, processes: int | None, process_id: int | None, timeout: int
) -> Iterator[ProcessGroup]:
    """Within it this process trains with the others.

    A process that fails by itself leaves at once, and the others fail with it, instead of waiting
    for one another.

    Args:
        coordinator: HOST:PORT of process 0; None where a cluster provides it, as for the next two.
        processes: how many there are.
        process_id: which one this is, from 0.
        timeout: seconds to wait for a process that does not answer.
    """
    import jax

    try:
        with without_native_stderr():
            _initialize(coordinator, processes, process_id, timeout)
            yield ProcessGroup(_is_first())
    except BaseException as error:
        if jax.distributed.is_initialized():
            # Registered last it runs first, before JAX's own, which waits for all to end well.
            atexit.register(os._exit, _exit_code(error))
        of_jax = isinstance(error, jax.errors.JaxRuntimeError)
        if (of_jax and "RESOURCE_EXHAUSTED" not in str(error)) or "Gloo" in str(error):
            reason = str(error).partition("\n")[0][:200]
            raise JaxmnistError(
                f"another process has failed or cannot be reached: {reason}"
            ) from None
        raise


def _exit_code(error: BaseException) -> int:
    if isinstance(error, Stopped):
        return error.code
    return {KeyboardInterrupt: 130, UsageError: 2}.get(type(error), 1)


def _initialize(
    coordinator: str | None, processes: int | None, process_id: int | None, timeout: int
) -> None:
    import jax

    if coordinator is not None:
        check_host(coordinator, first=process_id == 0)
    exit_where_xla_aborts()
    # With it a SIGTERM would be taken by JAX and only be logged.
    jax.config.update("jax_enable_preemption_service", False)
    # At its own time limit JAX aborts the process with a page of text; ours comes before.
    timer = threading.Timer(timeout, _give_up, (timeout, coordinator))
    timer.daemon = True
    timer.start()
    try:
        with without_proxies():
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
            f"--distributed: {reason}; does every process have its own --process-id, and is "
            f"nothing else at {coordinator or 'the coordinator'}?"
        ) from error
    finally:
        timer.cancel()


def _give_up(seconds: int, coordinator: str | None) -> None:
    where = coordinator or "the coordinator"
    print(
        f"{os.path.basename(sys.argv[0])}: error: --distributed: the other processes did not come "
        f"within {seconds} s; are all started, with the same --coordinator and --processes and a "
        f"--process-id of its own in each, and is nothing else at {where}?",
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
            os.dup2(
                nowhere.fileno(), 1
            )  # not only Python's: Gloo prints there that it is connected
    return first
