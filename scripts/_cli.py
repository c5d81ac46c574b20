"""What every script does around its work: options in, one clear line and an exit code out."""

import contextlib
import gc
import io
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

try:
    import tyro
except ModuleNotFoundError as missing:
    sys.exit(
        f"error: {missing.name} is not installed for this Python; see Quick start in README.md"
    )

Config = TypeVar("Config")
# Optional packages, and the extra that brings each.
EXTRAS = {"matplotlib": "plots", "tensorboard": "tensorboard"}


def run(main: Callable[[Config], None], config_type: type[Config], description: str) -> NoReturn:
    """Parse the command line into a `config_type`, call `main` with it and exit.

    The code is 0 when done, 2 for wrong usage, 130 for Ctrl-C, 143 for SIGTERM and 1 for every
    other error that a user can cause; each error is one line. Errors that are ours keep their
    traceback.
    """
    gc.disable()  # importing JAX makes a million objects and no garbage; looking for it takes 0.1 s
    try:
        _run(main, _parse(config_type, description))
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:  # whoever read our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    gc.freeze()  # nor is there any to be found in all that when the interpreter ends
    sys.exit(0)


def _run(main: Callable[[Config], None], config: Config) -> None:
    # XLA calls its own way of tuning for some processors unsupported whenever it loads a program
    # that it compiled and cached on this very machine, at a page of text each (level 2, an error).
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from jaxmnist.errors import (  # not earlier: it loads JAX, which --help must not
        JaxmnistError,
        Stopped,
        UsageError,
    )

    gc.freeze()
    gc.enable()
    try:
        main(config)
        sys.stdout.flush()
    except UsageError as error:
        _fail(str(error), 2)
    except Stopped as stop:
        _fail(str(stop), stop.code)
    except JaxmnistError as error:
        _fail(str(error), 1)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        _fail(f"this needs {error.name}: pip install 'jaxmnist[{EXTRAS[error.name]}]'", 1)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 1)


def _parse(config_type: type[Config], description: str) -> Config:
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(config_type, description=description)
    except SystemExit as stop:
        if stop.code == 0:
            sys.stdout.flush()
            raise
        # tyro draws its errors as a box: a title, the message, a rule, then hints. Where the
        # terminal has no lines, they are of hyphens, and a rule comes before the message too.
        lines = [line.strip("│ ") for line in errors.getvalue().splitlines()[1:]]
        parts = itertools.groupby(lines, key=lambda line: set(line) <= set("─-"))
        message = next((list(part) for is_rule, part in parts if not is_rule), ["wrong usage"])
        _fail(f"{' '.join(message)} (see --help)", 2)


def _fail(message: str, code: int) -> NoReturn:
    # An option's value or a file's name may hold what would do something to the terminal.
    one_line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    print(f"{Path(sys.argv[0]).name}: error: {one_line}", file=sys.stderr)
    sys.exit(code)
