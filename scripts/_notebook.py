"""What scripts/notebook.py compares with, shows and is run by, apart from the notebook itself."""

import _cli as cli

# isort: split
import ast
import base64
import builtins
import contextlib
import dataclasses
import io
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _options import DataDirOptions
from _output import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    ipynb: bool = cli.option(False, "Write notebook.ipynb, with the outputs, beside the source.")
    data: DataDirOptions = DataDirOptions()


HERE = Path(__file__).parent
_, *_parts = re.split(r"^== (\d+): (.*)\n", (HERE / "notebook_outputs.txt").read_text(), flags=re.M)
outputs = {
    (int(cell), what): text.strip()
    for cell, what, text in zip(*(_parts[k::3] for k in range(3)), strict=True)
}
COLUMNS = ("cell", "what", "notebook", "jaxmnist", "difference", "verdict")
rows: dict[tuple[int, str], tuple[str, ...]] = {}  # of the closing table
data_dir: Path | None = None  # where MNIST is; in Jupyter the library looks for it


class Output:
    """The value of a cell: text on a terminal, and in Jupyter Markdown or a picture."""

    def __init__(self, text: str, more: Callable[[], dict[str, str]] = dict) -> None:
        self.text, self.more = text, more

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"text/plain": self.text, **self.more()}


def show(cell: int, what: str, ours: object) -> Output:
    """What the notebook's cell printed, and what ours does."""
    both = {"notebook": outputs[cell, what], "jaxmnist": as_text(ours)}
    lines = (f"{f'[{cell}]':>4} {name}  {text}" for name, text in both.items())
    return Output("\n".join(line.replace("\n", "\n" + 15 * " ") for line in lines))


def compare(cell: int, what: str, ours: object, within: float = 0.0) -> Output:
    """Show both, and note for the table whether they print the same numbers."""
    both = outputs[cell, what], as_text(ours)
    texts = [re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text) for text in both]
    gaps = [abs(float(a) - float(b)) for a, b in zip(*texts, strict=False)]
    agree = len(texts[0]) == len(texts[1]) == len(gaps) > 0 and max(gaps) <= within
    verdict = (f"within {within:g}" if within else "same") if agree else "OFF"
    brief = [", ".join(text) if len(text) <= 4 else f"{len(text)} numbers" for text in texts]
    difference = f"{max(gaps):.1e}" if any(gaps) else "0"
    rows[cell, what] = (str(cell), what, *brief, difference, verdict)
    return show(cell, what, ours)


def as_text(value: Any) -> str:
    """An array as PyTorch prints a tensor, four decimals and its corners; the rest as it is."""
    if not hasattr(value, "dtype"):
        return str(value)
    import numpy as np

    style: Any = {"precision": 4, "floatmode": "fixed", "suppress_small": True, "threshold": 1000}
    return f"Array({np.array2string(np.asarray(value), **style, separator=', ', prefix='Array(')})"


def table() -> Output:
    """The comparisons as a Markdown table."""
    text = markdown([COLUMNS, *rows.values()], left=len(COLUMNS))
    return Output(text, lambda: {"text/markdown": text})


def figure(draw: "Callable[..., Figure]", *arguments: object) -> Output:
    """The figure that `draw` makes of the arguments; it is made where it can be shown."""

    def png() -> dict[str, str]:
        content = io.BytesIO()
        with contextlib.suppress(ModuleNotFoundError):  # matplotlib is an extra
            draw(*arguments).savefig(content, format="png", dpi=72)
            return {"image/png": base64.b64encode(content.getvalue()).decode()}
        return {}

    return Output("A figure; notebook.ipynb shows it.", png)


def run_cells(path: Path, options: Options) -> None:
    """Run the notebook's cells; a number that is not the notebook's is an error."""
    global data_dir
    data_dir = options.data.data_dir
    cells: list[dict[str, Any]] = []
    namespace: dict[str, Any] = {}
    _, *parts = re.split(r"^# %%(.*)\n", path.read_text(), flags=re.M)
    for mark, source in zip(parts[::2], map(str.strip, parts[1::2]), strict=True):
        cells.append({"cell_type": "code", "id": f"{len(cells)}", "metadata": {}, "source": source})
        if mark:
            text = re.sub("^# ?", "", source, flags=re.M)
            cells[-1] |= {"cell_type": "markdown", "source": text}
        else:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed if options.ipynb else sys.stdout):
                value = run_cell(source, namespace)
            if options.ipynb:
                shown = describe(printed.getvalue(), value)
                cells[-1] |= {"execution_count": None, "outputs": shown}
            elif value is not None:
                print(repr(value))
    if off := [f"cell {row[0]} ({row[1]})" for row in rows.values() if row[-1] == "OFF"]:
        from jaxmnist import JaxmnistError

        raise JaxmnistError(f"not what the notebook printed: {', '.join(off)}")
    if options.ipynb:
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        content = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
        path.with_suffix(".ipynb").write_text(json.dumps(content, indent=1) + "\n")
        print(f"Wrote {path.with_suffix('.ipynb')}")


def describe(printed: str, value: Any) -> list[dict[str, Any]]:
    """A cell's outputs as in an .ipynb file."""
    text = {"output_type": "stream", "name": "stdout", "text": printed}
    data = (value if isinstance(value, Output) else Output(repr(value)))._repr_mimebundle_()
    shown = {"output_type": "display_data", "metadata": {}, "data": data}
    return [text] * bool(printed) + [shown] * (value is not None)


def run_cell(source: str, namespace: dict[str, Any]) -> Any:
    """Run a cell; the value of its last line, None if that has none."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        return exec(compile(tree, "cell", "exec"), namespace)
    exec(compile(ast.Module(tree.body[:-1], []), "cell", "exec"), namespace)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)


_main = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
if _main.name == "notebook.py" and not hasattr(builtins, "__IPYTHON__"):
    description = "The PyTorch notebook in JAX, cell by cell, with the numbers of both."
    cli.run(partial(run_cells, _main), Options, description)
