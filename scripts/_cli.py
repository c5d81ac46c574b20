"""What every script does around its work: options in, text out, an exit code, one line of error.

A script puts its own directory on `sys.path`, so that it also runs under `python -P`, `-I` and
`-m scripts.NAME`, and then imports this before anything that takes long, so that Ctrl-C is one
line. Its `main(options)` imports jaxmnist itself, since `--help` must not wait for JAX.

A string under a field of `Options` is its help, a field without a default must be given, and a
field that is an `Options` is a group, whose title is the first line of its docstring. The module
must not import `annotations` from `__future__`: the types are read.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

for _name in ("stdin", "stdout", "stderr"):
    if getattr(sys, _name) is None:  # closed: the next file that is opened would get its number
        setattr(sys, _name, open(os.devnull, "r+"))  # noqa: SIM115


def printable(text: object) -> str:
    """The text, with escapes for what could do something to a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def fail(message: str, code: int = 1, end: Callable[[int], NoReturn] = sys.exit) -> NoReturn:
    """End the process with one line on stderr; what could act on a terminal is escaped."""
    text = f"{os.path.basename(sys.argv[0])}: error: {printable(' '.join(message.split()))}\n"
    with contextlib.suppress(OSError):  # there may be nobody to tell
        os.write(2, text.encode(sys.stderr.encoding, "backslashreplace"))
    end(code)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Not by an exception: while XLA's threads work, Python itself crashes at its end.
    signal.signal(signal.SIGINT, lambda *_: fail("interrupted", 130, os._exit))

import argparse
import ast
import dataclasses
import difflib
import functools
import gc
import inspect
import itertools
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any, ClassVar, NoReturn, dataclass_transform, get_args

ROOT = Path(__file__).resolve().parent.parent
KINDS = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}
# What installs every package that a script may need.
PACKAGES = f"{ROOT}[export,notebook,plots,sweep,tensorboard]"
# What JAX says where its environment variables let it do nothing.
UNUSABLE = "initialize backend|Unknown backend|Disallowed .* transfer"


def option(
    default: Any = MISSING, check: Callable[[Any], str | None] = lambda value: None, **more: Any
) -> Any:
    """A field of a dataclass of options about which there is more to say than a default.

    Args:
        default: the value where neither the command line nor the recipe names it.
        check: `check(value)` returns None for a good value, or else the rule, "at least 1". For a
            tuple it checks each value.
        **more: `changes_run`: False if the value does not change a run's numbers; `also`: other
            names that people try, for "did you mean"; `metavar`: the value's name in the help.

    Example:
        >>> class Training(Options):
        ...     epochs: int = option(5, at_least(1), also="epoch")
        ...     "Passes over the images."
    """
    return dataclasses.field(default=default, metadata={"check": check, **more})


@dataclass_transform(frozen_default=True)
class Options:
    """The options of a script, or a group of them; each subclass is a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True)(cls)


def run(main: Callable[[Any], None], kind: type, about: str | None, **recipes: Any) -> NoReturn:
    """Parse the command line into options of a `kind`, call `main` with them and exit.

    `about` is the description in the help; a recipe is other defaults, by the options' names. The
    code is 0 when done, 2 for wrong usage, 130 after Ctrl-C and 1 for every other error that a
    user, a file, the disk or the environment can cause. Each of these is one line; errors that are
    ours keep their traceback.
    """
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    # XLA prints a page about the processor for each program that it loads from the cache, as an
    # error (level 2).
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ.pop("JAX_DISABLE_JIT", None)  # our programs are compiled ahead, or it takes hours
    try:
        options = parse(sys.argv[1:], kind, about or "", recipes)
        gc.disable()  # importing makes a million objects and no garbage: 0.4 of 1.4 s look for it
        import jaxmnist  # noqa: F401

        gc.freeze()
        gc.enable()
        main(options)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os._exit(1)
    except Exception as error:
        _explain(error)
    sys.exit(0)


def _explain(error: Exception) -> NoReturn:
    """End with the line of an error that a user or a machine can cause; raise others."""
    text = str(error)
    if isinstance(error, ModuleNotFoundError):
        command = shlex.join([sys.executable, "-m", "pip", "install", "-e", PACKAGES])
        fail(f"{error.name} is not installed for this Python: {command}")
    if isinstance(error, OSError):
        if not error.filename:  # maybe stdout, which Python would flush once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        fail(": ".join(map(str, filter(None, (error.filename, error.strerror or text)))))
    if isinstance(error, MemoryError) or re.search("RESOURCE_EXHAUSTED|Out of memory", text):
        fail(f"out of memory; a smaller model or batch needs less. {text[:200]}")
    if "jaxmnist" in sys.modules:
        from jaxmnist.errors import JaxmnistError, UsageError

        if isinstance(error, JaxmnistError):
            fail(text, 2 if isinstance(error, UsageError) else 1)
    if re.search(UNUSABLE, text) or ("jax" not in sys.modules and isinstance(error, ValueError)):
        fail(f"JAX does not work with these environment variables JAX_...: {text}")
    raise error


def parse(words: Sequence[str], kind: type, about: str, recipes: Mapping[str, Any]) -> Any:
    """The options of a command line and its recipe. Wrong words and --help end the process."""
    words = [re.sub("^--[^=]*", lambda name: name[0].replace("_", "-"), word) for word in words]
    first = _Parser(add_help=False)
    first.add_argument("--recipe", nargs="?")
    recipe = recipes.get(first.parse_known_args(words)[0].recipe, {})
    parser = _Parser(description=about, formatter_class=_Help, allow_abbrev=False)
    parser._negative_number_matcher = re.compile(r"-\.?\d|-inf|-nan")
    fields, sections = [field for _, field in walk(kind)], dict[type, Any]({kind: parser})
    for group, field in walk(kind):
        if group not in sections:
            title = (group.__doc__ or "").partition("\n")[0].rstrip(".")
            sections[group] = parser.add_argument_group(title)
        text = _texts(group.__module__).get((group.__name__, field.name), "")
        _add(sections[group], field, recipe.get(field.name, field.default), text)
    needed = [str(action.metavar) for action in parser._get_positional_actions()]
    parser.usage = " ".join(["%(prog)s [options]", *needed])
    known, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        parser.error(_suggest(next((x for x in unknown if x.startswith("-")), unknown[0]), fields))

    def build(kind: Any) -> Any:
        return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})

    try:
        values = {x.name: convert(x, getattr(known, x.name)) for x in fields}
        grouped = {x.name: x.type for x in dataclasses.fields(kind) if x.type in sections}
        values |= {name: build(group) for name, group in grouped.items()}
        return build(kind)
    except ValueError as error:
        parser.error(str(error))


def _suggest(word: str, fields: Sequence[Field]) -> str:
    names = {x: field.name for field in fields for x in field.metadata.get("also", "").split()}
    names |= {flag(field.name)[2:]: field.name for field in fields}
    word = word.partition("=")[0]
    close = difflib.get_close_matches(word.strip("-").lower(), names, n=1)
    hint = f"; did you mean {flag(names[close[0]])}?" if close else ""
    return f"{word} is not an option{hint}"


def walk(kind: Any) -> Iterator[tuple[type, Field]]:
    """Each option of a dataclass and its groups: the dataclass that it is in, its field."""
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            yield from walk(field.type)
        else:
            yield kind, field


@functools.cache
def _texts(module: str) -> dict[tuple[str, str], str]:
    """The strings under the fields of a module's classes, by the names of class and field."""
    found = {}
    for kind in ast.walk(ast.parse(inspect.getsource(sys.modules[module]))):
        if isinstance(kind, ast.ClassDef):
            for pair in itertools.pairwise(kind.body):
                match pair:
                    case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                        found[kind.name, name] = " ".join(text.split())
    return found


def flag(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"


def _kinds(field: Field) -> tuple[list[str], Any, bool]:
    """The words that an option can be, the type of its other values, whether it has many."""

    def members(kind: Any) -> list[Any]:
        return [one for part in get_args(kind) for one in members(part)] or [kind]

    found = members(field.type)
    kind = next((x for x in found if x in KINDS), None)
    return [x for x in found if isinstance(x, str)], kind, ... in found


def convert(field: Field, given: Any) -> Any:
    """The value that a text or a list of them stands for; a ValueError says why it is none."""
    words, kind, many = _kinds(field)

    def value(text: str) -> Any:
        if text in words:
            return text
        must: str | None = " or ".join([*words, *([KINDS[kind]] if kind else [])])
        if kind is Path and "://" in text:
            must = "a path on this machine"
        elif kind and text.strip():
            with contextlib.suppress(ValueError):
                found = kind(text)
                must = field.metadata.get("check", lambda value: None)(found)
                if not must:
                    return found
        raise ValueError(f"{flag(field.name)} must be {must}, not {text.strip() or 'empty'}")

    if not isinstance(given, str | list):
        return given  # a default
    if not many:
        return value(str(given))
    texts = [given] if isinstance(given, str) else given
    if kind in (int, float):  # other texts may hold commas and spaces
        texts = re.findall(r"[^\s,]+", " ".join(texts))
    return tuple(map(value, texts))


def _add(section: Any, field: Field, default: Any, text: str) -> None:
    """Add an option to a section of the help; argparse keeps its texts, which `convert` reads."""
    words, kind, many = _kinds(field)
    name = field.name if default is MISSING else flag(field.name)
    more: dict[str, Any] = {"action": "store_true"}
    if field.type is not bool:
        usual = "{" + ",".join(words) + "}" if words else KINDS[kind].split()[-1].upper()
        count = ("+" if default is MISSING else "*") if many else None
        more = {"metavar": field.metadata.get("metavar", usual), "nargs": count}
        if default not in (None, (), MISSING):
            text += f" (default: {' '.join(map(str, default)) if many else default})"
    section.add_argument(name, default=default, help=text.replace("%", "%%"), **more)


def markdown(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """The rows as a Markdown table, the first as its header; columns from `left` on align right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * (width - 1) + (":" if k >= left else "-") for k, width in enumerate(widths)]
    cells = [
        [f"{cell:{'<' if k < left else '>'}{widths[k]}}" for k, cell in enumerate(row)]
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see --help)", 2)


class _Help(argparse.HelpFormatter):
    """Breaks no line at a hyphen, and keeps those that are indented, examples."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = re.sub(r"(?<=\S)\n(?=\S)", " ", text).split("\n")
        return "\n".join("\n".join(self._split_lines(line, width)) for line in lines)
