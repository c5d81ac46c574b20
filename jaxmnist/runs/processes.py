"""Several processes that train together, by JAX's own distributed runtime."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from jaxmnist.errors import UsageError


@contextlib.contextmanager
def together(config: Any) -> Iterator[bool]:
    """Within it this process trains with the others, if there are any. Is it the first of them?

    Only the first one prints to stdout and writes files; errors are told by each. A process that
    fails leaves at once, and the others fail with it, instead of waiting for one another.
    """
    if not config.distributed:
        yield True
        return
    import jax

    from jaxmnist import JaxmnistError

    try:
        _join(config)
        yield _is_first()
    except BaseException as error:
        # Registered last it runs first, before JAX's own, which waits for all to end well.
        codes = {KeyboardInterrupt: 130, UsageError: 2}
        atexit.register(os._exit, codes.get(type(error), 1))
        if isinstance(error, jax.errors.JaxRuntimeError):
            raise JaxmnistError(
                f"another process has failed or cannot be reached: {error}"
            ) from None
        raise


def _join(config: Any) -> None:
    import jax

    from jaxmnist import JaxmnistError

    # At its own time limit JAX aborts the process with a page of text; ours comes before.
    timer = threading.Timer(config.timeout, _give_up, (config.timeout,))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.processes,
            config.process_id,
            initialization_timeout=config.timeout + 60,
            heartbeat_timeout_seconds=config.timeout,
            shutdown_timeout_seconds=config.timeout,
        )
    except ValueError as error:
        raise JaxmnistError(
            f"--distributed: {error} JAX knows no cluster here: "
            "name --coordinator HOST:PORT, --processes N and --process-id I"
        ) from error
    except RuntimeError as error:
        raise JaxmnistError(f"--distributed: {error}") from error
    finally:
        timer.cancel()


def _give_up(seconds: int) -> None:
    print(
        f"{os.path.basename(sys.argv[0])}: error: --distributed: the other processes did not come "
        f"within {seconds} s; are all started, with the same --coordinator and --processes?",
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


def from_first(config: Any, tree: Any) -> Any:
    """The first process's arrays, in every process."""
    if not config.distributed:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def any_process(config: Any, flag: int) -> int:
    """The largest flag that a process has."""
    if not config.distributed:
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(flag))))
