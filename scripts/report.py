"""Report on runs of scripts/train.py --out: one HTML page with results, curves and pictures."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _cli as cli

# isort: split
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from _options import DataDirOptions, local_path, wrong
from _output import printable

if TYPE_CHECKING:
    from jaxmnist import Dataset
    from jaxmnist.runs.finished import Run


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    runs: tuple[Path, ...] = cli.option(
        help="Directories of finished runs.", metavar="RUN", positional=True
    )
    out: Path = cli.option(
        Path("report.html"), "File for the page; an earlier report is replaced.", local_path
    )
    data: DataDirOptions = DataDirOptions()


def main(options: Options) -> None:
    """Read and evaluate the runs, write the page."""
    import jinja2  # noqa: F401  (both are needed, and missed now rather than after the work)
    import matplotlib.figure  # noqa: F401

    from jaxmnist.files import atomic_write, check_output
    from jaxmnist.predict import evaluate_model
    from jaxmnist.runs.finished import read_run
    from jaxmnist.runs.report import GENERATOR, Result, page

    check_output("--out", options.out, GENERATOR.encode())
    runs = {name: read_run(path) for name, path in names_of(options.runs).items()}
    tests: dict[str, Dataset] = {}
    for run in runs.values():
        if run.test_set not in tests:
            tests[run.test_set] = load_test_set(run, options.data.data_dir)
    results = {
        name: Result(run, evaluate_model(run.params, tests[run.test_set]), tests[run.test_set])
        for name, run in runs.items()
    }
    content = page(results).encode()
    with atomic_write(options.out) as file:
        file.write(content)
    for name, (run, evaluation, _) in results.items():
        print(f"{name}: test accuracy {evaluation.accuracy:.2%} on {run.test_set}")
    if any(run.drawn for run in runs.values()):
        print("WARNING: drawn digits are NOT MNIST")
    print(f"Wrote {printable(options.out)} ({len(content) / 1000:,.0f} kB)")


def names_of(paths: Sequence[Path]) -> dict[str, Path]:
    """The runs by the names of their directories or, where two are alike, by their paths."""
    places = [path.resolve() for path in paths]
    for place in places:
        if places.count(place) > 1:
            wrong(f"{place}: named twice")
    names = [place.name for place in places]
    named: dict[str, Path] = {}
    for path, name in zip(paths, names, strict=True):
        key = str(path) if names.count(name) > 1 else name
        key = "".join(x if x.isprintable() else "?" for x in key)  # a name may hold anything
        while key in named:
            key += "'"
        named[key] = path
    return named


def load_test_set(run: Run, data_dir: Path | None) -> Dataset:
    """The images that the run was tested on."""
    from jaxmnist import load_mnist
    from jaxmnist.datasets.synthetic import load_synthetic

    return (load_synthetic(run.config["seed"]) if run.drawn else load_mnist(data_dir))[1]


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
