"""Where the time of scripts/train.py goes."""

from __future__ import annotations

import re
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

import _measure
from _output import markdown
from _programs import PROGRAMS, Bench
from _results import Record, headline, read_laps, spread, spread_text

# Those whose imports are always reported; others only if they take more than LARGE seconds.
PACKAGES = ("jax", "flax", "optax", "numpy", "jaxmnist")
LARGE = 0.05


def profile(bench: Bench, runs: int) -> dict[str, Any]:
    """Where the time of scripts/train.py goes, warm and cold: medians, and the time unobserved."""
    from jaxmnist import JaxmnistError

    summary: dict[str, Any] = {"machine": _measure.machine()}
    records = {"warm": Record(), "cold": Record()}
    profiles: dict[str, list[dict[str, float]]] = {"warm": [], "cold": []}
    for turn in range(runs + 1):
        for start, name in (("warm", "ours"), ("cold", "ours-cold")):
            records[start].add(turn, bench.run(PROGRAMS[name]))
            if records[start].problem:
                raise JaxmnistError(f"scripts/train.py: {records[start].problem}")
            found = profile_once(bench.train_command, bench.environment(PROGRAMS[name]))
            profiles[start].append(found)
    for start, record in records.items():
        names = {name: None for found in profiles[start] for name in found}
        medians = {n: statistics.median(p.get(n, 0.0) for p in profiles[start][1:]) for n in names}
        medians["whole"] = medians.pop("whole")  # the last row
        plain = spread([run.seconds for turn, run in record.runs.items() if turn])
        summary[start] = {"profile_seconds": medians, "unobserved_seconds": plain}
    return summary


def profile_text(summary: dict[str, Any]) -> str:
    """The profile, to be read."""
    starts = [summary["warm"], summary["cold"]]
    rows = [["scripts/train.py", "warm, s", "share", "first start, s", "share"]]
    for name in starts[0]["profile_seconds"] | starts[1]["profile_seconds"]:
        rows.append([name])
        for seconds in (start["profile_seconds"] for start in starts):
            share = seconds.get(name, 0.0) / seconds["whole"]
            rows[-1] += [f"{seconds.get(name, 0.0):.3f}", f"{share:.1%}"]
    plain = ", first start ".join(spread_text(start["unobserved_seconds"]) for start in starts)
    return f"{headline(summary['machine'])}\n\n{markdown(rows)}\n\nUnobserved, s: warm {plain}"


def profile_once(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, float]:
    """Run scripts/train.py and tell its seconds by what they were spent on; "whole" is all.

    Python's own report of imports, JAX's log of compilations and the script's closing line, read
    as they appear. What they leave is "rest"; steps that overlap make it smaller, or negative.

    Raises:
        JaxmnistError: the script failed or did not report; it has the script's last line.
    """
    environment = {**environment, "JAX_LOG_COMPILES": "1", "PYTHONUNBUFFERED": "1"}
    start = ended = time.perf_counter()
    imports: dict[str, float] = {}
    laps: dict[str, float] = {}
    compiled: list[tuple[float, float]] = []
    traced: list[tuple[float, float]] = []
    line = ""
    with subprocess.Popen(
        [command[0], "-X", "importtime", *command[1:]],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            now = time.perf_counter()
            if found := re.match(r"import time: +(\d+) \| +\d+ \| +([^.\s]+)", line):
                package = "jax" if found[2] == "jaxlib" else found[2]
                imports[package] = imports.get(package, 0.0) + int(found[1]) / 1e6
            elif found := re.search(r"Finished (.*) in ([\d.e-]+) sec", line):
                spans = compiled if found[1].startswith("XLA compilation") else traced
                spans.append((now - float(found[2]), now))
            elif line.strip() and not line.startswith("import time:"):
                laps = laps or read_laps(line)
                ended = now
    whole = time.perf_counter() - start
    if process.returncode or not laps:
        from jaxmnist import JaxmnistError

        reason = line.strip() or f"exit code {process.returncode}"
        raise JaxmnistError(f"scripts/train.py: {reason}")
    compiling = covered(compiled)
    tracing = covered(compiled + traced) - compiling
    laps.setdefault("init", laps.pop("compile", 0.0) - compiling - tracing)
    seconds = {f"import {name}": imports.pop(name, 0.0) for name in PACKAGES}
    seconds |= {f"import {name}": s for name, s in imports.items() if s > LARGE}
    seconds["import other"] = sum(s for s in imports.values() if s <= LARGE)
    seconds |= {"load": laps.pop("load", 0.0), "init": laps.pop("init"), "trace": tracing}
    seconds |= {"compile": compiling, **laps, "exit": start + whole - ended}
    return {**seconds, "rest": whole - sum(seconds.values()), "whole": whole}


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The seconds that are in at least one of the spans, which may be nested."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
