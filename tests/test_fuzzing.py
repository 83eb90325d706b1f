"""Random tables, recipes, manifests, models, forms, archives and images are used or refused in one line, and in time.

A few seconds for each; `pytest -m slow tests/test_fuzzing.py` runs 100,000 cases.
"""

from __future__ import annotations

import gzip
import io
import json
import resource
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

import baseline
from baseline.data.audit.scan import scan_images
from baseline.data.sources.image_list import list_images
from baseline.data.sources.place import Columns
from baseline.deploy.server.app import create_app
from baseline.errors import BaselineError
from baseline.experiments.compare import list_runs
from baseline.recipe.schema import LEAVES
from baseline.report.model_card import write_card
from baseline.runs.folder import read_manifest, read_predictions
from baseline.runs.manifest import recipe_from_manifest

SECONDS, MEGABYTES = 20, 1000
"""Bounds of one case, and of the growth of the process over all cases of a test."""

COUNTS = [30, pytest.param(14_300, marks=pytest.mark.slow)]
"""Number of cases for each of seven kinds of input."""

pytestmark = pytest.mark.parametrize("count", COUNTS)

TEXTS = st.text(max_size=12) | st.sampled_from(
    ["", "\0", "a\rb", "\r\n", "../x", "/etc/passwd", "é" * 300, "nan", "1e999"]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**63, 10**30, 1e-320])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(TEXTS, parts, max_size=4),
    max_leaves=6,
)


def fuzz(count: int, strategy: st.SearchStrategy[Any], use: Callable[[Any], object]) -> None:
    """Call `use` with values of a strategy; only the library's own errors may come out of it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def check(value: Any) -> None:
        start = time.perf_counter()
        try:
            use(value)
        except BaselineError as error:
            message = str(error)
            assert message and "\n" not in message and len(message) < 8000 and "Traceback" not in message
        assert time.perf_counter() - start < SECONDS

    limits = settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )  # fmt: skip
    limits(given(strategy)(check))()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000 < MEGABYTES


@st.composite
def edited(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document of which up to three parts, at any depth, are replaced or removed."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        place = document
        while place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 3)):
                place = place[key]
            elif draw(st.booleans()):
                place[key] = draw(VALUES)
                break
            else:
                del place[key]
                break
    return document


@st.composite
def damaged(draw: st.DrawFn, contents: list[bytes]) -> bytes:
    """One of the contents, cut, or with some of its bytes replaced, removed or repeated."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from([0, 1, 2, 4, 64, len(content)]))
        content[start:end] = draw(st.binary(max_size=8) | st.just(bytes(content[start:end] * 2)))
    return bytes(content[:100_000])


def test_tables(count: int, images: Path, tmp_path: Path) -> None:
    names = [str(path) for path in sorted(images.rglob("*.jpg"))[:6]]
    cells = TEXTS | st.sampled_from([*names, "ants", "bees", "train", "test", '"', "0", "ants;bees"])
    columns = st.sampled_from(["path", "label", "split", "group", "fold", "id", "", "path", "x,y"]) | TEXTS
    rows = st.tuples(st.lists(columns, min_size=1, max_size=4), st.lists(st.lists(cells, max_size=5), max_size=8))
    delimiters, encodings = st.sampled_from([",", ";", "\t", "|"]), st.sampled_from(["utf-8", "utf-16", "cp1252"])

    def use(case: tuple[Any, str, str]) -> None:
        (header, lines), delimiter, encoding = case
        text = "\n".join(delimiter.join(line) for line in [header, *lines])
        (tmp_path / "table.csv").write_bytes(text.encode(encoding, "replace"))
        baseline.image_table(tmp_path / "table.csv", columns=Columns(image_dir=str(images)))

    fuzz(count, st.tuples(rows, delimiters, encodings), use)


def test_recipes(count: int, tmp_path: Path) -> None:
    keys = st.sampled_from([*LEAVES, "name", "seed", "stage", "augment", "data.labels", "presets.x.epochs"]) | TEXTS
    values = VALUES.map(lambda value: json.dumps(value, default=str)) | TEXTS
    lines = st.tuples(keys, values).map(" = ".join) | st.sampled_from(["[[stage]]", "[data]", "[model]", "[presets.a]"])

    def use(text: str) -> None:
        (tmp_path / "recipe.toml").write_bytes(text.encode(errors="surrogatepass"))
        baseline.load_recipe(tmp_path / "recipe.toml")

    fuzz(count, st.lists(lines, max_size=6).map("\n".join), use)


def test_manifests(count: int, tmp_path: Path) -> None:
    run = Path(shutil.copytree(Path(__file__).parent / "runs" / "format-1", tmp_path / "run"))
    document = json.loads((run / "manifest.json").read_text())

    def use(case: Any) -> None:
        (run / "manifest.json").write_text(json.dumps(case))
        for command in (
            lambda: recipe_from_manifest(run, read_manifest(run)), lambda: list_runs(tmp_path),
            lambda: baseline.load_recipe(run / "manifest.json"), lambda: write_card(run), lambda: read_predictions(run),
        ):  # fmt: skip
            try:
                command()
            except BaselineError as error:
                assert "\n" not in str(error)

    fuzz(count, edited(document), use)


def test_models(count: int, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    document = json.loads((folder / "model.json").read_text())

    def use(case: Any) -> None:
        (folder / "model.json").write_text(json.dumps(case))
        baseline.load(folder)

    fuzz(count, edited(document), use)


def test_forms(count: int, tiny: Path, images: Path) -> None:
    image = (images / "ants" / "00.jpg").read_bytes()
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n' + image + b"\r\n"
    pieces = st.sampled_from([
        part, b"--x\r\n", b"--x--\r\n", b"--x--", b"\r\n", image[:500], b"--", b":",
        b'Content-Disposition: form-data; name="class"\r\n\r\nants\r\n', b"Content-Disposition: form-data\r\n\r\n",
        b"Content-Type: text/plain; charset=\xff\r\n",
    ])  # fmt: skip
    bodies = st.lists(pieces | st.binary(max_size=20), max_size=8).map(b"".join)
    types = st.sampled_from([
        "multipart/form-data; boundary=x", "multipart/form-data", "multipart/form-data; boundary=", "application/json",
        'multipart/form-data; boundary="' + "x" * 300, "multipart/form-data; boundary=x; charset=\xff", "text/plain",
    ])  # fmt: skip
    with TestClient(create_app(tiny), base_url="http://localhost", raise_server_exceptions=False) as client:

        def use(case: tuple[bytes, str, str]) -> None:
            body, kind, place = case
            answer = client.post(place, content=body, headers={"content-type": kind.encode("latin-1")})
            assert answer.status_code in (200, 400, 404, 408, 413, 415, 422), (answer.status_code, answer.text)
            assert answer.status_code == 200 or answer.json()["error"]

        fuzz(count, st.tuples(bodies, types, st.sampled_from(["/predict", "/gradcam"])), use)


@st.composite
def tars(draw: st.DrawFn, image: bytes) -> bytes:
    """An archive whose headers hold odd fields."""
    content = b""
    for _ in range(draw(st.integers(1, 4))):
        member = tarfile.TarInfo(draw(TEXTS | st.sampled_from(["ants/1.jpg", "bees/2.jpg", "ants", "././@LongLink"])))
        member.type = draw(
            st.sampled_from([b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S", b"\0"])
        )
        member.linkname = draw(TEXTS | st.just("ants/1.jpg"))
        member.size = draw(st.sampled_from([0, 1, 600, len(image), 2**33 - 1, 2**62]))
        member.mode, member.mtime = draw(st.integers(0, 0o7777)), draw(st.integers(0, 2**40))
        try:
            header = member.tobuf(draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])), errors="replace")
        except ValueError:  # such as a name that no header can hold
            continue
        data = image[: member.size] if draw(st.booleans()) else draw(st.binary(max_size=600))
        content += header + data + bytes(-len(data) % 512)
    return content + bytes(draw(st.sampled_from([0, 100, 1024])))


def read_members(path: Path) -> None:
    """Read the images of an archive as `predict` does."""
    for image in list_images([str(path)])[0]:
        assert callable(image) and isinstance(image(), bytes)


def test_archives(count: int, images: Path, tmp_path: Path) -> None:
    image = (images / "ants" / "00.jpg").read_bytes()

    def use(content: bytes) -> None:
        (tmp_path / "images.tar").write_bytes(content)
        (tmp_path / "images.tar.gz").write_bytes(gzip.compress(content, 1))
        for read in (baseline.image_table, read_members):
            for name in ("images.tar", "images.tar.gz"):
                try:
                    read(tmp_path / name)
                except BaselineError as error:
                    assert "\n" not in str(error)
                except OSError as error:  # a member that is larger than is read
                    assert "more than" in str(error)

    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        archive.add(images, "images")
    fuzz(count, tars(image) | damaged([whole.getvalue()[:60_000]]), use)


def encoded_images() -> list[bytes]:
    """A small image in each of Pillow's formats that hold one."""
    contents, noise = [], np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for name in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "ICO"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, name)
        contents.append(buffer.getvalue())
    buffer = io.BytesIO()
    Image.fromarray(noise.astype(np.uint16)[..., 0] * 200).save(buffer, "TIFF", compression="tiff_lzw")
    return [*contents, buffer.getvalue()]


def test_images(count: int, tiny: Path, tmp_path: Path) -> None:
    model = baseline.load(tiny)

    def use(content: bytes) -> None:
        (tmp_path / "image.jpg").write_bytes(content)
        record = scan_images([str(tmp_path / "image.jpg")], baseline.Progress())
        (batch,) = model.predict_batches([tmp_path / "image.jpg"])
        assert bool(record.columns["reason"][0]) == bool(batch.errors[0])
        assert "\n" not in str(batch.errors[0])

    fuzz(count, damaged(encoded_images()), use)
