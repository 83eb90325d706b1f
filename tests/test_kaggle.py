"""The Kaggle kernel runs where inputs are read-only and nothing answers, from wheels; the notebook is the same text.

`python tests/test_kaggle.py` writes the notebook again.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
KERNEL, NOTEBOOK = EXAMPLES / "kaggle_kernel.py", EXAMPLES / "kaggle_kernel.ipynb"

OFFLINE = """
import socket
def refuse(*_):
    raise OSError("the internet is off")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


def notebook(text: str) -> dict[str, Any]:
    """The cells that `# %%` divides a script into."""
    cells = []
    for number, part in enumerate(re.split(r"^# %%", text, flags=re.MULTILINE)[1:]):
        head, _, body = part.partition("\n")
        words = "markdown" in head
        lines = body.strip("\n").splitlines(keepends=True)
        source = [re.sub(r"^# ?", "", line) for line in lines] if words else lines
        more = {} if words else {"execution_count": None, "outputs": []}
        kind = "markdown" if words else "code"
        cells.append({"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source, **more})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def test_the_notebook_is_the_script() -> None:
    assert json.loads(NOTEBOOK.read_text()) == notebook(KERNEL.read_text())
    assert len(notebook(KERNEL.read_text())["cells"]) == 6


def test_the_kernel_ends_with_a_valid_submission_from_read_only_inputs_with_the_internet_off(
    photos: Path, tmp_path: Path
) -> None:
    pytest.importorskip("hatchling")
    competition, wheels = tmp_path / "kaggle/input/insects", tmp_path / "kaggle/input/wheels"
    for folder in (competition / "train_images", competition / "test_images", wheels, tmp_path / "kaggle/working"):
        folder.mkdir(parents=True)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(build, cwd=EXAMPLES.parent, check=True, capture_output=True)
    train, test = ["id,label"], ["id,label"]
    for number in range(24):
        for name in ("ants", "bees"):
            part, lines = ("train_images", train) if number < 20 else ("test_images", test)
            shutil.copy(photos / name / f"{number:02}.jpg", competition / part / f"{number:03}_{name[0]}.jpg")
            lines.append(f"{number:03}_{name[0]},{name if number < 20 else ''}")
    (competition / "train.csv").write_text("\n".join(train) + "\n")
    (competition / "sample_submission.csv").write_text("\n".join(test) + "\n")
    python = environment(tmp_path / "venv")
    inputs = [path for path in (tmp_path / "kaggle/input").rglob("*") if path.is_dir()]
    for folder in inputs:
        folder.chmod(0o555)
    settings = {"BASELINE_KAGGLE": str(tmp_path / "kaggle"), "BASELINE_HOME": str(tmp_path / "home")}
    settings |= {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", *settings)}
    ended = subprocess.run([python, KERNEL], env=settings, capture_output=True, text=True, cwd=tmp_path)
    for folder in inputs:
        folder.chmod(0o755)
    assert ended.returncode == 0, ended.stderr
    with (tmp_path / "kaggle/working/submission.csv").open() as file:
        found = list(csv.reader(file))
    assert [row[0] for row in found] == [line.split(",")[0] for line in test]
    assert {row[1] for row in found[1:]} <= {"ants", "bees"} and "8 rows" in ended.stdout


def environment(folder: Path) -> Path:
    """A Python with every package of this one but baseline, which the kernel has to install, and no internet."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for path in (path for place in map(Path, site.getsitepackages()) if place.is_dir() for path in place.iterdir()):
        if "baseline" not in path.name and not (packages / path.name).exists():
            (packages / path.name).symlink_to(path)
    (packages / "sitecustomize.py").write_text(OFFLINE)
    return folder / "bin" / "python"


if __name__ == "__main__":
    NOTEBOOK.write_text(json.dumps(notebook(KERNEL.read_text()), indent=1) + "\n")
