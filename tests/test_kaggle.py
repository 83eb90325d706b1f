"""The Kaggle kernel runs from wheels, with read-only inputs and without internet; the notebook has the same text.

`python tests/test_kaggle.py` rewrites the notebook.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import shutil
import site
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import baseline
import baseline.make

SAMPLE = "input/insects/sample_submission.csv"
EXAMPLES = Path(__file__).parents[1] / "examples"
KERNEL, NOTEBOOK = EXAMPLES / "kaggle_kernel.py", EXAMPLES / "kaggle_kernel.ipynb"

OFFLINE = """
import socket
def refuse(*_):
    raise OSError("the internet is off")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


def notebook(text: str) -> dict[str, Any]:
    """Convert a script with `# %%` cell markers to a notebook."""
    cells = []
    for number, part in enumerate(re.split(r"^# %%", text, flags=re.MULTILINE)[1:]):
        header, _, body = part.partition("\n")
        is_text = "markdown" in header
        lines = body.strip("\n").splitlines(keepends=True)
        source = [re.sub(r"^# ?", "", line) for line in lines] if is_text else lines
        fields = {} if is_text else {"execution_count": None, "outputs": []}
        kind = "markdown" if is_text else "code"
        cells.append({"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source, **fields})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def test_the_notebook_is_the_script() -> None:
    assert json.loads(NOTEBOOK.read_text()) == notebook(KERNEL.read_text())
    assert len(notebook(KERNEL.read_text())["cells"]) == 6


@pytest.fixture
def kaggle(images: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder like `/kaggle`: a competition of ants and bees in `input`, which is read-only, and `working`."""
    root, competition = tmp_path / "kaggle", tmp_path / "kaggle/input/insects"
    for folder in (competition / "train_images", competition / "test_images", root / "input/wheels", root / "working"):
        folder.mkdir(parents=True)
    train, test = ["id,label"], ["id,label"]
    for number in range(24):
        for name in ("ants", "bees"):
            part, lines = ("train_images", train) if number < 20 else ("test_images", test)
            shutil.copy(images / name / f"{number:02}.jpg", competition / part / f"{number:03}_{name[0]}.jpg")
            lines.append(f"{number:03}_{name[0]},{name if number < 20 else ''}")
    (competition / "train.csv").write_text("\n".join(train) + "\n")
    (competition / "sample_submission.csv").write_text("\n".join(test) + "\n")
    with read_only(root / "input/insects"):
        yield root


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only. Root can write nevertheless, so the contents are compared, too."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    before = sorted(map(str, folder.rglob("*")))
    for path in folders:
        path.chmod(0o555)
    yield
    for path in folders:
        path.chmod(0o755)
    assert sorted(map(str, folder.rglob("*"))) == before


def check_submission(kaggle: Path) -> None:
    with (kaggle / "working/submission.csv").open() as file, (kaggle / SAMPLE).open() as sample:
        rows, expected = list(csv.reader(file)), list(csv.reader(sample))
    assert rows[0] == expected[0] and [row[0] for row in rows] == [row[0] for row in expected] and len(rows) == 9
    assert {row[1] for row in rows[1:]} <= {"ants", "bees"}


def test_the_kernels_cells_end_with_a_valid_submission(
    kaggle: Path, small: baseline.Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """All cells except for the installation, with a recipe that takes seconds."""

    def make_small(images: Path, *, preset: str, out: Path) -> baseline.Baseline:
        assert preset in baseline.recipe.schema.PRESETS
        return baseline.make.make_baseline(images, small, out=out, progress=baseline.Progress())

    def refuse(*_: Any) -> None:
        raise OSError("the internet is off")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(baseline, "make_baseline", make_small, raising=False)
    monkeypatch.setenv("BASELINE_KAGGLE", str(kaggle))
    install, *cells = ["".join(cell["source"]) for cell in notebook(KERNEL.read_text())["cells"]
                       if cell["cell_type"] == "code"]  # fmt: skip
    assert '"pip", "install"' in install and "--no-index" in install
    assert not isinstance(ast.parse(install).body[-1], ast.Expr), "its output would list every wheel"
    exec("\n".join(cells), {"root": kaggle, "__name__": "__main__"})
    printed = capsys.readouterr().out
    assert "8 rows; columns, ids and their order as in the sample" in printed and "95% confidence interval" in printed
    check_submission(kaggle)


@pytest.mark.slow
def test_the_kernel_runs_from_wheels_in_an_environment_without_internet(kaggle: Path, tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    wheel(kaggle / "input/wheels")
    settings = {"BASELINE_KAGGLE": str(kaggle), "BASELINE_HOME": str(tmp_path / "home")}
    settings |= {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", *settings)}
    python = environment(tmp_path / "venv")
    with read_only(kaggle / "input/wheels"):
        result = subprocess.run([python, KERNEL], env=settings, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "8 rows" in result.stdout
    check_submission(kaggle)


def wheel(folder: Path) -> Path:
    """Build the wheel of this checkout into the folder."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=EXAMPLES.parent, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def environment(folder: Path) -> Path:
    """Create a Python without internet that has all packages except for baseline, which the kernel must install."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for path in (path for place in map(Path, site.getsitepackages()) if place.is_dir() for path in place.iterdir()):
        if "baseline" not in path.name and not (packages / path.name).exists():
            (packages / path.name).symlink_to(path)
    (packages / "sitecustomize.py").write_text(OFFLINE)
    return folder / "bin" / "python"


if __name__ == "__main__":
    NOTEBOOK.write_text(json.dumps(notebook(KERNEL.read_text()), indent=1) + "\n")
