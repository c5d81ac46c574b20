"""The layout: imports go one way, functions fit on a screen, nobody knows the others' insides."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT

CORE = "augment checks data errors evaluation losses model objective training transforms types"
PACKAGE = sorted((ROOT / "jaxmnist").rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in PACKAGE}


def layer(name: str) -> int:
    """0 for the core, 1 for the leaves, 2 for what touches the world."""
    parts = name.split(".")[1:]
    if parts and parts[0] in ("datasets", "runs"):
        return 2
    return 0 if parts and parts[0] in CORE.split() else 1


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


@pytest.mark.parametrize("name", [name for name in MODULES if name != "jaxmnist"])
def test_the_library_imports_downwards(name):
    found = {other for other in imports(MODULES[name]) if other.split(".")[0] == "jaxmnist"}
    assert "jaxmnist" not in found, "names are imported from where they are"
    assert not {other for other in found if layer(other) > layer(name)}
    assert not {other for other in found if other.split(".")[0] in ("scripts", "tests")}


def test_no_module_imports_itself_by_way_of_others():
    after = {name: set(imports(path)) & MODULES.keys() for name, path in MODULES.items()}
    after.pop("jaxmnist")
    while free := [name for name, needs in after.items() if not needs & after.keys()]:
        for name in free:
            del after[name]
    assert not after


def test_scripts_and_tests_do_not_import_each_other():
    scripts = {path.stem for path in SCRIPTS}
    for path in SCRIPTS:
        assert "tests" not in {name.split(".")[0] for name in imports(path)}, path
    for path in TESTS:
        assert not {name.split(".")[0] for name in imports(path)} & {"scripts", *scripts}, path
        assert "sys.path" + ".insert" not in path.read_text(), path


@pytest.mark.parametrize("path", [*PACKAGE, *SCRIPTS, *TESTS], ids=module)
def test_functions_fit_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
            kinds = {a.arg: ast.unparse(a.annotation) for a in node.args.args if a.annotation}
            assert kinds.get("config") != "Any", node.name
