"""What every script does around its work: options in, an exit code and at most one line of error.

A script puts its own directory on `sys.path`, so that it also runs under `python -P`, `-I` and
`-m scripts.NAME`, and then imports this before anything that takes long, so that Ctrl-C is one
line. Its `main(options)` imports jaxmnist itself, since `--help` must not wait for JAX.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

for _stream in ("stdin", "stdout", "stderr"):  # or the next file that is opened gets its number
    if getattr(sys, _stream) is None:
        setattr(sys, _stream, open(os.devnull, "r" if _stream == "stdin" else "w"))  # noqa: SIM115


def fail(message: str, code: int = 1) -> NoReturn:
    """End the process with one line on stderr; what could act on a terminal is escaped."""
    text = f"{os.path.basename(sys.argv[0])}: error: {printable(' '.join(message.split()))}\n"
    with contextlib.suppress(OSError):  # there may be nobody to tell
        os.write(2, text.encode(sys.stderr.encoding or "utf-8", "backslashreplace"))
    sys.exit(code)


def _interrupted(*_: object) -> None:
    try:
        fail("interrupted")
    finally:
        os._exit(130)  # with threads of XLA at work Python itself crashes on its way out


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupted)

import argparse
import dataclasses
import difflib
import gc
import inspect
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from _output import printable

Options = TypeVar("Options")
Recipes = Mapping[str, Mapping[str, Any]]
NONE: Recipes = {}
ROOT = Path(__file__).resolve().parent.parent
KINDS = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}
# Optional packages, and the extra that brings each.
EXTRAS = dict(jinja2="plots", matplotlib="plots", optuna="sweep", tensorboardX="tensorboard")
# Flags of JAX with which nothing can be compiled ahead.
UNUSABLE = ("jax_disable_jit", "jax_no_tracing", "jax_no_execution", "jax_transfer_guard")


def option(default: Any = MISSING, help: str = "", check: Any = None, **more: Any) -> Any:
    """A field of a dataclass of options; one without a default must be given.

    Args:
        default: the value where neither the command line nor the recipe names it.
        help: what it does, for the user; where the default is True, what `--no-...` does.
        check: of the value or, of a tuple, of each: what it must be, "at least 1", or None.
        **more: `changes_run`: False if a run with another value has the same numbers; `also`:
            other names, which people try, so that this one is suggested; `metavar`: what stands
            for the value in the help; `positional`: it is given without its name.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Training:
        ...     epochs: int = option(5, "Passes over the images.", at_least(1), also="epoch")
    """
    usual = {"changes_run": True, "also": "", "metavar": None, "positional": False}
    metadata = usual | {"help": help, "check": check} | more
    return dataclasses.field(default=default, metadata=metadata)


def run(
    main: Callable[[Options], None], kind: type[Options], about: str | None, recipes: Recipes = NONE
) -> NoReturn:
    """Parse the command line into options of a `kind`, call `main` with them and exit.

    `about` is the description in the help; a recipe is other defaults, by the options' names. The
    code is 0 when done, 2 for wrong usage, 130 after Ctrl-C and 1 for every other error that a
    user, a file, the disk or the environment can cause. Each of these is one line; errors that are
    ours keep their traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what its encoding lacks
    # XLA prints a page about the processor for each program that it loads from the cache, as an
    # error (level 2). 1 is what JAX itself exports to child processes.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        options = parse(sys.argv[1:], kind, about or "", recipes)
        if options:
            _start_jax()
            main(options)
        sys.stdout.flush()
    except Exception as error:
        try:
            sys.stdout.flush()
        except OSError:  # Python would try once more at its end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):  # whoever read our output has gone, as `| head`
            sys.exit(1)
        _explain(error)
    sys.exit(0)


def _start_jax() -> None:
    gc.disable()  # importing makes a million objects and no garbage: 0.4 of 1.4 s look for it
    try:
        import jax
    except (TypeError, ValueError) as error:  # a flag of JAX in the environment has such a value
        fail(f"JAX does not start: {error}")
    import jaxmnist  # noqa: F401

    gc.freeze()
    gc.enable()
    for name in UNUSABLE:
        value = getattr(jax.config, name, None)
        if value is True or str(value).startswith("disallow"):
            fail(f"the scripts cannot work with {name.upper()}={value}; unset it")


def _explain(error: Exception) -> NoReturn:
    """End with the line of an error that a user or a machine can cause; raise others."""
    text = str(error)
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing in EXTRAS:
        fail(f"this needs {missing}: {install_hint(EXTRAS[missing])}")
    if missing in ("jax", "jaxmnist"):
        fail(f"{missing} is not installed for this Python; see Install in README.md")
    if isinstance(error, OSError):
        fail(": ".join(map(str, filter(None, (error.filename, error.strerror or text)))))
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        fail(f"out of memory; a smaller model or batch needs less. {text[:200]}")
    if isinstance(error, RuntimeError) and re.search("initialize backend|Unknown backend", text):
        fail(f"JAX does not start: {text}")
    from jaxmnist.errors import JaxmnistError, UsageError

    if isinstance(error, JaxmnistError):
        fail(text, 2 if isinstance(error, UsageError) else 1)
    raise error


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """C code writes nothing to stderr."""
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def install_hint(extra: str) -> str:
    """The command that installs an extra."""
    return f"{shlex.quote(sys.executable)} -m pip install -e {shlex.quote(f'{ROOT}[{extra}]')}"


def parse(
    words: Sequence[str], options_type: type[Options], description: str, recipes: Recipes
) -> Options | None:
    """The options that a command line's words and its recipe make; None if they ask for help.

    Words that are wrong end the process.
    """
    words = [re.sub("^--[^=]*", lambda name: name[0].replace("_", "-"), word) for word in words]
    words = ["--help" if word == "-h" else word for word in words]
    first = _Parser()
    first.add_argument("--recipe", nargs="?")
    recipe = recipes.get(first.parse_known_args(words)[0].recipe, {})
    fields = {field.name: field for group in groups(options_type).values() for field in group}
    values = {name: recipe.get(name, field.default) for name, field in fields.items()}
    parser = _make_parser(options_type, description, values)
    known, unknown = parser.parse_known_intermixed_args(words)
    given = vars(known)
    if given.pop("help"):
        return print(parser.format_help(), end="")
    if given.pop("version"):
        from jaxmnist import __version__

        return print(__version__)
    if unknown:
        parser.error(_suggest(next((x for x in unknown if x.startswith("-")), unknown[0]), fields))
    try:
        for name, text in given.items():
            values[name] = text if isinstance(text, bool) else convert(fields[name], text)
    except ValueError as error:
        parser.error(str(error))
    for name, value in values.items():
        if value is MISSING:
            about = fields[name].metadata
            parser.error(f"{about['metavar'] if about['positional'] else flag(name)} is missing")
    return build(options_type, values)


def _suggest(word: str, fields: Mapping[str, Field]) -> str:
    names = {
        also: flag(k) for k, field in fields.items() for also in field.metadata["also"].split()
    }
    names |= {flag(name)[2:]: flag(name) for name in fields}
    word = word.partition("=")[0]
    typed = word.strip("-").lower()
    close = [name for name in names if typed and name.startswith(typed)]
    close = close or difflib.get_close_matches(typed, names, n=1)
    return f"{word} is not an option" + (f"; did you mean {names[close[0]]}?" if close else "")


def build(options_type: Any, values: Mapping[str, Any]) -> Any:
    """The dataclass of options, or of groups of them, with these values by name."""
    found = {}
    for field in dataclasses.fields(options_type):
        if dataclasses.is_dataclass(field.type):
            found[field.name] = build(field.type, values)
        elif field.name in values:
            found[field.name] = values[field.name]
    return options_type(**found)


def groups(options_type: Any) -> dict[str, list[Field]]:
    """The fields of a dataclass of options, with their types, by the title of their group."""
    types, found = get_type_hints(options_type), {"Options": list[Field]()}
    for field in dataclasses.fields(options_type):
        field.type = kind = types[field.name]
        if dataclasses.is_dataclass(kind):
            found[(kind.__doc__ or "").partition("\n")[0].rstrip(".")] = groups(kind)["Options"]
        else:
            found["Options"].append(field)
    return found


def flag(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"


def convert(field: Field, text: str | Sequence[str]) -> Any:
    """The value of an option, a field of `groups`, that is written so; ValueError if none is."""
    _, kind, many = _kinds(field)
    if not many:
        return _convert(field, str(text))
    texts = [text] if isinstance(text, str) else text
    if kind not in (str, Path):  # whose texts may hold commas and spaces
        texts = re.findall(r"[^\s,]+", " ".join(texts))
    return tuple(_convert(field, one) for one in texts)


def _convert(field: Field, text: str) -> Any:
    words, kind, _ = _kinds(field)
    if text in words:
        return text
    must: str | None = " or ".join([*words, *([KINDS[kind]] if kind else [])])
    if kind and text.strip():
        with contextlib.suppress(ValueError):
            value = kind(text)
            check = field.metadata["check"]
            must = check(value) if check else None
            if not must:
                return value
    raise ValueError(f"{flag(field.name)} must be {must}, not {text.strip() or 'empty'}")


def _kinds(field: Field) -> tuple[list[str], Any, bool]:
    """The words that an option can be, the type of its other values, whether there are many."""
    many = get_origin(field.type) is tuple
    kind: Any = get_args(field.type)[0] if many else field.type
    kinds = (kind,) if get_origin(kind) is Literal else get_args(kind) or (kind,)  # of a union
    words = [word for one in kinds if get_origin(one) is Literal for word in get_args(one)]
    return words, next((one for one in kinds if one in KINDS), None), many


def _make_parser(options_type: Any, description: str, defaults: Mapping[str, Any]) -> _Parser:
    parser = _Parser(description=description)
    parser.usage = "%(prog)s [options]"
    for title, fields in groups(options_type).items():
        section = parser.add_argument_group(title)
        for field in fields:
            if field.metadata["positional"]:
                parser.usage += f" {field.metadata['metavar']}" + "..." * _kinds(field)[2]
            _add(section, field, defaults[field.name])
    section = parser.add_argument_group("Help")
    section.add_argument("--help", action="store_true", help="Show this; so does -h.")
    section.add_argument("--version", action="store_true", help="Print the version.")
    return parser


def _add(section: Any, field: Field, default: Any) -> None:
    (words, kind, many), about = _kinds(field), field.metadata
    name, place, text = field.name, about["positional"], about["help"]
    if field.type is bool:
        name = flag(f"no_{name}" if default else name)
        more = {"action": "store_const", "const": not default, "dest": field.name}
    else:
        usual = "{" + ",".join(words) + "}" if words else KINDS[kind].split()[-1].upper()
        count = "*" if many else "?" if place else None
        more = {"metavar": about["metavar"] or usual, "nargs": count}
        if default not in (None, (), MISSING):
            text += f" (default: {' '.join(map(str, default)) if many else default})"
        name = name if place else flag(name)
    section.add_argument(name, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **more)


class _Parser(argparse.ArgumentParser):
    def __init__(self, description: str = "") -> None:
        super().__init__(None, None, description, formatter_class=_Help, add_help=False)
        self.allow_abbrev = False
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see --help)", 2)


class _Help(argparse.HelpFormatter):
    """Breaks no line at a hyphen, and keeps those that are indented, examples."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = re.sub(r"(?<=\S)\n(?=\S)", " ", inspect.cleandoc(text)).split("\n")

        def wrap(line: str) -> str:
            example = line.startswith(" ")  # which continues as a shell takes it
            words = self._split_lines(line, width - 8 * example)
            return (" \\\n      " if example else "\n").join(words)

        return "\n".join(map(wrap, lines))
