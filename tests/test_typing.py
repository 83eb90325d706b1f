"""What a type checker says of a user's script: names that do not exist are errors, and results have their types."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from baseline.recipe.changes import RecipeChanges
from baseline.recipe.schema import GROUPS, LEAVES, PRESETS, Recipe

SCRIPT = """
import baseline
from baseline import make_baseline

result = make_baseline("images/", image_size=64, preset="quick", model={"arch": "resnet18"})
reveal_type(result.metrics)
reveal_type(result.learner)
reveal_type(result.predictions)
reveal_type(result.manifest["stages"])
reveal_type(baseline.load("runs/mine"))
"""

WRONG = {
    "baseline.nonsense()": 'Module has no attribute "nonsense"',
    "make_baseline('images/', imagesize=64)": 'Unexpected keyword argument "imagesize"',
    "make_baseline('images/', image_size='64')": "incompatible type",
    "make_baseline('images/', preset='quik')": "incompatible type",
    "result.manifest['secnods']": 'TypedDict "Manifest" has no key "secnods"',
}


OTHERS = "torch torchvision timm matplotlib scipy sklearn rich typer PIL pydantic jinja2"
"""Packages whose types these results do not contain; to read them takes four times as long as all else."""


def checked(script: str, folder: Path, *options: str) -> str:
    """Return what mypy says of a script."""
    (folder / "script.py").write_text(script)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder), *options, "script.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What mypy says of a correct script, and then of each wrong line."""
    folder = tmp_path_factory.mktemp("typing")
    others = ",".join(f"{name}.*" for name in OTHERS.split())
    (folder / "mypy.ini").write_text(f"[mypy]\n[mypy-{others}]\nfollow_imports = skip\n")
    return checked(SCRIPT + "\n".join(WRONG) + "\n", folder, "--config-file", "mypy.ini")


def test_results_have_their_types(report: str) -> None:
    for kind in (
        "SplitMetrics",
        "'accuracy': float",
        "pandas.core.frame.DataFrame",
        "StageRecord",
        "baseline.inference.model.Model",
    ):
        assert kind in report, report


@pytest.mark.slow
def test_the_learner_is_fastais(tmp_path: Path) -> None:
    """fastai has no type information of its own, so a checker has to read its code, which takes a minute."""
    assert "fastai.learner.Learner" in checked(SCRIPT, tmp_path, "--config-file", "", "--follow-untyped-imports")


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_line_is_an_error(report: str, line: str) -> None:
    number = len(SCRIPT.splitlines()) + 1 + list(WRONG).index(line)
    errors = [text for text in report.splitlines() if text.startswith(f"script.py:{number}: error")]
    assert errors and WRONG[line] in errors[0], report


def test_the_typed_changes_are_the_fields_of_the_recipe() -> None:
    fields = {f.name for f in dataclasses.fields(Recipe)} | set(LEAVES)
    hints = get_type_hints(RecipeChanges)
    assert set(hints) == (fields | {"preset"}) - {"seed"}  # the seed is a parameter of its own
    assert get_args(hints["preset"]) == ("auto", *PRESETS)
    for flat, (group, leaf) in LEAVES.items():
        assert leaf in {f.name for f in dataclasses.fields(GROUPS[group])}, flat
