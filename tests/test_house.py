"""How the house is built: rooms that import one way, data without code, modules and functions of a size to read."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "robustbench_bio"

#: Lines: of a module; of a function, its decorators and docstring left out; of nine functions out of ten.
MODULE, FUNCTION, MOST_FUNCTIONS = 350, 60, 20


class Function(NamedTuple):
    """A function or method: module and qualified name, and its lines."""

    name: str
    lines: int


def sources() -> dict[str, str]:
    """Return the text of every module of the package by its path."""
    return {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines from `def` to the last, the docstring left out."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def functions(node: ast.AST, prefix: str) -> Iterator[Function]:
    """Yield every function below a node, nested ones and methods too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(f"{prefix}{child.name}", length(child))
        scope = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from functions(child, f"{prefix}{child.name}." if scope else prefix)


def all_functions() -> list[Function]:
    return [f for module, text in sources().items() for f in functions(ast.parse(text), f"{module}:")]


def contracts() -> list[dict[str, Any]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return list(settings["tool"]["importlinter"]["contracts"])


def rooms() -> set[str]:
    return {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_the_top_of_the_package_holds_rooms_and_no_modules() -> None:
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "py.typed"}
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == rooms()


def test_every_room_stands_in_the_order_of_imports_and_none_is_excused() -> None:
    (layers,) = contracts()
    assert layers["type"] == "layers"
    assert layers["containers"] == ["robustbench_bio"]
    assert layers["exhaustive"] is True
    assert layers["exhaustive_ignores"] == ["__main__"]
    assert "ignore_imports" not in layers
    assert len(layers["layers"]) == len(rooms())
    assert set(layers["layers"]) == rooms()


@pytest.mark.parametrize("room", sorted(rooms()))
def test_a_room_says_what_lives_there(room: str) -> None:
    text = (PACKAGE / room / "__init__.py").read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), f"expected robustbench_bio/{room}/__init__.py to open with a docstring"


@pytest.mark.parametrize("folder", ["models", "attacks", "spaces", "leaderboards"])
def test_data_folders_hold_no_code(folder: str) -> None:
    suffixes = {path.suffix for path in (ROOT / folder).rglob("*") if path.is_file()}
    assert suffixes <= {".toml", ".json", ".safetensors", ".npz", ".md"}


def test_no_module_is_too_long_to_read() -> None:
    long = {path: lines for path, text in sources().items() if (lines := len(text.splitlines())) > MODULE}
    assert not long, f"expected at most {MODULE} lines: {long}"


def test_no_function_is_too_long_to_read() -> None:
    long = {f.name: f.lines for f in all_functions() if f.lines > FUNCTION}
    assert not long, f"expected at most {FUNCTION} lines: {long}"


def test_nine_functions_in_ten_are_short() -> None:
    by_length = sorted(all_functions(), key=lambda f: f.lines)
    ninth = by_length[int(0.9 * len(by_length))]
    assert ninth.lines <= MOST_FUNCTIONS, f"expected nine in ten of at most {MOST_FUNCTIONS} lines, got {ninth.lines}"


def test_lines_are_counted_without_decorators_and_docstring() -> None:
    text = (
        '@decorated\n@twice\ndef f(\n    x,\n):\n    """Say.\n\n    More.\n    """\n\n    def g(): ...\n    return g\n'
    )
    assert list(functions(ast.parse(text), "m:")) == [Function("m:f", 6), Function("m:f.g", 1)]
