"""Report on runs of scripts/train.py --out: one HTML page with results, curves and pictures."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _cli as cli

# isort: split
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro
from _options import DataDirOptions, check_path, wrong
from _tables import printable

if TYPE_CHECKING:
    import numpy as np

    from jaxmnist import Dataset
    from jaxmnist.predict import ModelMetrics
    from jaxmnist.runs.finished import Run

GENERATOR = "jaxmnist scripts/report.py"  # a page with this name in it may be made again
# Options that say where a run is and what it writes, not what it computes.
INCIDENTAL = {
    *("data_dir", "source", "compile_cache", "coordinator", "processes", "process_id", "timeout"),
    *("out", "resume", "checkpoint_every", "checkpoint_unit", "keep", "plots", "tensorboard"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    runs: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN...", help_behavior_hint="(required)"),
    ]
    """Directories of finished runs."""
    out: Annotated[Path, tyro.conf.arg(metavar="PATH")] = Path("report.html")
    """File for the page; an earlier report is replaced."""
    data: DataDirOptions = DataDirOptions()

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is loaded."""
        check_path(out=self.out)
        if not self.runs:
            wrong("name at least one run's directory")


class Result(NamedTuple):
    """A run, its evaluation and the test images of it."""

    run: Run
    evaluation: ModelMetrics
    test: Dataset


def main(options: Options) -> None:
    """Read and evaluate the runs, write the page."""
    import jinja2  # noqa: F401  (both are needed, and missed now rather than after the work)
    import matplotlib.figure  # noqa: F401

    from jaxmnist.files import atomic_write, check_output
    from jaxmnist.predict import evaluate_model
    from jaxmnist.runs.finished import read_run

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


def page(results: Mapping[str, Result]) -> str:
    """The page about these runs, under their names."""
    import jinja2

    from jaxmnist.plots import run_curves, to_svg

    runs = [result.run for result in results.values()]
    test_sets: dict[str, list[str]] = {}
    for name, result in results.items():
        test_sets.setdefault(result.run.test_set, []).append(name)
    sections = [section(k, name, *results[name]) for k, name in enumerate(results, 1)]
    options = list(dict.fromkeys(name for part in sections for name in part["options"]))
    differing = [
        name
        for name in options
        if len({part["options"].get(name, "none") for part in sections}) > 1
        and name not in INCIDENTAL
    ]
    last = max(len(run.records) for run in runs)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.jinja").render(
        generator=GENERATOR,
        title=f"Report on {len(runs)} runs"
        if len(runs) > 1
        else f"Report on {next(iter(results))}",
        runs=sections,
        test_sets=test_sets,
        curves=to_svg(
            run_curves(list(results), [(run.losses, run.records) for run in runs]),
            "Training loss, test loss and test accuracy against epochs; their numbers follow",
        ),
        epochs=sorted({round(1 + k * (last - 1) / 49) for k in range(50)}),  # 50 of them at most
        options=sorted(options, key=lambda name: name not in differing),
        differing=differing,
    )


def section(number: int, name: str, run: Run, found: ModelMetrics, test: Dataset) -> dict[str, Any]:
    """What the template shows of one run."""
    import numpy as np

    from jaxmnist.digit_plots import weight_grid
    from jaxmnist.plots import to_svg

    last = run.records[-1]
    n, right = int(found.confusion.sum()), int(found.confusion.trace())
    figure = weight_grid(run.params["params"]["linear_0"]["weight"], columns=8, most=64)
    wrong = found.confusion[~np.eye(len(found.confusion), dtype=bool)]
    return {
        "name": name,
        "synthetic": run.drawn,
        "test_set": run.test_set,
        "results": {
            "tested on": f"NOT MNIST: {run.test_set}" if run.drawn else run.test_set,
            "epochs": f"{len(run.records):,}",
            "training loss (nats), mean of the last epoch": f"{last['train_loss']:.4f}",
            "test loss (nats)": f"{found.loss:.4f}",
            "test accuracy": f"{found.accuracy:.2%}",
            "mistakes": f"{n - right:,} of {n:,} images",
        },
        "epochs": {
            epoch: f"{record['train_loss']:.4f} / {record['test_loss']:.4f} / "
            f"{record['test_accuracy']:.2%}"
            for epoch, record in enumerate(run.records, 1)
        },
        "options": option_texts(run.config),
        "other_weights": abs(last["test_accuracy"] - found.accuracy) > 0.001,
        "logged_accuracy": f"{last['test_accuracy']:.2%}",
        "confusion": found.confusion.tolist(),
        "worst": max(1, wrong.max()),
        "weights": to_svg(
            figure, f"The first layer's weights of run {number} as images, one a unit"
        ),
        "mistakes": mistakes(found.probabilities, test),
    }


def option_texts(config: Mapping[str, Any]) -> dict[str, str]:
    """The options, the flags and the versions that a run was started with, as texts."""
    options = dict(config)
    environment = options.pop("environment", None)
    for group in environment.values() if isinstance(environment, dict) else ():
        options |= group if isinstance(group, dict) else {}
    return {
        name: "none" if value is None else value if isinstance(value, str) else json.dumps(value)
        for name, value in options.items()
    }


def mistakes(probabilities: np.ndarray, test: Dataset) -> list[dict[str, Any]]:
    """The most confident mistakes, with the probabilities of both classes."""
    import numpy as np

    from jaxmnist.digit_plots import confident_mistakes, percent, png_url

    labels = np.asarray(test.labels)
    return [
        {
            "index": index,
            "picture": png_url(np.asarray(test.images[index])),
            "label": labels[index],
            "predicted": probabilities[index].argmax(),
            "confidence": percent(float(probabilities[index].max())),
            "probability": percent(float(probabilities[index, labels[index]])),
        }
        for index in confident_mistakes(probabilities, labels).tolist()
    ]


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
