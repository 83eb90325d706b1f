"""What the documents promise is run: the README's Python, docstring examples, the examples folder."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, shortened

import baseline

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
MODULES = sorted(module.name for module in pkgutil.iter_modules(baseline.__path__) if not module.name.startswith("_"))


def test_the_readmes_short_form_is_its_long_form(photos: Path) -> None:
    Path("photos").symlink_to(photos)
    short, long = ({} for _ in range(2))
    exec(BLOCKS[0], short)
    exec(BLOCKS[1], long)
    Path("runs/mine").symlink_to(short["done"].folder.absolute())
    Path("holiday").symlink_to(photos / "ants")
    exec(BLOCKS[2], used := {})
    assert len(used["model"].predict("holiday")) == 24
    assert short["done"].metrics == long["metrics"]
    assert short["done"].predictions.equals(long["predictions"])
    assert len(BLOCKS) == 3


def test_the_readme_opens_with_two_commands_and_ci_runs_the_second() -> None:
    commands = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "baseline run cifar10" in commands[0] and "pytest" in commands[1]
    assert "grep -m1 '^python3 -m venv .*pytest' README.md" in (ROOT / ".ci" / "run").read_text()
    assert commands[1].startswith("python3 -m venv ")


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"baseline.{module}"))
    assert results.failed == 0


ORIGINS = ("alpaca", "ants_bees", "debris", "skylines", "try_your_own")
EXAMPLES = sorted(
    path for path in (ROOT / "examples").glob("*.py") if path.stem not in ("kaggle_kernel", *ORIGINS)
)  # test_kaggle.py


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(example: Path, photos: Path) -> None:
    command = [sys.executable, str(example), str(photos), str(photos / "ants" / "00.jpg")]
    settings = {**os.environ, "PHOTOS": str(photos)}
    ended = subprocess.run(command, capture_output=True, text=True, env=settings)
    assert ended.returncode == 0, ended.stderr
    assert "accuracy" in ended.stdout


@pytest.mark.parametrize("name", ORIGINS)
def test_the_examples_of_recipes_run(
    name: str,
    photos: Path,
    rubbish: Path,
    grouped: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """As they are, but at 48 px, with the embedded body, and an epoch a stage."""
    make = baseline.make_baseline

    def small(given: object, recipe: str, **changes: object) -> baseline.Baseline:
        return make(given, recipe, show=baseline.Show(), **{**shortened(recipe), **changes})

    monkeypatch.setattr(baseline, "make_baseline", small)
    given = {"debris": rubbish, "skylines": grouped}.get(name, photos)
    monkeypatch.setenv("PHOTOS", str(given))
    monkeypatch.setattr(
        sys, "argv", [name, str(given), *([str(photos / "ants/00.jpg")] if name == "try_your_own" else [])]
    )
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "accuracy" in printed or "photos are wrong" in printed
    for picture in re.findall(r"\S+\.png", printed):
        assert Path(picture).is_file()
