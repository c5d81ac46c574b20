"""What scripts/notebook.py compares with, shows and is run by, apart from the notebook itself."""

import _cli as cli

# isort: split
import io
import json
import os
import re
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any


class Options(cli.Options):
    """The options."""

    ipynb: bool = False
    """Write notebook.ipynb, with the outputs, beside the source."""
    data_dir: Path | None = cli.option(None, metavar="DIR")
    """Directory with MNIST, instead of JAXMNIST_DATA_DIR."""


_text = Path(__file__).with_name("notebook_outputs.txt").read_text()
_printed = re.findall(r"^== (\d+): (.*?)\n(.*?)(?=^== |\Z)", _text, flags=re.MULTILINE | re.DOTALL)
outputs = {(int(cell), what): text.strip() for cell, what, text in _printed}
COLUMNS = ("cell", "what", "notebook", "jaxmnist", "difference", "verdict")
rows: dict[tuple[int, str], tuple[str, ...]] = {}  # of the closing table


def show(cell: int, what: str, ours: object) -> None:
    """Print what the notebook's cell printed, and what ours does."""
    print_both(cell, what, ours)


def compare(cell: int, what: str, ours: object, within: float = 0.0) -> None:
    """Show both, and note for the table whether they print the same numbers."""
    both = print_both(cell, what, ours)
    texts = [re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text) for text in both]
    gaps = [abs(float(a) - float(b)) for a, b in zip(*texts, strict=False)]
    agree = len(texts[0]) == len(texts[1]) == len(gaps) > 0 and max(gaps) <= within
    verdict = (f"within {within:g}" if within else "same") if agree else "OFF"
    brief = [", ".join(text) if len(text) <= 4 else f"{len(text)} numbers" for text in texts]
    difference = f"{max(gaps):.1e}" if any(gaps) else "0"
    rows[cell, what] = (str(cell), what, *brief, difference, verdict)


def print_both(cell: int, what: str, ours: Any) -> tuple[str, str]:
    """Print and return what the notebook printed and ours, arrays formatted as PyTorch's."""
    import numpy as np

    if hasattr(ours, "dtype"):
        with np.printoptions(precision=4, floatmode="fixed", suppress=True, threshold=1000):
            ours = f"Array({np.array2string(np.asarray(ours), separator=', ', prefix='Array(')})"
    both = outputs[cell, what], str(ours)
    for name, text in zip(("notebook", "jaxmnist"), both, strict=True):
        print(f"{f'[{cell}]':>4} {name}  {text}".replace("\n", "\n" + 15 * " "))
    return both


class Table(str):
    """A Markdown table, which Jupyter renders."""

    _repr_markdown_ = __repr__ = str.__str__


def table() -> Table:
    """The comparisons."""
    return Table(cli.markdown([COLUMNS, *rows.values()], left=len(COLUMNS)))


class Picture(partial):
    """A figure, which `Picture(draw, *arguments)` draws where Jupyter shows it."""

    def __repr__(self) -> str:
        return "A figure"

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self().savefig(content, format="png", dpi=72)
        return content.getvalue()


def run_notebook(path: Path, options: Options) -> None:
    """Run the notebook, then in Jupyter; a number that is not the notebook's is an error."""
    from jaxmnist import JaxmnistError

    if options.data_dir:
        os.environ["JAXMNIST_DATA_DIR"] = str(options.data_dir.absolute())
    runpy.run_path(str(path))
    print(f"\n{table()}")
    if off := [f"cell {row[0]} ({row[1]})" for row in rows.values() if row[-1] == "OFF"]:
        raise JaxmnistError(f"not what the notebook printed: {', '.join(off)}")
    if options.ipynb:
        target = path.with_suffix(".ipynb")
        target.write_text(json.dumps(execute(path), indent=1, ensure_ascii=False) + "\n")
        print(f"Wrote {target}")


def execute(path: Path) -> Any:
    """The notebook with its outputs, as Jupyter has run it."""
    import nbclient
    from nbformat import v4

    notebook = v4.new_notebook()
    _, *parts = re.split(r"^# %%(.*)\n", path.read_text(), flags=re.MULTILINE)
    for mark, source in zip(parts[::2], map(str.strip, parts[1::2]), strict=True):
        new_cell = v4.new_markdown_cell if mark else v4.new_code_cell
        text = re.sub("^# ?", "", source, flags=re.MULTILINE) if mark else source
        notebook.cells.append(new_cell(text, id=str(len(notebook.cells))))
    options: dict[str, Any] = {"record_timing": False, "coalesce_streams": True}
    where = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, resources=where, **options).execute()
    # Without Python's version, which Jupyter has added.
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    return notebook


_main = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
if _main.name == "notebook.py":
    description = "The PyTorch notebook in JAX, cell by cell, with the numbers of both."
    cli.run(partial(run_notebook, _main), Options, description)
