"""The structure of the package: imports point down, the core is small, and the rest can be removed."""

from __future__ import annotations

import ast
import io
import os
import pickle
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Sequence
from pathlib import Path

import pytest

import baseline
from baseline.recipe.load import recipes_folder

PACKAGE = Path(baseline.__file__).parent

FLOORS = (
    "terminal < errors notebook < progress system < reading < files parallel metrics < recipe < data < vision < "
    "training evaluation < inference < runs < report < make deploy < experiments < cli"
)
"""Imports point down only. Wings on the same floor do not import each other."""

FLOOR = {wing: number for number, wings in enumerate(FLOORS.split("<")) for wing in wings.split()}
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
    assert not {wing for wing in imported(path) if FLOOR[wing] >= floor}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


THIN_LAYER = (
    "make recipe/schema recipe/load recipe/choose recipe/auto vision/resolve vision/network vision/learner "
    "vision/dataloaders vision/augment training/stages training/callbacks training/state training/lr_find "
    "evaluation/predict evaluation/table evaluation/metrics"
)
"""The recipe layer over fastai, to be read in one sitting."""

CORE = ("metrics", "recipe", "data", "vision", "training", "evaluation", "runs", "make")
LEAVES = (
    "cli", "experiments", "deploy", "report", "inference", "parallel/executor.py", "data/formats",
    "data/audit/findings.py", "data/audit/duplicates.py", "data/label_fixes.py", "data/table_folds.py",
    "training/loggers.py", "training/average.py", "training/plateau.py", "training/budget.py",
    "training/budget_plan.py",
    "training/probe.py", "training/logistic.py", "training/choose_arch.py", "vision/pointwise.py",
    "vision/weights_download.py",
    "runs/probe_reference.py",
    "metrics/probability", "metrics/quadratic_kappa.py", "metrics/standard_error.py", "evaluation/details",
    "evaluation/bootstrap.py", "evaluation/thresholds.py", "evaluation/cut_points.py", "evaluation/difference.py",
    "evaluation/significance.py", "evaluation/metric_test.py", "evaluation/tta_choice.py",
    "evaluation/ensemble.py", "evaluation/explain.py", "evaluation/gradcam.py", "evaluation/label_errors.py",
)  # fmt: skip

SOURCES = "data/sources"
CORE_SOURCES = ["class_folders", "folders", "place", "read_table", "registry"]
"""What reads class folders. Every other module of `SOURCES` can be removed."""

TABLE_SOURCES = ["columns", "image_tables", "label_values", "match_images", "tables"]
"""What reads a table file or a DataFrame, which works without the layouts."""


def is_removable(path: Path) -> bool:
    """Whether the core works without a module: a leaf, or a source other than class folders and tables."""
    return is_removable_source(path) or any(path.is_relative_to(PACKAGE / leaf) for leaf in LEAVES)


def is_removable_source(path: Path) -> bool:
    name = str(path.relative_to(PACKAGE))
    return name.startswith(SOURCES) and path.stem not in (*CORE_SOURCES, "__init__")


def code_lines(path: Path) -> int:
    """Number of lines of code, without docstrings, comments and blank lines."""
    text, docstrings, code = path.read_text(), set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def test_the_thin_layer_is_read_in_one_sitting() -> None:
    files = [PACKAGE / f"{name}.py" for name in THIN_LAYER.split()]
    assert len(files) <= 17
    assert sum(map(code_lines, files)) <= 2_500


def test_the_core_stays_small() -> None:
    assert sum(code_lines(path) for path in MODULES if wing_of(path) in CORE and not is_removable(path)) <= 8_000
    assert max(path.read_text().count("\n") for path in MODULES) <= 600


CORE_RUN = """
import gc, sys
from pathlib import Path
import baseline
assert Path(baseline.__file__).is_relative_to(sys.argv[1]), baseline.__file__
stages = (baseline.Stage("head", 1, 1e-2, augment=False), baseline.Stage(2, 1, 1e-3))
recipe = baseline.load_recipe("default").changed(image_size=32, presets={}, stages=stages, cache_gb=0, audit="none")
result = baseline.make_baseline(sys.argv[2], recipe, out="run", progress=baseline.Progress())
assert result.metrics["test"]["images"] == 10 and 0 <= result.metrics["test"]["tta"]["accuracy"] <= 1
assert {"manifest.json", "predictions.csv", "split.csv", "model"} <= {path.name for path in result.folder.iterdir()}
gc.freeze()  # ends in a quarter of the time
"""


def with_users(leaf: str) -> list[str]:
    """A leaf and the leaves that import it, which go with it: a report without Grad-CAM is another report."""
    names = {leaf}
    if leaf in ("evaluation/details", "metrics/probability"):  # the report shows what these add to a manifest
        names.add("report")
    for _ in LEAVES:
        modules = {f"baseline.{name.removesuffix('.py').replace('/', '.')}" for name in names}
        for other in LEAVES:
            files = [PACKAGE / other] if other.endswith(".py") else [*(PACKAGE / other).rglob("*.py")]
            text = "".join(path.read_text() for path in files)
            if any(f"from {module} " in text or f"from {module}." in text for module in modules):
                names.add(other)
    return sorted(names)


def copy_package(folder: Path, without: Sequence[str | Path] = ()) -> Path:
    """Copy the package and its recipes, and remove these modules and folders."""
    copy = shutil.copytree(PACKAGE, folder / "copy" / "baseline")
    shutil.copytree(recipes_folder(), folder / "copy" / "recipes")
    for name in without:
        (shutil.rmtree if (copy / name).is_dir() else Path.unlink)(copy / name)
    return Path(copy)


def run_copy(copy: Path, code: str, *words: object) -> str:
    """Run Python code with a copy of the package, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(copy.parent)}
    command = [sys.executable, "-B", "-c", code, *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=copy.parents[1], env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    "leaf",
    ["all together", *(pytest.param(leaf, marks=pytest.mark.slow) for leaf in LEAVES)],
)
def test_the_core_works_without(leaf: str, images: Path, tmp_path: Path) -> None:
    copy = copy_package(tmp_path, LEAVES if leaf == "all together" else with_users(leaf))
    run_copy(copy, CORE_RUN, copy.parent, images)


@pytest.mark.parametrize("kept", [[], TABLE_SOURCES], ids=["folders", "folders and tables"])
def test_the_core_works_without_other_sources(kept: list[str], images: Path, tmp_path: Path) -> None:
    others = [path.relative_to(PACKAGE) for path in filter(is_removable_source, MODULES) if path.stem not in kept]
    layouts = Path(SOURCES, "layouts")
    copy = copy_package(tmp_path, [*LEAVES, *(path for path in others if path.parent != layouts), layouts])
    rows = [f"{path},{path.parent.name}" for path in sorted(images.rglob("*.jpg"))]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    table = "import baseline\nassert baseline.image_table('table.csv')['label'].nunique() == 2\n"
    run_copy(copy, table if kept else CORE_RUN, copy.parent, images)


LAYOUTS = sorted((PACKAGE / SOURCES / "layouts").glob("[a-z]*.py"))


def test_a_form_can_be_removed_alone(tmp_path: Path) -> None:
    copy = copy_package(tmp_path)
    script = (
        "import sys; from baseline.data.sources.registry import all_sources; all_sources.cache_clear();"
        "print(*all_sources())"
    )
    everything = set(run_copy(copy, script).split())
    assert {"folders", "table", "names", "coco", "pixels"} <= everything
    for layout in LAYOUTS[:2]:
        moved = (copy / SOURCES / "layouts" / layout.name).rename(tmp_path / layout.name)
        assert set(run_copy(copy, script).split()) < everything
        moved.rename(copy / SOURCES / "layouts" / layout.name)


def test_reading_images_loads_no_torch(images: Path) -> None:
    code = (
        "import sys; from baseline.cli.app import app; sys.argv = ['baseline', *sys.argv[1:]];"
        "app(standalone_mode=False);"
        "heavy = ('torch', 'fastai', 'sklearn', 'matplotlib', 'scipy', 'jinja2');"
        "print([name for name in heavy if name in sys.modules])"
    )
    for words in (["run", str(images), "--dry-run"], ["audit", str(images), "--quiet"]):
        ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert ended.stdout.splitlines()[-1] == "[]", ended.stdout


def test_commands_about_runs_and_the_installation_load_no_torch(done: baseline.Baseline, tmp_path: Path) -> None:
    copy = shutil.copytree(done.folder, tmp_path / "runs" / "copy")
    code = (
        "import sys; from baseline.cli.app import app; sys.argv = ['baseline', *sys.argv[1:]];"
        "app(standalone_mode=False);"
        "heavy = ('torch', 'torchvision', 'timm', 'fastai', 'sklearn', 'matplotlib', 'scipy.stats');"
        "print([name for name in heavy if name in sys.modules])"
    )
    for words in (["doctor"], ["recipes"], ["runs", str(copy.parent)], ["compare", str(done.folder), str(copy)]):
        ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert ended.stdout.splitlines()[-1] == "[]", ended.stdout


def test_light_modules_load_nothing_heavy() -> None:
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


@pytest.mark.parametrize("name", baseline.__all__)
def test_a_public_name_can_be_sent_to_another_process(name: str) -> None:
    assert pickle.loads(pickle.dumps(getattr(baseline, name))) is getattr(baseline, name)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = baseline.nothing


def test_only_what_escapes_control_characters_prints() -> None:
    printers = {"print": ["cli/output.py"], "make_console": ["cli/doctor.py", "cli/output.py", "progress.py"]}
    for path in PACKAGE.rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        called = {getattr(call, "id", "") for call in calls} | {getattr(call, "attr", "") for call in calls} - {"print"}
        place = str(path.relative_to(PACKAGE))
        for name in ("print", "echo", "secho", "Console", "make_console"):
            assert name not in called or place in printers.get(name, []), (place, name)
