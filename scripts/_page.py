"""A report as one HTML page that needs nothing else: no network, no script, no file beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _embedded import png_url, to_svg

from jaxmnist.runs.directory import FREE

if TYPE_CHECKING:
    import numpy as np

    from jaxmnist import Dataset
    from jaxmnist.runs.finished import Look, Run

STYLE = Path(__file__).with_name("report.css")


def page(runs: Mapping[str, tuple[Run, Look]], tests: Mapping[str, Dataset]) -> str:
    """The page about these runs, under their names; `tests` holds each one's test images."""
    title = f"Report on {len(runs)} runs" if len(runs) > 1 else f"Report on {next(iter(runs))}"
    parts = [_warnings(runs), _results(runs), _curves(runs), _options(runs)]
    parts += [_run(name, number, *runs[name], tests[name]) for number, name in enumerate(runs, 1)]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>
{STYLE.read_text()}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="note">Made by scripts/report.py of jaxmnist from each run's logs, and from what its
weights make of every test image.</p>
</header>
<main>
{"".join(parts)}</main>
</body>
</html>
"""


def _warnings(runs: Mapping[str, tuple[Run, Look]]) -> str:
    lines = []
    drawn = [name for name, (run, _) in runs.items() if run.drawn]
    if drawn:
        who = "This run was" if len(runs) == 1 else f"{_list(drawn)}: "
        lines.append(
            f"<strong>NOT MNIST.</strong> {who} trained and tested on digits that a program drew."
        )
    sets: dict[str, list[str]] = {}
    for name, (run, _) in runs.items():
        sets.setdefault(run.test_set, []).append(name)
    if len(sets) > 1:
        which = "; ".join(f"{escape(test)}: {_list(names)}" for test, names in sets.items())
        lines.append(
            f"<strong>Tested on different images</strong>, so not to be compared. {which}."
        )
    for name, (run, seen) in runs.items():
        said = run.records[-1]["test_accuracy"]
        if abs(said - seen.accuracy) > 0.001:
            lines.append(
                f"<strong>Other weights.</strong> {escape(name)}: its metrics.jsonl ends at a test "
                f"accuracy of {said:.2%}, its weights.safetensors reach {seen.accuracy:.2%}."
            )
    return "".join(f'<p class="warning" role="note">{line}</p>\n' for line in lines)


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(escape, names))


def _results(runs: Mapping[str, tuple[Run, Look]]) -> str:
    rows: dict[str, list[str]] = {}
    for run, seen in runs.values():
        n, right = int(seen.confusion.sum()), int(seen.confusion.trace())
        for name, value in {
            "tested on": f"NOT MNIST: {run.test_set}" if run.drawn else run.test_set,
            "epochs": f"{len(run.records):,}",
            "training loss (nats), mean of the last epoch": f"{run.records[-1]['train_loss']:.4f}",
            "test loss (nats)": f"{seen.loss:.4f}",
            "test accuracy": f"{seen.accuracy:.2%}",
            "mistakes": f"{n - right:,} of {n:,} images",
        }.items():
            rows.setdefault(name, []).append(value)
    return _section("Results", _table("After the last epoch", ["", *runs], rows))


def _curves(runs: Mapping[str, tuple[Run, Look]]) -> str:
    from jaxmnist.plots import run_curves

    figure = run_curves(list(runs), [(run.losses, run.records) for run, _ in runs.values()])
    label = "Training loss, test loss and test accuracy against epochs; their numbers follow"
    rows: dict[str, list[str]] = {}
    epochs = max(len(run.records) for run, _ in runs.values())
    shown = sorted({round(1 + k * (epochs - 1) / 49) for k in range(50)})
    for run, _ in runs.values():
        for epoch in shown:
            cell = ""
            if epoch <= len(run.records):
                record = run.records[epoch - 1]
                cell = " / ".join(f"{record[x]:.4f}" for x in ("train_loss", "test_loss"))
                cell += f" / {record['test_accuracy']:.2%}"
            rows.setdefault(str(epoch), []).append(cell)
    caption = "Training loss (nats) / test loss (nats) / test accuracy after an epoch"
    numbers = _table(caption, ["epoch", *runs], rows)
    details = f"<details><summary>The numbers</summary>{numbers}</details>"
    return _section("Losses", f"<figure>{to_svg(figure, label)}</figure>{details}")


def _options(runs: Mapping[str, tuple[Run, Look]]) -> str:
    configs = [run.config for run, _ in runs.values()]
    rows = {
        name: [_option(config.get(name)) for config in configs]
        for name in dict.fromkeys(name for config in configs for name in config)
    }
    trivial = FREE - {"epochs", "device", "devices", "distributed"}  # where it lies, what it writes
    differing = {name for name in rows if len(set(rows[name])) > 1 and name not in trivial}
    rows = dict(sorted(rows.items(), key=lambda row: row[0] not in differing))  # those first
    caption = "What each run was started with"
    caption += f"; {len(differing)} options differ" if len(runs) > 1 else ""
    return _section("Options", _table(caption, ["option", *runs], rows, differing))


def _option(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def _run(name: str, number: int, run: Run, seen: Look, test: Dataset) -> str:
    from jaxmnist.plots import weight_grid

    loud = f'<p class="warning"><strong>NOT MNIST</strong> but {escape(run.test_set)}</p>\n'
    figure = weight_grid(run.params["params"]["linear_0"]["weight"], columns=8, most=64)
    weights = to_svg(figure, f"The first layer's weights of run {number} as images, one a unit")
    return _section(
        name,
        (loud if run.drawn else "")
        + f'<div class="pair"><div><h3>Confusion matrix</h3>{_confusion(seen.confusion, name)}'
        + f"</div>\n<div><h3>First-layer weights</h3><figure>{weights}</figure></div></div>"
        + f"<h3>Most confident mistakes</h3>{_mistakes(seen, test)}",
    )


def _confusion(confusion: np.ndarray, name: str) -> str:
    classes = range(len(confusion))
    worst = max(1, *(confusion[i, j] for i in classes for j in classes if i != j))
    lines = []
    for i in classes:
        cells = []
        for j in classes:
            look = f'style="--heat:{0.6 * confusion[i, j] / worst:.2f}"'
            look = 'class="right"' if i == j else look if confusion[i, j] else 'class="none"'
            cells.append(f"<td {look}>{confusion[i, j]}</td>")
        lines.append(f'<tr><th scope="row">{i}</th>{"".join(cells)}</tr>\n')
    head = "".join(f'<th scope="col">{j}</th>' for j in classes)
    caption = "Test images: the digit that they show (rows) and the one they were taken for"
    return _scroll(
        f"{name}: confusion matrix",
        f'<table class="confusion"><caption>{caption} (columns)</caption>\n<thead><tr>'
        f"<td></td>{head}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody></table>",
    )


def _mistakes(seen: Look, test: Dataset) -> str:
    import numpy as np

    from jaxmnist.plots import confident_mistakes, percent

    labels = np.asarray(test.labels)
    figures = []
    for index in confident_mistakes(seen.probabilities, labels):
        label, chances = int(labels[index]), seen.probabilities[index].tolist()
        taken = int(np.argmax(chances))
        figures.append(
            f'<figure><img src="{png_url(np.asarray(test.images[index]))}" width="28" height="28" '
            f'alt="Test image {index}, a {label}"><figcaption>said {taken}: '
            f"{escape(percent(chances[taken]))}<br>is {label}: {escape(percent(chances[label]))}"
            "</figcaption></figure>\n"
        )
    if not figures:
        return "<p>There are none.</p>"
    caption = "What the model said and what the image is, with the probability it gave to each."
    return f'<p class="note">{caption}</p><div class="mistakes">\n{"".join(figures)}</div>'


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>\n"


def _table(
    caption: str, head: Iterable[str], rows: Mapping[str, Sequence[str]], loud: Iterable[str] = ()
) -> str:
    """A table whose first row and column are headers; the rows named in `loud` differ."""
    lines = []
    for name, cells in rows.items():
        differs = ' class="differs"' if name in loud else ""
        tds = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        note = " (differs)" if differs else ""
        lines.append(f'<tr{differs}><th scope="row">{escape(name)}{note}</th>{tds}</tr>\n')
    ths = "".join(f'<th scope="col">{escape(x)}</th>' if x else "<td></td>" for x in head)
    return _scroll(
        caption,
        f"<table><caption>{escape(caption)}</caption>\n<thead><tr>{ths}</tr></thead>\n"
        f"<tbody>\n{''.join(lines)}</tbody></table>",
    )


def _scroll(label: str, table: str) -> str:
    """On a narrow screen the table moves sideways by itself, also with the keyboard."""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'
    )
