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

for _name, _mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
    if getattr(sys, _name) is None:  # closed: the next file that is opened would get its number
        setattr(sys, _name, open(os.devnull, _mode))  # noqa: SIM115


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
        os._exit(130)  # while XLA's threads work, Python itself crashes at its end


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
from typing import Any, NoReturn, get_args, get_type_hints

from _output import printable

Recipes = Mapping[str, Mapping[str, Any]]
ROOT = Path(__file__).resolve().parent.parent
KINDS = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}
# The extra that installs an optional package.
EXTRAS = {"optuna": "sweep", "tensorboardX": "tensorboard", "nbclient": "notebook"}
EXTRAS |= {"jinja2": "plots", "matplotlib": "plots", "flatbuffers": "export", "onnx": "export"}
# Flags of JAX with which nothing can be compiled ahead.
UNUSABLE = ("jax_disable_jit", "jax_no_tracing", "jax_no_execution", "jax_transfer_guard")


def option(
    default: Any = MISSING,
    help: str = "",
    check: Callable[[Any], str | None] = lambda value: None,
    **more: Any,
) -> Any:
    """A field of a dataclass of options; one without a default must be given.

    Args:
        default: the value where neither the command line nor the recipe names it.
        help: for the user; if the default is True, it describes `--no-...`.
        check: `check(value)` returns None for a good value, or else the rule, "at least 1". For a
            tuple it checks each value.
        **more: `changes_run`: False if the value does not change a run's numbers; `also`: other
            names that people try, for "did you mean"; `metavar`: the value's name in the help;
            `positional`: it is given without its name.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Training:
        ...     epochs: int = option(5, "Passes over the images.", at_least(1), also="epoch")
    """
    usual = {"changes_run": True, "also": "", "metavar": None, "positional": False}
    metadata = usual | {"help": help, "check": check} | more
    return dataclasses.field(default=default, metadata=metadata)


def run(
    main: Callable[[Any], None], kind: type, about: str | None, recipes: Recipes | None = None
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
    # error (level 2). JAX itself exports 1 to child processes.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        options = parse(sys.argv[1:], kind, about or "", recipes or {})
        _start_jax()
        main(options)
        sys.stdout.flush()
    except Exception as error:
        try:
            sys.stdout.flush()
        except OSError:  # Python would try once more at its end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as `| head`
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
    if isinstance(error, ModuleNotFoundError):
        hint = install_hint(EXTRAS.get(error.name or "", ""))
        fail(f"{error.name} is not installed for this Python: {hint}")
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
    before = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)


def install_hint(extra: str) -> str:
    """The command that installs an extra, or with "" the package."""
    where = f"{ROOT}[{extra}]" if extra else str(ROOT)
    return f"{shlex.quote(sys.executable)} -m pip install -e {shlex.quote(where)}"


def parse(words: Sequence[str], kind: type, about: str, recipes: Recipes) -> Any:
    """The options of a command line and its recipe. Wrong words and --help end the process."""
    words = [re.sub("^--[^=]*", lambda name: name[0].replace("_", "-"), word) for word in words]
    first = _Parser(add_help=False)
    first.add_argument("--recipe", nargs="?")
    recipe = recipes.get(first.parse_known_args(words)[0].recipe, {})
    sections = groups(kind)
    fields = [field for group in sections.values() for field in group]
    given = [x.metadata["metavar"] for x in fields if x.metadata["positional"]]
    parser = _Parser(description=about, usage=" ".join(["%(prog)s [options]", *given]))
    values = {field.name: recipe.get(field.name, field.default) for field in fields}
    for title, group in sections.items():
        section = parser.add_argument_group(title) if title else parser
        for field in group:
            _add(section, field, values[field.name])
    known, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        parser.error(_suggest(next((x for x in unknown if x.startswith("-")), unknown[0]), fields))
    for field in fields:
        text = getattr(known, field.name, None)
        try:
            if text is not None:
                values[field.name] = text if field.type is bool else convert(field, text)
        except ValueError as error:
            parser.error(str(error))
    return _build(kind, values)


def _suggest(word: str, fields: Sequence[Field]) -> str:
    names = {also: flag(field.name) for field in fields for also in field.metadata["also"].split()}
    names |= {flag(field.name)[2:]: flag(field.name) for field in fields}
    word = word.partition("=")[0]
    typed = word.strip("-").lower()
    close = [name for name in names if typed and name.startswith(typed)]
    close = close or difflib.get_close_matches(typed, names, n=1)
    return f"{word} is not an option" + (f"; did you mean {names[close[0]]}?" if close else "")


def groups(kind: Any) -> dict[str, list[Field]]:
    """The fields of a dataclass of options, with their types, by the title of their group."""
    types, found = get_type_hints(kind), {"": list[Field]()}
    for field in dataclasses.fields(kind):
        field.type = part = types[field.name]
        if dataclasses.is_dataclass(part):
            found[(part.__doc__ or "").partition("\n")[0].rstrip(".")] = groups(part)[""]
        else:
            found[""].append(field)
    return found


def _build(kind: Any, values: Mapping[str, Any]) -> Any:
    parts = dataclasses.fields(kind)
    groups = {x.name: _build(x.type, values) for x in parts if dataclasses.is_dataclass(x.type)}
    return kind(**{x.name: groups.get(x.name, values.get(x.name)) for x in parts})


def flag(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"


def _kinds(field: Field) -> tuple[list[str], list[Any], bool]:
    """The words that an option can be, the types of its other values, whether it has many."""

    def members(kind: Any) -> list[Any]:
        return [one for part in get_args(kind) for one in members(part)] or [kind]

    found = members(field.type)
    return [x for x in found if isinstance(x, str)], [x for x in found if x in KINDS], ... in found


def convert(field: Field, text: str | Sequence[str]) -> Any:
    """The value that a text stands for; a ValueError says why it is not one of the option's."""
    words, kinds, many = _kinds(field)

    def value(text: str) -> Any:
        if text in words:
            return text
        must: str | None = " or ".join([*words, *(KINDS[kind] for kind in kinds)])
        for kind in kinds if text.strip() else ():
            with contextlib.suppress(ValueError):
                found = kind(text)
                must = field.metadata["check"](found)
                if not must:
                    return found
        raise ValueError(f"{flag(field.name)} must be {must}, not {text.strip() or 'empty'}")

    if not many:
        return value(str(text))
    texts = [text] if isinstance(text, str) else text
    if str not in kinds and Path not in kinds:  # whose texts may hold commas and spaces
        texts = re.findall(r"[^\s,]+", " ".join(texts))
    return tuple(map(value, texts))


def _add(section: Any, field: Field, default: Any) -> None:
    """Add an option to a section of the help; argparse keeps its texts, which `convert` reads."""
    (words, kinds, many), about = _kinds(field), field.metadata
    name, text = field.name if about["positional"] else flag(field.name), about["help"]
    if field.type is bool:
        name = flag(f"no_{field.name}") if default else name
        more: dict[str, Any] = {
            "action": "store_false" if default else "store_true",
            "dest": field.name,
        }
    else:
        usual = "{" + ",".join(words) + "}" if words else KINDS[kinds[0]].split()[-1].upper()
        count = ("+" if default is MISSING else "*") if many else None
        more = {"metavar": about["metavar"] or usual, "nargs": count}
        if default not in (None, (), MISSING):
            text += f" (default: {' '.join(map(str, default)) if many else default})"
    section.add_argument(name, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **more)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **more: Any) -> None:
        super().__init__(formatter_class=_Help, allow_abbrev=False, **more)
        self._negative_number_matcher = re.compile(r"-\.?\d|-inf|-nan")

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see --help)", 2)


class _Help(argparse.HelpFormatter):
    """Breaks no line at a hyphen, and keeps those that are indented, examples."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = re.sub(r"(?<=\S)\n(?=\S)", " ", inspect.cleandoc(text)).split("\n")
        whole = textwrap.TextWrapper(width, break_on_hyphens=False)
        example = textwrap.TextWrapper(width, subsequent_indent=" " * 6, break_on_hyphens=False)
        return "\n".join((example if x.startswith(" ") else whole).fill(x) for x in lines)
