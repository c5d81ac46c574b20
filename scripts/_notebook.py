"""What scripts/notebook.py compares with, shows and is run by, apart from the notebook itself."""

import _cli as cli

# isort: split
import dataclasses
import io
import json
import os
import re
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _output import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    ipynb: bool = False
    """Write notebook.ipynb, with the outputs, beside the source."""
    data_dir: Path | None = cli.option(None, metavar="DIR")
    """Directory with MNIST, instead of JAXMNIST_DATA_DIR."""


HERE = Path(__file__).parent
_, *_parts = re.split(r"^== (\d+): (.*)\n", (HERE / "notebook_outputs.txt").read_text(), flags=re.M)
outputs = {
    (int(cell), what): text.strip()
    for cell, what, text in zip(*(_parts[k::3] for k in range(3)), strict=True)
}
COLUMNS = ("cell", "what", "notebook", "jaxmnist", "difference", "verdict")
rows: dict[tuple[int, str], tuple[str, ...]] = {}  # of the closing table


def show(cell: int, what: str, ours: object) -> None:
    """Print what the notebook's cell printed, and what ours does."""
    for name, text in (("notebook", outputs[cell, what]), ("jaxmnist", as_text(ours))):
        print(f"{f'[{cell}]':>4} {name}  {text}".replace("\n", "\n" + 15 * " "))


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
    rows[cell, what] = (str(cell), what, *brief, difference, verdict)


def as_text(value: Any) -> str:
    """An array as PyTorch prints a tensor, four decimals and its corners; the rest as it is."""
    if not hasattr(value, "dtype"):
        return str(value)
    import numpy as np

    style: Any = {"precision": 4, "floatmode": "fixed", "suppress_small": True, "threshold": 1000}
    return f"Array({np.array2string(np.asarray(value), **style, separator=', ', prefix='Array(')})"


class Table(str):
    """A Markdown table, which Jupyter renders."""

    _repr_markdown_ = __repr__ = str.__str__


def table() -> Table:
    """The comparisons."""
    return Table(markdown([COLUMNS, *rows.values()], left=len(COLUMNS)))


class Picture:
    """A figure that `draw(*arguments)` makes where Jupyter shows it."""

    def __init__(self, draw: "Callable[..., Figure]", *arguments: object) -> None:
        self.draw = partial(draw, *arguments)

    def __repr__(self) -> str:
        return "A figure"

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.draw().savefig(content, format="png", dpi=72)
        return content.getvalue()


def run_notebook(path: Path, options: Options) -> None:
    """Run the notebook, here or in Jupyter; a number that is not the notebook's is an error."""
    from jaxmnist import JaxmnistError

    if options.data_dir:
        os.environ["JAXMNIST_DATA_DIR"] = str(options.data_dir.absolute())
    if options.ipynb:
        notebook = execute(path)
        text = notebook.cells[-1].outputs[0].data["text/markdown"]
    else:
        runpy.run_path(str(path))
        text = table()
        print(f"\n{text}")
    if off := re.findall(r"^\| (\d+) +\| (.*?) +\|.*\| OFF", text, re.MULTILINE):
        cells = ", ".join(f"cell {cell} ({what})" for cell, what in off)
        raise JaxmnistError(f"not what the notebook printed: {cells}")
    if options.ipynb:
        target = path.with_suffix(".ipynb")
        target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        print(f"Wrote {target}")


def execute(path: Path) -> Any:
    """The notebook with its outputs, as Jupyter has run it."""
    import nbclient
    from nbformat import v4

    from jaxmnist import JaxmnistError

    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = v4.new_notebook(metadata=kernel)
    _, *parts = re.split(r"^# %%(.*)\n", path.read_text(), flags=re.MULTILINE)
    for mark, source in zip(parts[::2], map(str.strip, parts[1::2]), strict=True):
        new_cell = v4.new_markdown_cell if mark else v4.new_code_cell
        text = re.sub("^# ?", "", source, flags=re.MULTILINE) if mark else source
        notebook.cells.append(new_cell(text, id=str(len(notebook.cells))))
    where = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(
        notebook, resources=where, record_timing=False, coalesce_streams=True
    )
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as error:
        raise JaxmnistError(f"{error.ename}: {error.evalue}") from error
    notebook.metadata = kernel  # Jupyter has added Python's version
    return notebook


_main = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
if _main.name == "notebook.py":
    description = "The PyTorch notebook in JAX, cell by cell, with the numbers of both."
    cli.run(partial(run_notebook, _main), Options, description)
