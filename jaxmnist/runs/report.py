"""A report on finished runs: one HTML page with results, curves and pictures.

jinja2 and matplotlib are an extra, `pip install 'jaxmnist[plots]'`, and imported when used.
"""

import base64
import html
import io
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmnist.data import Dataset
from jaxmnist.plots import confident_mistakes, loss_curves, percent, weight_grid
from jaxmnist.predict import ModelMetrics
from jaxmnist.runs.finished import Run

GENERATOR = "jaxmnist scripts/report.py"  # a page with this name in it may be made again
# Options that say where a run is and what it writes, not what it computes.
INCIDENTAL = {
    *("data_dir", "source", "compile_cache", "coordinator", "processes", "process_id", "timeout"),
    *("out", "resume", "checkpoint_every", "checkpoint_unit", "keep", "plots", "tensorboard"),
}


class Result(NamedTuple):
    """A run, its evaluation and the test images of it."""

    run: Run
    evaluation: ModelMetrics
    test: Dataset


def page(results: Mapping[str, Result]) -> str:
    """The HTML page about these runs, under their names; it stands alone."""
    import jinja2

    runs = [result.run for result in results.values()]
    test_sets: dict[str, list[str]] = {}
    for name, result in results.items():
        test_sets.setdefault(result.run.test_set, []).append(name)
    sections = [_section(k, name, *results[name]) for k, name in enumerate(results, 1)]
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
        title=f"Report on {f'{len(runs)} runs' if len(runs) > 1 else next(iter(results))}",
        runs=sections,
        test_sets=test_sets,
        curves=to_svg(
            loss_curves({name: result.run.records for name, result in results.items()}),
            "Training loss, test loss and test accuracy against epochs; their numbers follow",
        ),
        epochs=sorted({round(1 + k * (last - 1) / 49) for k in range(50)}),  # 50 of them at most
        options=sorted(options, key=lambda name: name not in differing),
        differing=differing,
    )


def _section(
    number: int, name: str, run: Run, found: ModelMetrics, test: Dataset
) -> dict[str, Any]:
    """What the template shows of one run."""
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
        "options": _option_texts(run.config),
        "other_weights": abs(last["test_accuracy"] - found.accuracy) > 0.001,
        "logged_accuracy": f"{last['test_accuracy']:.2%}",
        "confusion": found.confusion.tolist(),
        "worst": max(1, wrong.max()),
        "weights": to_svg(
            figure, f"The first layer's weights of run {number} as images, one a unit"
        ),
        "mistakes": _mistakes(found.probabilities, test),
    }


def _option_texts(config: Mapping[str, Any]) -> dict[str, str]:
    """The options, the flags and the versions that a run was started with, as texts."""
    options = dict(config)
    environment = options.pop("environment", None)
    for group in environment.values() if isinstance(environment, dict) else ():
        options |= group if isinstance(group, dict) else {}
    return {
        name: "none" if value is None else value if isinstance(value, str) else json.dumps(value)
        for name, value in options.items()
    }


def _mistakes(probabilities: np.ndarray, test: Dataset) -> list[dict[str, Any]]:
    """The images that the model was surest to be something else, with both probabilities."""
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


def to_svg(figure: Any, label: str) -> str:
    """The figure as an `<svg>` element for an HTML page, light or dark.

    What is black in it takes the colour of the text around it, its background is the page's, its
    text is text, and it is as wide as its container. Screen readers get the label, which no other
    figure of the page may have.
    """
    import matplotlib

    content = io.StringIO()
    # The salt makes ids that no other figure of the page has, and the same ones every time.
    options: Any = {"svg.fonttype": "none", "svg.hashsalt": label}
    with matplotlib.rc_context(options), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has others
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    svg = content.getvalue()
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    head = f'<svg {view[0]} role="img" aria-label="{html.escape(label)}" fill="currentColor"'
    svg = re.sub("^.*?<svg[^>]*", lambda _: head, svg, count=1, flags=re.DOTALL)
    return svg.replace("#000000", "currentColor")


def png_url(image: np.ndarray) -> str:
    """A digit, dark on light, as a data URL."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(255 - image).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
