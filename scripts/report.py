"""Report on runs of scripts/train.py --out: one HTML page with results, curves and mistakes."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _cli as cli

# isort: split
import base64
import dataclasses
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _options import DataDirOptions, local_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxmnist.runs.directory import Run


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    runs: tuple[Path, ...] = cli.option(
        help="Directories of runs.", check=local_path, metavar="RUN", positional=True
    )
    out: Path = cli.option(
        Path("runs/report.html"), "File for the page; what is there is replaced.", local_path
    )
    data: DataDirOptions = DataDirOptions()


def main(options: Options) -> None:
    """Read the runs, test their weights, write the page."""
    from jinja2 import Environment, FileSystemLoader

    from jaxmnist.files import atomic_write
    from jaxmnist.plots import loss_curves
    from jaxmnist.runs.directory import read_run

    runs = {name: read_run(path) for name, path in name_runs(options.runs).items()}
    sections = {name: describe(run, options.data.data_dir) for name, run in runs.items()}
    values = {name: section["options"] for name, section in sections.items()}
    names = dict.fromkeys(name for run in values.values() for name in run)
    differing = [name for name in names if len({run.get(name) for run in values.values()}) > 1]
    losses = next(iter(runs.values())).losses if len(runs) == 1 else None
    curves = loss_curves({name: run.records for name, run in runs.items()}, losses)
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    content = page.get_template("report.html.jinja").render(
        runs=sections,
        data={section["results"]["tested on"] for section in sections.values()},
        curves=data_url(curves),
        last_epoch=max(len(run.records) for run in runs.values()),
        differing=differing,
        equal=[name for name in names if name not in differing],
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.out) as file:
        file.write(content.encode())
    for name, section in sections.items():
        found = section["results"]
        print(f"{name}: test accuracy {found['test accuracy']} on {found['tested on']}")
    print(f"Wrote {options.out} ({len(content) / 1000:,.0f} kB)")


def name_runs(paths: tuple[Path, ...]) -> dict[str, Path]:
    """The runs by the names of their directories or, where two are alike, by their paths."""
    names = [path.resolve().name for path in paths]
    pairs = zip(paths, names, strict=True)
    return {name if names.count(name) == 1 else str(path): path for path, name in pairs}


def describe(run: "Run", data_dir: Path | None) -> dict[str, Any]:
    """What the template shows of a run."""
    import numpy as np

    from jaxmnist import load_mnist
    from jaxmnist.datasets import synthetic
    from jaxmnist.pictures.predict import evaluate_model
    from jaxmnist.plots import mistake_grid, weight_grid

    data = run.config["identity"]["data"]
    seed = run.config["options"]["seed"]
    test = (load_mnist(data_dir) if data == "MNIST" else synthetic.load_synthetic(seed))[1]
    found, last = evaluate_model(run.params, test), run.records[-1]
    images, labels = map(np.asarray, test)
    wrong = found.confusion - np.diag(np.diag(found.confusion))
    notes = [] if data == "MNIST" else [f"NOT MNIST: trained and tested on {data}."]
    if not run.finished:
        notes.append("Not finished: the weights are those of its last epoch so far.")
    if abs(last["test_accuracy"] - found.accuracy) > 0.001:
        notes.append(f"Other weights: metrics.jsonl says {last['test_accuracy']:.2%} accuracy.")
    return {
        "notes": notes,
        "results": {
            "test accuracy": f"{found.accuracy:.2%}",
            "mistakes": f"{wrong.sum():,}",
            "test loss (nats)": f"{found.loss:.4f}",
            "training loss (nats)": f"{last['train_loss']:.4f}",
            "epochs": f"{len(run.records):,}",
            "tested on": data,
        },
        "epochs": [f"{x['test_loss']:.4f} {x['test_accuracy']:.2%}" for x in run.records],
        "options": {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in (run.config["identity"] | run.config["versions"]).items()
        },
        "confusion": found.confusion.tolist(),
        "worst": max(1, wrong.max()),
        "mistakes": data_url(mistake_grid(images, labels, found.probabilities, columns=4)),
        "weights": data_url(weight_grid(run.params["params"]["linear_0"]["weight"], 8, 64)),
    }


def data_url(figure: "Figure") -> str:
    """The figure as a PNG within the page."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
