"""The house: imports point one way, the light rooms stay light, and the public names are complete."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import baseline

PACKAGE = Path(baseline.__file__).parent

FLOORS = (
    "errors progress system < files parallel < recipe < data < vision < training evaluation < inference < runs "
    "< report < make deploy < experiments < cli"
)
"""Imports point down only. Wings on the same floor do not import each other."""

FLOOR = {wing: number for number, wings in enumerate(FLOORS.split("<")) for wing in wings.split()}
EXCEPTIONS = {"data": {"inference", "report"}}
"""`prepare` still writes the audit and asks a second model; both leave it."""
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__") or path.parent != PACKAGE)


def wing_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The wings that a module imports from, anywhere in its text."""
    wings = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports within the package are absolute"
            if (node.module or "").split(".")[0] == "baseline":
                _, *parts = node.module.split(".")
                wings |= {parts[0]} if parts else {alias.name for alias in node.names}
    return {wing for wing in wings if not wing.startswith("__")} - {wing_of(path)}


def test_every_wing_has_its_floor() -> None:
    assert {wing_of(path) for path in MODULES} == set(FLOOR)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    floor = FLOOR[wing_of(path)]
    upward = {wing for wing in imported(path) if FLOOR[wing] >= floor} - EXCEPTIONS.get(wing_of(path), set())
    assert not upward


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_light_rooms_load_nothing_heavy() -> None:
    heavy = "torch fastai fastcore timm torchvision pandas numpy matplotlib scipy"
    code = (
        "import sys, baseline, baseline.cli.app, baseline.recipe.schema, baseline.errors;"
        f"print([name for name in {heavy.split()} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_public_names_are_sorted_and_there() -> None:
    assert list(baseline.__all__) == sorted(set(baseline.__all__))
    for name in baseline.__all__:
        assert getattr(baseline, name).__doc__, name


def test_a_public_name_stays_itself_after_its_modules_are_loaded() -> None:
    import baseline.make  # loads nearly every module

    assert all(callable(getattr(baseline, name)) for name in baseline.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = baseline.nothing


def test_only_cli_and_progress_print() -> None:
    for path in PACKAGE.rglob("*.py"):
        calls = {node.func.id for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
        assert "print" not in calls or wing_of(path) == "cli", path
