"""Recipes, manifests, model folders and tables that someone else wrote: used, or refused in one line.

`SECURITY.md` says what holds; `benchmarks/RELIABILITY.md` lists the outcomes.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import call
from PIL import Image
from starlette.testclient import TestClient

import baseline
from baseline.data.image import load_image
from baseline.deploy.server.app import create_app
from baseline.deploy.server.predictor import Limits
from baseline.errors import RecipeError
from baseline.files import write_atomic


@pytest.fixture
def run(done: baseline.Baseline, tmp_path: Path) -> Path:
    """A copy of a finished run, to be edited."""
    return Path(shutil.copytree(done.folder, tmp_path / "run"))


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# ---- paths and names ------------------------------------------------------------------------------------------------


def served_examples(run: Path, **options: Any) -> list[bytes]:
    """All that `GET /examples/NUMBER` returns, small or not."""
    app = create_app(run, **options)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        answers = [client.get(f"/examples/{number}{end}") for number in range(9) for end in ("", "/small")]
    return [answer.content for answer in answers if answer.status_code == 200]


def name_in_split(run: Path, *paths: Path) -> None:
    """Make the run's `split.csv` name these files as its test images."""
    pd.DataFrame({"path": list(map(str, paths)), "label": "ants", "split": "test"}).to_csv(run / "split.csv")


def test_serve_hands_out_no_file_that_is_not_an_image_of_the_run(run: Path, images: Path, tmp_path: Path) -> None:
    secret, private = tmp_path / "secret.txt", tmp_path / "private.png"
    secret.write_text("password")
    Image.new("RGB", (60, 60), "red").save(private)
    copy = Path(shutil.copytree(images, tmp_path / "copy"))
    edit_json(run / "manifest.json", images=str(copy))
    (copy / "text.jpg").write_text("password")
    (copy / "link.png").symlink_to(private)
    (copy / "linked").symlink_to(tmp_path)
    os.mkfifo(copy / "pipe.jpg")
    outside = [secret, private, copy / "link.png", copy / "linked" / "private.png", copy / ".." / "private.png"]
    name_in_split(run, *outside, Path("/etc/passwd"), copy / "text.jpg", copy / "pipe.jpg", copy / "absent.jpg")
    assert served_examples(run) == []
    name_in_split(run, *outside, copy / "ants" / "00.jpg")
    large, small = served_examples(run)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(large))), np.asarray(load_image(copy / "ants" / "00.jpg")))
    assert Image.open(io.BytesIO(small)).format == "JPEG"


@pytest.mark.parametrize("folder", ["/", str(Path.home()), str(Path.home().parent), "", None, "images", ".", "/../"])
def test_serve_shows_no_image_where_the_manifest_claims_all_files(run: Path, images: Path, folder: str | None) -> None:
    edit_json(run / "manifest.json", images=folder)
    name_in_split(run, images / "ants" / "00.jpg")
    assert served_examples(run) == []


def test_examples_are_decoded_under_the_limits_of_the_server(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8))
    noise.save(folder / "bytes.png")
    Image.new("RGB", (1500, 800)).save(folder / "pixels.png")
    Image.new("RGB", (60, 40)).save(folder / "page.eps")
    Image.new("RGB", (60, 40)).save(folder / "fine.jpg", comment=b"where I live")
    edit_json(run / "manifest.json", images=str(folder))
    name_in_split(run, *sorted(folder.iterdir()))
    large, small = served_examples(run, limits=Limits(megabytes=1, megapixels=1))
    assert Image.open(io.BytesIO(large)).size == (60, 40)
    assert b"where I live" not in large + small


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "..", ".", "a/b", "a\\b", "a\0b", "a\nb", "x" * 201])
def test_the_name_of_a_recipe_is_no_path(name: str, images: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"name": name, "image_size": 48}))
    with pytest.raises(RecipeError, match=r"name is .* needed: a name of 1 to 200 bytes without / and"):
        baseline.load_recipe(recipe)
    with pytest.raises(RecipeError, match="name is"):
        baseline.make_baseline(images, name=name)
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["ants and bees", "Größe", "-x", "..."])
def test_other_names_of_recipes_are_accepted(name: str) -> None:
    assert baseline.Recipe(name=name).name == name


def test_a_link_left_behind_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / ".report.html.part").symlink_to(tmp_path / "mine.txt")
    write_atomic(tmp_path / "report.html", "report")
    assert (tmp_path / "mine.txt").read_text() == "mine" and (tmp_path / "report.html").read_text() == "report"


def test_what_a_link_in_a_model_folder_names_is_not_published(run: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    (run / "model" / "notes.txt").symlink_to(tmp_path / "key")
    ended = call("push", run, "me/ants", "--dry-run")
    assert ended.returncode == 2 and "notes.txt is a link to a file elsewhere" in ended.stderr


def test_an_image_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "image.jpg")
    with pytest.raises(OSError, match="not a file"):
        load_image(tmp_path / "image.jpg")
