"""Write a model with all that runs it: a Gradio Space, a Docker image of the server, or a model of MLflow.

Each folder has a copy of this package, as no index has to know it, and the packages that it needs.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import baseline
from baseline.errors import OutputError, format_count
from baseline.files import CONFIG_FILE, GOLDEN_FILE, REFERENCE_FILE, TENSORS_FILE, parse_toml, write_atomic
from baseline.inference.model import load_model
from baseline.recipe.load import recipes_folder

if TYPE_CHECKING:
    from baseline.inference.model import Model

__all__ = ["copy_runner", "list_requirements", "mlflow_runner", "write_docker", "write_mlflow", "write_space"]


GRADIO = "gradio>=5"
"""What a Space installs; `sdk_version` of its header is left to the hub."""

SPACE_CARD = """\
---
title: {title}
emoji: 🖼️
colorFrom: indigo
colorTo: blue
sdk: gradio
app_file: app.py
pinned: false
---

Classifies images into {count}. `baseline export --to space` wrote it.
"""


def write_space(model: Model, folder: Path) -> None:
    """Write a Space: `app.py`, `requirements.txt`, `README.md` with the header of the hub, and the model."""
    copy_model(model, folder / "model")
    copy_package(folder)
    write_atomic(folder / "app.py", template("app.py"))
    write_atomic(folder / "requirements.txt", "\n".join([*list_requirements(), GRADIO]) + "\n")
    title = re.sub(r"[^\w ,.-]", "", ", ".join(model.classes[:4]))[:60] or "Classifier"
    count = format_count(len(model.classes), "class", "classes")
    write_atomic(folder / "README.md", SPACE_CARD.format(title=f'"{title}"', count=count))


def write_docker(model: Model, folder: Path) -> None:
    """Write a `Dockerfile` in which `baseline serve` runs on a CPU, with the model and `requirements.txt`."""
    copy_model(model, folder / "model")
    copy_package(folder)
    write_atomic(folder / "Dockerfile", template("Dockerfile"))
    write_atomic(folder / "requirements.txt", "\n".join(list_requirements("serve", "metrics")) + "\n")
    write_atomic(folder / ".dockerignore", "**/__pycache__\n")


def write_mlflow(model: Model, folder: Path) -> None:
    """Write a model of MLflow, which `mlflow.pyfunc.load_model` loads."""
    import mlflow

    image = mlflow.types.ColSpec("binary", "image")
    signature = mlflow.models.ModelSignature(inputs=mlflow.types.Schema([image]))
    with TemporaryDirectory() as temporary:
        copy_model(model, Path(temporary) / "model")
        copy_package(Path(temporary))
        script = Path(temporary) / "mlflow_model.py"
        script.write_text(template("mlflow_model.py"), encoding="utf-8")
        mlflow.pyfunc.save_model(
            folder / "mlflow", python_model=str(script), artifacts={"model": str(Path(temporary) / "model")},
            code_paths=[str(Path(temporary) / "baseline")], pip_requirements=[*list_requirements(), "mlflow"],
            signature=signature,
        )  # fmt: skip
    for path in sorted((folder / "mlflow").iterdir()):
        path.rename(folder / path.name)
    (folder / "mlflow").rmdir()


def template(name: str) -> str:
    """Return the text of a template."""
    return (files("baseline.deploy") / "templates" / name).read_text(encoding="utf-8")


def copy_model(model: Model, folder: Path) -> None:
    """Copy what is needed to predict; images and features of training images stay out."""
    folder.mkdir()
    left_out = (GOLDEN_FILE, REFERENCE_FILE)
    for path in sorted(model.folder.iterdir()):
        if path.is_file() and not path.is_symlink() and path.name not in left_out and not path.name.startswith("."):
            shutil.copy(path, folder / path.name)
    if missing := [name for name in (CONFIG_FILE, TENSORS_FILE) if not (folder / name).exists()]:
        raise OutputError(f"{model.folder} has links for {' and '.join(missing)}. Copy the folder, and export that.")


def copy_package(folder: Path) -> None:
    """Copy this package, with its recipes where an installed one has them."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(Path(baseline.__file__).parent, folder / "baseline", ignore=unwanted)
    shutil.copytree(recipes_folder(), folder / "baseline" / "recipes", dirs_exist_ok=True, ignore=unwanted)


def list_requirements(*extras: str) -> list[str]:
    """Return what this package needs, and what some of its extras need: as its clone says, or else its installation.

    Raises:
        OutputError: if there is neither.
    """
    clone = Path(baseline.__file__).parents[1] / "pyproject.toml"
    if clone.is_file():
        project = parse_toml(clone.read_text(encoding="utf-8"))["project"]
        optional = project["optional-dependencies"]
        return [*project["dependencies"], *(need for extra in extras for need in optional[extra])]
    try:
        lines = [line.split(";") for line in requires("fastai-baseline") or []]
    except PackageNotFoundError:
        raise OutputError("The requirements are unknown: fastai-baseline is not installed. Install it.") from None
    wanted = [rf"extra == .{extra}.$" for extra in extras]
    return [
        name.strip()
        for name, *marker in lines
        if not marker or any(re.search(pattern, marker[0].strip()) for pattern in wanted)
    ]


@contextmanager
def copy_runner(folder: Path, model: Model) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Yield a function that predicts squares with the copied model."""
    copy = load_model(folder / "model")
    columns = [f"p_{name}" for name in copy.classes]
    yield lambda squares: copy.predict([*squares])[columns].to_numpy()


@contextmanager
def mlflow_runner(folder: Path, model: Model) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Yield a function that predicts squares as MLflow does, from image files in memory."""
    import mlflow
    import pandas as pd

    loaded = mlflow.pyfunc.load_model(str(folder))
    columns = [f"p_{name}" for name in model.classes]

    def run(squares: np.ndarray) -> np.ndarray:
        contents = []
        for square in squares:
            Image.fromarray(square).save(buffer := io.BytesIO(), "PNG")
            contents.append(buffer.getvalue())
        return loaded.predict(pd.DataFrame({"image": contents}))[columns].to_numpy()

    yield run
