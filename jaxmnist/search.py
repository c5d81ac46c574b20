"""Which settings a sweep tries: grids and random search, from the text of options.

A setting maps names of options to values. The options are the fields of dataclasses, the groups,
which check themselves: what they refuse is not tried.
"""

import dataclasses
import difflib
import itertools
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmnist.errors import UsageError

MAX_MODELS = 1_000_000  # of one sweep; more are a mistyped number
DIGITS = 4  # of random numbers: what a table shows is what was trained with

Setting = dict[str, Any]  # option -> value


class Range(NamedTuple):
    """Random values from `low` to `high`, both included, uniform or (`log`) log-uniform."""

    low: float
    high: float
    log: bool
    whole: bool  # whole numbers only

    def pick(self, u: float) -> float | int:
        """The value at the share `u`, in [0, 1), of the distribution."""
        high = self.high + 1 if self.whole else self.high
        if self.log:
            value = math.exp(math.log(self.low) + u * (math.log(high) - math.log(self.low)))
        else:
            value = self.low + u * (high - self.low)
        rounded = math.floor(value) if self.whole else float(f"{value:.{DIGITS}g}")
        return type(rounded)(min(max(rounded, self.low), self.high))


Choices = dict[str, list[Any] | Range]  # option -> its values


def make_settings(
    groups: Sequence[Any],
    grid: Sequence[str],
    sample: Sequence[str],
    seed: int = 0,
    *,
    usual: Sequence[Any] = (),
) -> tuple[list[Setting], list[str]]:
    """Each combination of the grid's values, with each of the random settings if there are any.

    Args:
        groups: dataclasses with the options, as they are given otherwise.
        grid: `["learning_rate=0.1,0.01", "hidden=128,64;256"]`. The values of an option that takes
            several numbers are separated by ";".
        sample: how many random settings, and of what: `["200", "learning_rate=log:1e-4:1e-1",
            "batch_size=32:256", "optimizer=sgd,adam"]`.
        seed: of the random settings.
        usual: the groups without what was given, by default as each dataclass makes itself.

    Returns:
        The settings, and a line for each reason why some combinations are left out: options may
        exclude each other, as Adam has no momentum.

    Raises:
        UsageError: an option or a value is unknown, refused or given twice.
    """
    kinds, usual = option_kinds(groups), usual or [type(group)() for group in groups]
    choices = parse_choices(kinds, grid)
    ranges: Choices = {}
    if sample:
        count, *specs = sample
        if not re.fullmatch(r"[1-9]\d{0,6}", count) or not specs:
            raise UsageError(
                "a random search needs how many settings, and options: 200 learning_rate=0.01:0.1"
            )
        ranges = parse_choices(kinds, specs, ranges=True)
    for name in [*choices, *ranges]:
        given, default = next(
            pair for pair in zip(groups, usual, strict=True) if hasattr(pair[0], name)
        )
        if name in choices and name in ranges:
            raise UsageError(f"{name} is in the grid and in the random search")
        if getattr(given, name) != getattr(default, name):
            raise UsageError(f"{name} is swept, so --{name.replace('_', '-')} cannot be given too")
    settings = _combine(choices)
    if ranges:
        random = random_settings(int(sample[0]), ranges, seed)
        settings = [a | b for a in settings for b in random]
    return _accepted(groups, settings)


def parse_choices(
    kinds: Mapping[str, Any], specs: Sequence[str], *, ranges: bool = False
) -> Choices:
    """The values of each option, of texts like `learning_rate=0.1,0.01`; of `ranges` too."""
    choices: Choices = {}
    for spec in specs:
        name, equals, text = spec.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not (equals and name):
            raise UsageError(f"{spec or 'nothing'}: name an option and values, OPTION=VALUE,VALUE")
        if name in choices:
            raise UsageError(f"{spec}: {name} is given twice")
        if ranges and ":" in text:
            choices[name] = _parse_range(kinds, name, text)
            continue
        several = typing.get_origin(kinds.get(name)) is tuple
        texts = [part.strip() for part in text.split(";" if several else ",")]
        choices[name] = values = [parse_option(kinds, name, text) for text in texts]
        for i, value in enumerate(values):
            if value in values[:i]:
                raise UsageError(f"{spec}: the value {texts[i]} is given twice")
    return choices


def _parse_range(kinds: Mapping[str, Any], name: str, text: str) -> Range:
    log, ends = text.startswith("log:"), text.removeprefix("log:").split(":")
    if len(ends) != 2:
        raise UsageError(f"{name}={text}: a range is LOW:HIGH or log:LOW:HIGH")
    low, high = (parse_option(kinds, name, end) for end in ends)
    if isinstance(low, bool) or not isinstance(low, int | float) or not low < high < math.inf:
        raise UsageError(f"{name}={text}: a range needs two numbers, the lower one first")
    if log and low <= 0:
        raise UsageError(f"{name}={text}: a logarithmic range must begin above 0")
    return Range(low, high, log, isinstance(low, int))


def option_kinds(groups: Sequence[Any]) -> dict[str, Any]:
    """The type of each option of the groups."""
    kinds: dict[str, Any] = {}
    for group in groups:
        kinds |= typing.get_type_hints(type(group))
    return kinds


def parse_option(kinds: Mapping[str, Any], name: str, text: str) -> Any:
    """An option's value from its text; empty for None or for none of several numbers."""
    if name not in kinds:
        close = difflib.get_close_matches(name, kinds, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"{name} is not an option that can be swept{hint}")
    try:
        return _parse(kinds[name], text)
    except (KeyError, ValueError):
        raise UsageError(f"{name}={text} is no value of --{name.replace('_', '-')}") from None


def _parse(kind: Any, text: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return {str(value): value for value in inner}[text]
    if origin is tuple:
        return tuple(_parse(inner[0], part) for part in text.split(",") if text)
    if origin in (typing.Union, types.UnionType):  # with None, of what may be left out
        return _parse(inner[0], text) if text else None
    return {"True": True, "False": False}[text] if kind is bool else kind(text)


def random_settings(count: int, choices: Choices, seed: int = 0) -> list[Setting]:
    """`count` different settings, each value random: of a Range, or one of a list.

    Raises:
        UsageError: so many different settings are not found.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    found: dict[tuple[Any, ...], Setting] = {}
    for _ in range(100 * count):
        if len(found) == count:
            break
        setting = {
            name: values.pick(u) if isinstance(values, Range) else values[int(u * len(values))]
            for (name, values), u in zip(choices.items(), rng.random(len(choices)), strict=True)
        }
        found.setdefault(tuple(setting.values()), setting)
    if len(found) < count:
        raise UsageError(f"only {len(found)} different settings are found in these ranges")
    return list(found.values())


def _combine(choices: Choices) -> list[Setting]:
    """Every combination of the values; the last option changes fastest."""
    values = [v for v in choices.values() if not isinstance(v, Range)]
    if math.prod(map(len, values)) > MAX_MODELS:
        raise UsageError(f"a grid of more than {MAX_MODELS:,} settings")
    return [
        dict(zip(choices, combination, strict=True)) for combination in itertools.product(*values)
    ]


def _accepted(
    groups: Sequence[Any], settings: Sequence[Setting]
) -> tuple[list[Setting], list[str]]:
    """The settings that the groups accept, and why others are left out.

    A value that is accepted in none of them is an error.
    """
    accepted: list[Setting] = []
    refused: dict[str, list[Setting]] = {}
    for setting in settings:
        try:
            for group in groups:
                named = {name: value for name, value in setting.items() if hasattr(group, name)}
                dataclasses.replace(group, **named)
        except UsageError as error:
            refused.setdefault(str(error), []).append(setting)
        else:
            accepted.append(setting)
    good = {item for setting in accepted for item in setting.items()}
    for reason, of_reason in refused.items():
        if any(setting.items() - good for setting in of_reason):
            raise UsageError(reason)
    return accepted, [
        f"{len(them)} of {len(settings)} settings: {why}" for why, them in refused.items()
    ]
