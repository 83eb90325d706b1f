"""Random tables, recipes, manifests, models, forms, archives and images are used or refused in one line, and in time.

A few seconds for each; `pytest -m slow tests/test_fuzzing.py` runs 100,100 cases, in ten parts of each kind, and prints
with `-rP` how many were used and refused.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import resource
import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

import baseline
from baseline.data.audit.scan import scan_images
from baseline.data.image import FORMATS
from baseline.data.sources.image_list import list_images
from baseline.data.sources.place import Columns
from baseline.deploy.server.app import create_app
from baseline.errors import BaselineError
from baseline.experiments.compare import list_runs
from baseline.recipe.diff import flat_recipe
from baseline.recipe.schema import LEAVES
from baseline.report.model_card import write_card
from baseline.runs.folder import read_manifest, read_predictions
from baseline.runs.manifest import recipe_from_manifest

SECONDS, MEGABYTES = 10, 1000
"""Bounds of the CPU time of one case, and of the growth of the process over all cases of a test."""

CASES, PARTS = 1430, 10
"""Number of cases of a part, and of parts, for each of seven kinds of input."""

PART_NUMBERS = [None, *(pytest.param(number, marks=pytest.mark.slow) for number in range(PARTS))]
"""30 cases, then the parts. All are the same in each run, so that a change is not refused for a case of another's."""

pytestmark = pytest.mark.parametrize("part", PART_NUMBERS)

TEXTS = st.text(max_size=12) | st.sampled_from(
    ["", "\0", "a\rb", "\r\n", "../x", "/etc/passwd", "é" * 300, "nan", "1e999"]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**63, 10**30, 1e-320])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(TEXTS, parts, max_size=4),
    max_leaves=6,
)


def attempt(*functions: Callable[[], object]) -> str:
    """Call functions, of which the library's own errors may come, and return how many succeeded."""
    used = 0
    for function in functions:
        try:
            function()
            used += 1
        except BaselineError as error:
            message = str(error)
            assert message and "\n" not in message and len(message) < 8000 and "Traceback" not in message
    return f"{used} of {len(functions)}"


def fuzz(part: int | None, strategy: st.SearchStrategy[Any], use: Callable[[Any], str]) -> None:
    """Call `use` with values of a strategy, and count what it returns."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    seconds: list[float] = []
    answers: Counter[str] = Counter()

    def check(value: Any) -> None:
        start = time.process_time()
        answers[use(value)] += 1
        seconds.append(time.process_time() - start)
        assert seconds[-1] < SECONDS

    limits = settings(
        max_examples=30 if part is None else CASES, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    limits(seed(PARTS if part is None else part)(given(strategy)(check)))()
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    spent = f"{time.process_time() - start:.0f} s of CPU time, {megabytes:.0f} MB more memory"
    print(f"{dict(sorted(answers.items()))}, slowest {max(seconds):.2f} s, {spent}")
    assert megabytes < MEGABYTES


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


@st.composite
def tables(draw: st.DrawFn, names: list[str]) -> bytes:
    """A table of these images, with up to four odd cells or columns, or one in which everything is odd."""
    columns = st.sampled_from(["path", "label", "split", "group", "fold", "id", "", "path", "x,y"]) | TEXTS
    cells = TEXTS | st.sampled_from([*names, "ants", "bees", "train", "test", '"', "0", "ants;bees"])
    if draw(st.integers(0, 3)):
        groups = ["1", "2"] * len(names)
        rows = [[name, Path(name).parent.name, group] for name, group in zip(names, groups, strict=False)]
        lines = [["path", "label", "group"], *rows]
        for _ in range(draw(st.integers(0, 4))):
            line = draw(st.integers(0, len(lines) - 1))
            column = draw(st.integers(0, len(lines[line])))
            lines[line][column : column + draw(st.integers(0, 1))] = [draw(cells if line else columns)]
    else:
        lines = [draw(st.lists(columns, min_size=1, max_size=4))]
        lines += draw(st.lists(st.lists(cells, max_size=5), max_size=8))
    delimiter = draw(st.sampled_from([",", ",", ";", "\t", "|"]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "cp1252"]))
    return "\n".join(delimiter.join(line) for line in lines).encode(encoding, "replace")


def test_tables(part: int | None, images: Path, tmp_path: Path) -> None:
    names, columns = [str(path) for path in sorted(images.rglob("*.jpg"))[::8]], Columns(image_dir=str(images))

    def use(content: bytes) -> str:
        (tmp_path / "table.csv").write_bytes(content)
        return attempt(lambda: baseline.image_table(tmp_path / "table.csv", columns=columns))

    fuzz(part, tables(names), use)


def test_recipes(part: int | None, tmp_path: Path) -> None:
    recipe = dataclasses.asdict(baseline.load_recipe("default"))
    leaves = {key: json.dumps(value) for key, value in flat_recipe(recipe).items() if key in LEAVES}
    names = st.sampled_from([*LEAVES, "name", "seed", "stage", "augment", "data.labels", "presets.x.epochs"]) | TEXTS
    values = st.sampled_from(sorted(set(leaves.values()))) | VALUES.map(json.dumps) | TEXTS
    odd = st.tuples(names, values).map(" = ".join) | st.sampled_from(["[[stage]]", "[data]", "[model]", "[presets.a]"])
    valid = st.sampled_from(sorted(leaves)).map(lambda key: f"{key} = {leaves[key]}")
    lines = st.lists(valid, max_size=4, unique=True).flatmap(
        lambda before: st.lists(odd, max_size=3).map(lambda after: "\n".join([*before, *after]))
    )

    def use(case: Any) -> str:
        path = tmp_path / ("recipe.toml" if isinstance(case, str) else "recipe.json")
        text = case if isinstance(case, str) else json.dumps(case)
        path.write_bytes(text.encode(errors="surrogatepass"))
        return attempt(lambda: baseline.load_recipe(path))

    fuzz(part, lines | edited(recipe), use)


def test_manifests(part: int | None, tmp_path: Path) -> None:
    run = Path(shutil.copytree(Path(__file__).parent / "runs" / "format-1", tmp_path / "run"))
    document = json.loads((run / "manifest.json").read_text())

    def use(case: Any) -> str:
        (run / "manifest.json").write_text(json.dumps(case))
        return attempt(
            lambda: recipe_from_manifest(run, read_manifest(run)), lambda: list_runs(tmp_path),
            lambda: baseline.load_recipe(run / "manifest.json"), lambda: write_card(run), lambda: read_predictions(run),
        )  # fmt: skip

    fuzz(part, edited(document), use)


def test_models(part: int | None, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    document = json.loads((folder / "model.json").read_text())

    def use(case: Any) -> str:
        (folder / "model.json").write_text(json.dumps(case))
        return attempt(lambda: baseline.load(folder))

    fuzz(part, edited(document), use)


def test_forms(part: int | None, tiny: Path, images: Path) -> None:
    image = (images / "ants" / "00.jpg").read_bytes()
    field = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n' + image + b"\r\n"
    pieces = st.sampled_from([
        field, b"--x\r\n", b"--x--\r\n", b"--x--", b"\r\n", image[:500], b"--", b":",
        b'Content-Disposition: form-data; name="class"\r\n\r\nants\r\n', b"Content-Disposition: form-data\r\n\r\n",
        b"Content-Type: text/plain; charset=\xff\r\n",
    ])  # fmt: skip
    bodies = st.lists(pieces | st.binary(max_size=20), max_size=8).map(b"".join) | damaged([field + b"--x--\r\n"])
    types = st.just("multipart/form-data; boundary=x") | st.sampled_from([
        "multipart/form-data; boundary=x", "multipart/form-data", "multipart/form-data; boundary=", "application/json",
        'multipart/form-data; boundary="' + "x" * 300, "multipart/form-data; boundary=x; charset=\xff", "text/plain",
    ])  # fmt: skip
    with TestClient(create_app(tiny), base_url="http://localhost", raise_server_exceptions=False) as client:

        def use(case: tuple[bytes, str, str]) -> str:
            body, kind, place = case
            answer = client.post(place, content=body, headers={"content-type": kind.encode("latin-1")})
            assert answer.status_code in (200, 400, 404, 408, 413, 415, 422), (answer.status_code, answer.text)
            assert answer.status_code == 200 or answer.json()["error"]
            return str(answer.status_code)

        fuzz(part, st.tuples(bodies, types, st.sampled_from(["/predict", "/gradcam"])), use)


def tar_member(draw: st.DrawFn, image: bytes) -> bytes:
    """A member of an archive whose header holds odd fields."""
    member = tarfile.TarInfo(draw(TEXTS | st.sampled_from(["ants/1.png", "bees/2.png", "ants", "././@LongLink"])))
    types = [b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S", b"\0"]
    member.type = draw(st.just(b"0") | st.sampled_from(types))
    member.linkname = draw(TEXTS | st.just("ants/1.png"))
    member.size = draw(st.just(len(image)) | st.sampled_from([0, 1, 600, 2**33 - 1, 2**62]))
    member.mode, member.mtime = draw(st.integers(0, 0o7777)), draw(st.integers(0, 2**40))
    try:
        header = member.tobuf(draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])), errors="replace")
    except ValueError:  # such as a name that no header can hold
        return b""
    data = image[: member.size] if draw(st.integers(0, 2)) else draw(st.binary(max_size=600))
    return header + data + bytes(-len(data) % 512)


@st.composite
def tars(draw: st.DrawFn, members: bytes, image: bytes) -> bytes:
    """An archive, most of the time with these members, and with up to four odd ones before or after them."""
    before, after = (b"".join(tar_member(draw, image) for _ in range(draw(st.integers(0, 2)))) for _ in range(2))
    whole = before + (members if draw(st.integers(0, 3)) else b"") + after
    return whole + bytes(draw(st.just(1024) | st.sampled_from([0, 100])))


def read_members(path: Path) -> None:
    """Read the images of an archive as `predict` does."""
    for image in list_images([str(path)])[0]:
        try:
            assert callable(image) and isinstance(image(), bytes)
        except OSError as error:
            assert "more than" in str(error)


def test_archives(part: int | None, tmp_path: Path) -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for number in range(4):
            (tmp_path / "image.png").write_bytes(image := encode(np.full((8, 8, 3), 50 * number, np.uint8), "PNG"))
            archive.add(tmp_path / "image.png", f"{('ants', 'bees')[number % 2]}/{number}.png")
    members = whole.getvalue()[: 4 * 1024]  # without the zeros at the end

    def use(content: bytes) -> str:
        (tmp_path / "images.tar").write_bytes(content)
        (tmp_path / "images.tar.gz").write_bytes(gzip.compress(content, 1))
        paths = [tmp_path / "images.tar", tmp_path / "images.tar.gz"]
        return attempt(*(partial(read, path) for path in paths for read in (baseline.image_table, read_members)))

    fuzz(part, tars(members, image) | damaged([members + bytes(1024)]), use)


def encode(samples: np.ndarray, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, name, **options)
    return buffer.getvalue()


def encoded_images() -> list[bytes]:
    """A small image in each of Pillow's formats that hold one; the oldest Pillow has no AVIF."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    names = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "ICO")
    contents = [encode(noise, name) for name in names if name in FORMATS or name != "AVIF"]
    return [*contents, encode(noise.astype(np.uint16)[..., 0] * 200, "TIFF", compression="tiff_lzw")]


def test_images(part: int | None, tiny: Path, tmp_path: Path) -> None:
    model = baseline.load(tiny)

    def use(content: bytes) -> str:
        (tmp_path / "image.jpg").write_bytes(content)
        record = scan_images([str(tmp_path / "image.jpg")], baseline.Progress())
        (batch,) = model.predict_batches([tmp_path / "image.jpg"])
        assert bool(record.columns["reason"][0]) == bool(batch.errors[0])
        assert "\n" not in str(batch.errors[0])
        return "left out" if batch.errors[0] else "used"

    fuzz(part, damaged(encoded_images()), use)
