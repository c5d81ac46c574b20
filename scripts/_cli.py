"""What every script does around its work: options in, one clear line and an exit code out.

A script puts its own directory on `sys.path`, so that it also runs under `python -P`, `-I` and
`-m scripts.NAME`, and then imports this before anything that takes long, so that Ctrl-C is one
line. Its `main(options)` imports jaxmnist itself, since `--help` must not wait for JAX.
"""

from __future__ import annotations

import os
import signal
import sys


def _fail(message: str, code: int) -> int:
    # An option's value or a file's name may hold what would do something to the terminal.
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    try:
        sys.stderr.write(f"{os.path.basename(sys.argv[0])}: error: {line}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass  # there is nobody to tell
    return code


def _exit_interrupted(*_: object) -> None:
    """End at once: with threads of XLA at work the interpreter crashes on its way out."""
    sys.stderr = sys.__stderr__  # while the options are parsed it is another
    os._exit(_fail("interrupted", 130))


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _exit_interrupted)  # `run` gives it back

import argparse
import atexit
import contextlib
import difflib
import gc
import io
import itertools
import logging
import re
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from _output import CLOSED, Stream

if os.environ.get("NO_COLOR"):
    os.environ["PYTHON_TYRO_ANSI_CODES"] = "False"
try:
    import tyro
except ModuleNotFoundError as missing:
    sys.exit(f"error: {missing.name} is not installed for this Python; see Install in README.md")

Options = TypeVar("Options")
UNUSABLE = ("jax_disable_jit", "jax_no_tracing", "jax_no_execution", "jax_transfer_guard")
ROOT = Path(__file__).resolve().parent.parent
# Optional packages, and the extra that brings each.
EXTRAS = {"jinja2": "plots", "matplotlib": "plots", "tensorboard": "tensorboard"}


def run(
    main: Callable[[Options], None],
    options_type: type[Options],
    description: str | None,
    *,
    result_on_stdout: bool = False,
    recipes: Mapping[str, Options] | None = None,
) -> NoReturn:
    """Parse the command line into an `options_type`, call `main` with it and exit.

    With `recipes`, what --recipe names takes the place of the defaults. Within `main` a print
    cannot fail: what the output's encoding lacks is escaped, and where stdout or stderr is closed
    or on a full disk the work goes on; with `result_on_stdout`, of a script that has no other
    result, the code is then 1.

    The code is 0 when done, 2 for wrong usage, 128 + its number for a signal and 1 for every other
    error that a user can cause; each error is one line. Errors that are ours keep their traceback.
    """
    gc.disable()  # importing JAX makes a million objects and no garbage; looking for it takes 0.1 s
    # XLA calls its own way of tuning for some processors unsupported whenever it loads a program
    # that it compiled and cached on this very machine, in a page of text each (level 2, an error).
    # 1 is what JAX itself exports to child processes.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    for number in (0, 1, 2):  # or the next file that is opened would be taken for one of them
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)
    stderr = Stream(sys.stderr, 2)
    stdout = Stream(sys.stdout, 1, notices=stderr)
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            _run(main, _parse(options_type, description or "", recipes or {}))
            stdout.flush()
        except KeyboardInterrupt:
            _exit_interrupted()
        except BrokenPipeError:  # whoever read our output has gone, as with `| head`
            stdout.give_up()
            sys.exit(1)
        except Exception as error:
            sys.exit(_explain(error))
    gc.freeze()  # nor is there any to be found in all that when the interpreter ends
    sys.exit(1 if result_on_stdout and stdout.lost not in (None, CLOSED) else 0)


def _run(main: Callable[[Options], None], options: Options) -> None:
    try:
        import jax  # noqa: F401
    except (TypeError, ValueError) as error:  # a flag of JAX in the environment has such a value
        sys.exit(_fail(f"JAX does not start: {error}", 1))
    import jaxmnist  # noqa: F401  (in the middle of an import a KeyboardInterrupt breaks things)

    gc.freeze()
    gc.enable()
    if signal.getsignal(signal.SIGINT) is _exit_interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = _interrupt_later
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a home without room for its cache
    _check_flags()
    main(options)
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # all is done, let it end


def _check_flags() -> None:
    """Raise a JaxmnistError where a flag of JAX lets no script work, since they compile ahead."""
    import jax

    from jaxmnist.errors import JaxmnistError

    for name in UNUSABLE:
        value = getattr(jax.config, name, None)
        if value is True or str(value).startswith("disallow"):
            raise JaxmnistError(
                f"the environment variable {name.upper()} is {value}, with which the scripts "
                "cannot work; unset it"
            )


def _interrupt_later(ignored: Any) -> None:
    """Raise a KeyboardInterrupt again that Python ignores, as in the garbage collector's hooks."""
    if ignored.exc_type is not KeyboardInterrupt:
        return sys.__unraisablehook__(ignored)
    timer = threading.Timer(0.01, signal.raise_signal, [signal.SIGINT])
    timer.daemon = True
    timer.start()


def _explain(error: Exception) -> int:
    """Print the line of an error that a user can cause, and give its exit code; raise others."""
    from jax.errors import JaxRuntimeError

    from jaxmnist.errors import JaxmnistError, Stopped, UsageError

    if isinstance(error, Stopped):
        return _fail(str(error), error.code)
    if isinstance(error, JaxmnistError):
        return _fail(str(error), 2 if isinstance(error, UsageError) else 1)
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return _fail(f"this needs {error.name}: {install_hint(EXTRAS[error.name])}", 1)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    exhausted = isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    if exhausted or isinstance(error, MemoryError):
        reason = str(error).partition("\n")[0][:200] or "none is left"
        return _fail(f"out of memory: {reason}; a smaller model or batch needs less", 1)
    raise error


def install_hint(extra: str) -> str:
    """The command that installs an extra, to be pasted where the script was run."""
    here = Path.cwd()
    root = "." if here == ROOT else str(ROOT)
    pip = Path(sys.executable).with_name("pip")
    if pip.is_relative_to(here):
        pip = pip.relative_to(here)
    return f"{shlex.quote(str(pip))} install -e {shlex.quote(f'{root}[{extra}]')}"


def _parse(
    options_type: type[Options], description: str, recipes: Mapping[str, Options]
) -> Options:
    if "--version" in sys.argv[1:]:
        import importlib.metadata

        print(importlib.metadata.version("jaxmnist"))
        sys.stdout.flush()
        sys.exit(0)
    for before, argument in itertools.pairwise(sys.argv):
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            sys.exit(_fail(f"{argument or before} has an empty value (see --help)", 2))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            options, unknown = tyro.cli(
                options_type,
                description=f"{description.strip()}\n\n--version prints the version.\n",
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
                return_unknown_args=True,
                default=_recipe(recipes),
            )
    except SystemExit as stop:
        if stop.code == 0:
            sys.stdout.flush()
            raise
        # tyro draws its errors as a box: a title, the message, a rule, then hints. Where the
        # terminal has no lines, they are of hyphens, and a rule comes before the message too.
        lines = [line.strip("│ ") for line in errors.getvalue().splitlines()[1:]]
        parts = itertools.groupby(lines, key=lambda line: set(line) <= set("─-"))
        message = next((" ".join(part) for is_rule, part in parts if not is_rule), "wrong usage")
        message = re.sub(r"^Error parsing (?!-)\S+: ", "", message)  # the class
        sys.exit(_fail(f"{message} (see --help)", 2))
    if unknown:
        option = unknown[0].partition("=")[0]
        close = difflib.get_close_matches(option, _names(options), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        sys.exit(_fail(f"{option} is not an option{hint} (see --help)", 2))
    return options


def _recipe(recipes: Mapping[str, Options]) -> Any:
    """As tyro's `default`, the one that --recipe names on the command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", nargs="?", default="")
    return recipes.get(parser.parse_known_args()[0].recipe, tyro.MISSING_NONPROP)


def _names(options: Any) -> Iterator[str]:
    """The options of a dataclass and of those in it, as they are on the command line."""
    for name, value in vars(options).items():
        if hasattr(value, "__dataclass_fields__"):
            yield from _names(value)
        else:
            yield f"--{name.replace('_', '-')}"
