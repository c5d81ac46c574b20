"""Report on runs of scripts/train.py --out: one HTML page with results, curves and mistakes."""

import sys

sys.path.insert(0, __file__.rpartition("/")[0])
import _cli as cli

# isort: split
import base64
import io
from pathlib import Path
from typing import Any


class Options(cli.Options):
    """The options."""

    runs: tuple[Path, ...] = cli.option(metavar="RUN")
    """Directories of runs."""
    out: Path = Path("runs/report.html")
    """File for the page; what is there is replaced."""
    data_dir: Path | None = cli.option(None, metavar="DIR")
    """Directory with MNIST, instead of JAXMNIST_DATA_DIR."""


def main(options: Options) -> None:
    """Read the runs, test their weights, write the page."""
    from jinja2 import Template

    from jaxmnist.files import atomic_write
    from jaxmnist.plots import loss_curves
    from jaxmnist.runs.directory import read_run

    runs = {str(path): read_run(path) for path in options.runs}
    sections = {name: describe(run, options.data_dir) for name, run in runs.items()}
    first, *others = [section["options"] for section in sections.values()]
    fields = dict.fromkeys(field for run in (first, *others) for field in run)
    equal = [x for x in fields if all(run.get(x) == first.get(x) for run in others)]
    losses = next(iter(runs.values())).losses if len(runs) == 1 else None
    curves = loss_curves({name: run.records for name, run in runs.items()}, losses)
    page = Path(__file__).with_suffix(".html.jinja").read_text()
    content = Template(page, autoescape=True, trim_blocks=True).render(
        runs=sections,
        curves=data_url(curves),
        differing=[field for field in fields if field not in equal],
        equal=equal,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.out) as file:
        file.write(content.encode())
    for name, section in sections.items():
        found = section["results"]
        print(f"{name}: test accuracy {found['test accuracy']} on {found['tested on']}")
    print(f"Wrote {options.out} ({len(content) / 1000:,.0f} kB)")


def describe(run: Any, data_dir: Path | None) -> dict[str, Any]:
    """What the template shows of a run."""
    import numpy as np

    from jaxmnist.datasets import load_data
    from jaxmnist.metrics import classification_metrics
    from jaxmnist.pictures.predict import log_probabilities
    from jaxmnist.plots import mistake_grid, weight_grid

    data, last = run.config["identity"]["data"], run.records[-1]
    seed = run.config["options"]["seed"]
    test = load_data("mnist" if data == "MNIST" else "synthetic", data_dir, seed).test
    images, labels = map(np.asarray, test)
    found = log_probabilities(run.params, images)
    metrics = classification_metrics(found, labels)
    wrong = np.array(metrics["confusion"]) * (1 - np.eye(10, dtype=int))
    notes = [] if data == "MNIST" else [f"NOT MNIST: trained and tested on {data}."]
    if not run.finished:
        notes.append("Not finished: the weights are those of its last epoch so far.")
    return {
        "notes": notes,
        "results": {
            "test accuracy": f"{metrics['accuracy']:.2%}",
            "mistakes": f"{wrong.sum():,}",
            "test loss (nats)": f"{np.float64(metrics['loss']):.4f}",
            "training loss (nats)": f"{last['train_loss']:.4f}",
            "epochs": f"{len(run.records):,}",
            "tested on": data,
        },
        "epochs": [f"{x['test_loss']:.4f} {x['test_accuracy']:.2%}" for x in run.records],
        "options": run.config["identity"] | run.config["versions"],
        "confusion": metrics["confusion"],
        "worst": max(1, wrong.max()),
        "mistakes": data_url(mistake_grid(images, labels, np.exp(found), columns=4)),
        "weights": data_url(weight_grid(run.params["params"]["linear_0"]["weight"], 8, 64)),
    }


def data_url(figure: Any) -> str:
    """The figure as a PNG within the page."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
