"""The house: imports point one way, the light rooms stay light, and the public names are complete."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import baseline

PACKAGE = Path(baseline.__file__).parent

MAY_IMPORT = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": set(),
    "progress": set(),
    "loggers": {"errors", "progress", "save"},
    "recipe": {"errors"},
    "archives": {"errors", "progress"},
    "datasets": {"errors", "progress", "archives"},
    "memory": set(),
    "tables": {"errors", "memory"},
    "foreign": {"archives", "datasets", "errors", "progress", "tables"},
    "sources": {"archives", "datasets", "errors", "foreign", "progress", "tables"},
    "photos": set(),
    "audits": {"datasets", "errors", "photos", "progress", "sources", "splits", "tables"},
    "splits": {"errors", "recipe", "tables"},
    "weights": {"errors", "progress", "datasets"},
    "cache": {"datasets", "errors", "progress"},
    "chance": set(),
    "checkpoints": {"errors", "save"},
    "processes": set(),
    "data": {"cache", "errors", "photos", "progress", "recipe", "tables", "weights"},
    "learners": {"errors", "recipe", "weights"},
    "clock": {"recipe"},
    "features": {"cache", "chance", "errors", "progress", "data", "learners", "quick", "recipe", "weights"},
    "planning": {"cache", "chance", "errors", "features", "learners", "quick", "recipe"},
    "quick": set(),
    "training": {"chance", "checkpoints", "data", "errors", "features", "learners", "planning", "processes", "progress",
                 "quick", "recipe"},
    "predict": {"processes", "progress", "data", "learners", "quick", "tables"},
    "mending": {"errors", "model", "progress", "recipe", "sources", "tables"},
    "metrics": {"errors", "tables"},
    "figures": {"photos"},
    "gradcam": set(),
    "pages": set(),
    "report": {"chance", "errors", "figures", "gradcam", "metrics", "networks", "pages", "photos", "progress", "recipe",
               "save", "tables"},
    "networks": {"errors", "learners", "recipe", "save"},
    "model": {"chance", "data", "errors", "features", "learners", "metrics", "networks", "photos", "predict", "quick",
              "recipe", "save", "tables"},
    "save": {"errors"},
    "web": {"errors", "figures", "gradcam", "model", "pages", "photos", "progress", "save", "tables"},
    "deployed": {"data", "predict"},
    "exports": {"bulk", "deployed", "errors", "metrics", "model", "networks", "photos", "progress"},
    "imports": {"bulk", "data", "errors", "learners", "model", "networks", "photos", "progress", "recipe", "save",
                "weights"},
    "bundles": {"errors", "learners", "model", "progress", "save", "weights"},
    "bulk": {"archives", "engines", "errors", "model", "progress", "save", "shards", "spread", "tables"},
    "shards": {"engines", "progress", "save"},
    "spread": {"errors", "model", "photos"},
    "card": {"datasets", "errors", "metrics", "progress", "recipe", "save", "tables", "weights"},
    "hub": {"card", "errors", "progress", "save"},
    "compare": {"errors", "metrics", "save"},
    "gallery": {"pages", "progress", "report", "save"},
    "cleaning": {"audits", "chance", "data", "errors", "features", "gallery", "learners", "make", "mending", "metrics",
                 "progress", "recipe", "save", "sources", "splits", "tables"},
    "engines": {"clock", "errors", "features", "make", "progress"},
    "shapes": {"errors", "tables"},
    "probes": set(),
    "zeroshot": {"errors", "photos", "progress", "weights"},
    "rungs": {"chance", "data", "engines", "errors", "features", "learners", "make", "metrics", "predict", "probes",
              "progress", "recipe", "save", "tables", "weights", "zeroshot"},
    "curve": {"data", "engines", "errors", "figures", "make", "pages", "predict", "progress", "recipe", "rungs", "save",
              "splits", "tables"},
    "ladder": {"clock", "engines", "errors", "figures", "make", "metrics", "pages", "progress", "recipe", "rungs",
               "save", "zeroshot"},
    "experiments": {"checkpoints", "compare", "engines", "errors", "make", "mending", "metrics", "model", "processes",
                    "progress", "recipe", "save", "splits"},
    "submission": {"archives", "datasets", "errors", "model", "progress", "save", "shapes", "sources", "tables"},
    "doctor": {"make", "datasets", "recipe", "weights"},
    "make": {"errors", "progress", "recipe", "loggers", "datasets", "sources", "audits", "splits", "foreign", "tables",
             "weights", "chance", "checkpoints", "clock", "data", "features", "learners", "planning", "processes",
             "training", "predict", "metrics", "report", "figures", "quick", "save", "card", "mending", "model",
             "networks", "photos"},
    "printing": {"audits", "cleaning", "compare", "curve", "experiments", "ladder", "make", "metrics", "recipe",
                 "save"},
    "cli": {"errors", "progress", "recipe", "datasets", "make", "save", "doctor", "audits", "printing",
            "sources", "report", "compare", "curve", "engines", "experiments", "ladder", "card", "hub",
            "model", "bulk", "shapes", "submission", "exports", "imports", "bundles", "web", "cleaning", "processes"},
}  # fmt: skip


def imported(module: str) -> set[str]:
    """The modules of this package that `module` imports anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module.split(".")[0]} if node.module else {name.name for name in node.names}
    return found - {"__version__"}


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", sorted(MAY_IMPORT))
def test_imports_point_one_way(module: str) -> None:
    assert imported(module) <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", sorted(MAY_IMPORT))
def test_every_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(ast.parse((PACKAGE / f"{module}.py").read_text()))


def test_the_light_rooms_load_nothing_heavy() -> None:
    heavy = "torch fastai fastcore timm torchvision pandas numpy matplotlib scipy"
    code = (
        "import sys, baseline, baseline.cli, baseline.recipe, baseline.errors;"
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
    for path in PACKAGE.glob("*.py"):
        calls = {node.func.id for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
        assert "print" not in calls or path.stem == "cli", path
