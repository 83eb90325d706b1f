"""What the documents promise is run: the README's Python, docstring examples, the examples folder."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import re
import runpy
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, shortened
from test_kaggle import notebook
from typer.main import get_command

import baseline
from baseline.cli.app import app
from baseline.recipe import load as recipe_files

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
MODULES = sorted(
    module.name.removeprefix("baseline.")
    for module in pkgutil.walk_packages(baseline.__path__, "baseline.")
    if not module.name.endswith("__main__")
)


@pytest.fixture
def brief(body: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The default recipe has a smaller body, smaller images and fewer steps."""
    settings = "".join(f"{name} = {json.dumps(value)}\n" for name, value in body.items())
    text = settings + (ROOT / "recipes" / "default.toml").read_text()
    short = re.sub(r"steps = \d+", "steps = 6", re.sub(r"image_size = \d+", "image_size = 48", text))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "default.toml").write_text(short)
    monkeypatch.setattr(recipe_files, "recipes_folder", lambda: tmp_path / "recipes")


def test_the_readmes_short_form_is_its_long_form(images: Path, brief: None) -> None:
    Path("images").symlink_to(images)
    short, long = ({} for _ in range(2))
    exec(BLOCKS[0], short)
    exec(BLOCKS[1], long)
    Path("runs/mine").symlink_to(short["result"].folder.absolute())
    Path("holiday").symlink_to(images / "ants")
    exec(BLOCKS[2], used := {})
    assert len(used["model"].predict("holiday")) == 24
    assert short["result"].metrics == long["metrics"]
    assert short["result"].predictions.equals(long["predictions"])
    assert len(BLOCKS) == 3


def test_the_readme_opens_with_two_commands_and_ci_runs_the_second() -> None:
    commands = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "baseline run cifar10" in commands[0] and "pytest" in commands[1]
    assert "grep -m1 '^python3 -m venv .*pytest' README.md" in (ROOT / ".ci" / "run").read_text()
    assert commands[1].startswith("python3 -m venv ")


PAGES = sorted(
    path for folder in (".", "docs", "recipes", "benchmarks", "examples") for path in (ROOT / folder).glob("*.md")
)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def commands(page: Path) -> list[str]:
    """What a page tells to type, from its bash blocks and its tables' first columns."""
    text = page.read_text()
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    spans = re.findall(r"(?<!`)`(baseline [a-z][^`]*)`", text)
    return [line.split("| ")[-1] for line in (*blocks.splitlines(), *spans) if re.match(r"(.*\| )?baseline ", line)]


@cache
def command_line() -> Any:
    return get_command(app)


@cache
def source_text() -> str:
    return "\n".join(path.read_text() for path in (ROOT / "baseline").rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_page_is_one_with_these_options(page: Path) -> None:
    for line in commands(page):
        _, name, *words = shlex.split(line.replace("...", ""), comments=True)
        assert name in command_line().commands, line
        parameters = command_line().commands[name].params
        known = {"--help"}.union(*([*each.opts, *each.secondary_opts] for each in parameters))
        unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in known]
        assert not unknown, line


INPUT_FILES = {"metadata.csv", "label_num_to_disease_map.json", "skylines-left-out.csv"}
"""Files that the pages name as examples of what users have or choose."""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_names_are_those_of_the_code(page: Path) -> None:
    names = re.findall(r"`(?:[\w.-]+/)*([a-z][\w-]*\.(?:csv|html|json|jsonl|npz|safetensors))`", page.read_text())
    assert not {name for name in names if name not in source_text()} - INPUT_FILES


@pytest.mark.parametrize("module", MODULES)
def test_names_that_docstrings_refer_to_exist(module: str) -> None:
    file = importlib.import_module(f"baseline.{module}").__file__
    for name in re.findall(r"`baseline((?:\.[a-z]\w*)*(?:\.[A-Za-z]\w*)+)`", Path(str(file)).read_text()):
        value: object = baseline
        path = "baseline"
        for part in name.removesuffix(".NAME").split(".")[1:]:
            path = f"{path}.{part}"
            if isinstance(value, type) and part in value.__annotations__:
                break
            value = getattr(value, part) if hasattr(value, part) else importlib.import_module(path)


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"baseline.{module}"))
    assert results.failed == 0


ORIGINS = ("alpaca", "ants_bees", "debris", "skylines", "try_your_own")
EXAMPLES = sorted(
    path for path in (ROOT / "examples").glob("*.py") if path.stem not in ("kaggle_kernel", *ORIGINS)
)  # test_kaggle.py


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(
    example: Path,
    images: Path,
    brief: None,
    no_page: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("IMAGES", str(images))
    monkeypatch.setattr(sys, "argv", [str(example), str(images), str(images / "ants" / "00.jpg")])
    runpy.run_path(str(example), run_name="__main__")
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("name", ORIGINS)
def test_the_examples_of_recipes_run(
    name: str,
    images: Path,
    rubbish: Path,
    grouped: Path,
    body: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """As they are, but at 48 px, with a small body, and an epoch a stage."""
    make = baseline.make_baseline

    def small(given: object, recipe: str, **changes: object) -> baseline.Baseline:
        return make(given, recipe, progress=baseline.Progress(), **{**shortened(recipe), **body, **changes})

    monkeypatch.setattr(baseline, "make_baseline", small)
    given = {"debris": rubbish, "skylines": grouped}.get(name, images)
    monkeypatch.setenv("IMAGES", str(given))
    monkeypatch.setattr(
        sys, "argv", [name, str(given), *([str(images / "ants/00.jpg")] if name == "try_your_own" else [])]
    )
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "accuracy" in printed or "wrong: an error rate" in printed
    for picture in re.findall(r"\S+\.png", printed):
        assert Path(picture).is_file()


@pytest.mark.parametrize("name", ["ants_bees", "own_model"])
def test_a_notebook_is_its_script_and_shows_what_came_of_it(name: str) -> None:
    kept = json.loads((ROOT / "examples" / f"{name}.ipynb").read_text())
    plain = notebook((ROOT / "examples" / f"{name}.py").read_text())
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in kept["cells"]] == [
        (cell["cell_type"], "".join(cell["source"])) for cell in plain["cells"]
    ]
    outputs = [each for cell in kept["cells"] for each in cell.get("outputs", [])]
    assert not [each for each in outputs if each["output_type"] == "error"]
    assert sum("image/png" in each.get("data", {}) for each in outputs) == 2
    assert "accuracy" in "".join(text for each in outputs for text in each.get("text", []))
