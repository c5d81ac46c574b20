"""What scripts/notebook.py compares with, prints and shows, apart from the notebook itself."""

from __future__ import annotations

import _cli as cli

# isort: split
import builtins
import contextlib
import dataclasses
import io
import re
import runpy
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from _options import DataDirOptions
from _output import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    markdown: bool = cli.option(False, "Print only the closing table.")
    data: DataDirOptions = DataDirOptions()


class Row(NamedTuple):
    """A line of the closing table."""

    cell: int
    what: str
    notebook: str
    jaxmnist: str
    difference: str
    verdict: str


# Of the run that `start` began: the table's rows, and what the notebook printed, by cell and name.
rows: list[Row] = []
outputs: dict[tuple[int, str], str] = {}


def start(cells: Mapping[str, Any]) -> Path | None:
    """Begin the notebook whose globals these are; the directory with MNIST's files, if named.

    `python scripts/notebook.py` comes here first: the command line is parsed, the whole file is run
    once more as cells, and the process ends.
    """
    if cells["__name__"] == "__main__" and not _in_jupyter():
        description = "The PyTorch notebook in JAX, cell by cell, with the numbers of both."
        run = partial(run_cells, cells["__file__"])
        cli.run(run, Options, description)
    rows.clear()
    outputs.clear()
    path = Path(cells.get("__file__", __file__)).with_name("notebook_outputs.txt")
    _, *parts = re.split(r"^== (\d+): (.*)\n", path.read_text(), flags=re.MULTILINE)
    for cell, what, output in zip(*(parts[k::3] for k in range(3)), strict=True):
        outputs[int(cell), what] = output.strip()
    return cells.get("DATA_DIR")


def run_cells(path: str, options: Options) -> None:
    """Run the notebook's cells; a number that is not the notebook's is an error."""
    with contextlib.redirect_stdout(io.StringIO() if options.markdown else sys.stdout):
        runpy.run_path(path, {"DATA_DIR": options.data.data_dir}, "cells")
    if options.markdown:
        print(table())
    if off := [f"cell {row.cell} ({row.what})" for row in rows if row.verdict == "OFF"]:
        from jaxmnist import JaxmnistError

        raise JaxmnistError(f"not what the notebook printed: {', '.join(off)}")


def show(cell: int, what: str, ours: object) -> None:
    """Print what the notebook's cell printed, and what ours does."""
    for name, output in (("notebook", outputs[cell, what]), ("jaxmnist", as_text(ours))):
        print(f"{f'[{cell}]':>4} {name}  " + output.strip().replace("\n", "\n" + " " * 15))


def compare(cell: int, what: str, ours: object, within: float = 0.0) -> None:
    """Show both, and note for the table whether they print the same numbers."""
    show(cell, what, ours)
    both = outputs[cell, what], as_text(ours)
    texts = [re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text) for text in both]
    gaps = [abs(float(a) - float(b)) for a, b in zip(*texts, strict=False)]
    agree = len(texts[0]) == len(texts[1]) == len(gaps) > 0 and max(gaps) <= within
    verdict = (f"within {within:g}" if within else "same") if agree else "OFF"
    brief = [", ".join(text) if len(text) <= 4 else f"{len(text)} numbers" for text in texts]
    difference = f"{max(gaps):.1e}" if any(gaps) else "0"
    rows.append(Row(cell, what, brief[0], brief[1], difference, verdict))


def as_text(value: Any) -> str:
    """An array as PyTorch prints a tensor, four decimals and its corners; the rest as it is."""
    if not hasattr(value, "dtype"):
        return str(value)
    import numpy as np

    style: Any = {"precision": 4, "floatmode": "fixed", "suppress_small": True, "threshold": 1000}
    return f"Array({np.array2string(np.asarray(value), **style, separator=', ', prefix='Array(')})"


def table() -> str:
    """The comparisons as a Markdown table."""
    return markdown([Row._fields, *(list(map(str, row)) for row in rows)], left=len(Row._fields))


def show_figure(make_figure: Callable[[], Figure]) -> None:
    """In Jupyter, where matplotlib is installed: make the figure and show it."""
    if not _in_jupyter():
        return
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        return
    from IPython.display import Image, display

    content = io.BytesIO()
    make_figure().savefig(content, format="png", dpi=100)
    display(Image(content.getvalue()))


def _in_jupyter() -> bool:
    return hasattr(builtins, "__IPYTHON__")
