"""The layout: imports go one way, from the scripts down to the core."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from tests.helpers import ROOT

CORE = ("types", "errors", "checks", "data", "transforms", "model", "losses")
CORE += ("objective", "training", "evaluation", "parallel")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for room in ("jaxmnist", "scripts", "tests")
    for path in sorted((ROOT / room).rglob("*.py"))
}


def layer(name: str) -> int:
    """The core, beside it, pictures and data, runs, the package's own names, scripts, tests."""
    room, module, *_ = [*name.split("."), ""]
    if room != "jaxmnist" or not module:
        return 4 + ("jaxmnist", "scripts", "tests").index(room)
    return {"pictures": 2, "datasets": 2, "runs": 3}.get(module, 0 if module in CORE else 1)


def imports(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports anywhere, also within functions."""
    scripts = {name.rpartition(".")[2]: name for name in MODULES if name.startswith("scripts.")}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in whole]
        else:
            continue
        yield from (known for name in names if (known := scripts.get(name, name)) in MODULES)


def test_imports_go_one_way():
    graph = {name: set(imports(path)) for name, path in MODULES.items()}
    for name, needs in graph.items():
        assert not {other for other in needs if layer(other) > layer(name)}, name
    list(TopologicalSorter(graph).static_order())  # raises a CycleError
