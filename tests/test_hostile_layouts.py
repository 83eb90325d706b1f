"""Damaged or hostile annotation files, tables and Parquet files are used, or refused in one line, and in time."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import baseline
from baseline.data.sources.place import Columns
from baseline.errors import BaselineError, DataError
from baseline.inference.features import read_embeddings

NAMES = [f"{number}.jpg" for number in range(8)]
CLASSES = ["cat", "dog"] * 4
PAIRS = list(zip(NAMES, CLASSES, strict=True))

DOCUMENTS: dict[str, Any] = {
    "coco": {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(NAMES)],
        "annotations": [{"image_id": number, "category_id": number % 2, "bbox": [0, 0, 1, 1]} for number in range(8)],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    },
    "labelstudio": [
        {"data": {"image": name}, "annotations": [{"result": [{"value": {"choices": [label]}}]}]}
        for name, label in PAIRS
    ],
    "via": {
        f"{name}900": {"filename": name, "regions": [{"region_attributes": {}}], "file_attributes": {"kind": label}}
        for name, label in PAIRS
    },
    "createml": [{"image": name, "annotations": [{"label": label, "coordinates": {}}]} for name, label in PAIRS],
    "json": [{"image": name, "label": label} for name, label in PAIRS],
    "fiftyone": {"classes": CLASSES[:2], "labels": {str(number): number % 2 for number in range(8)}},
}
"""A valid file in each format of JSON."""

VALUES = [
    None, True, -1, 1.5, float("nan"), 10**400, 2**64, "", "0", "²", "9" * 5000, "../../../etc/passwd", "/etc/passwd",
    "a\0b", "\ud800", "a//b", "x/" * 500, [], {}, [[]], [{}], {"a": {}}, ["cat", ["dog"]], "ants;bees", "C:\\x",
    "http://127.0.0.1/0.jpg", ".", "..", "1e999",
]  # fmt: skip
"""What takes the place of a part of a document."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of eight images without labels."""
    for number, name in enumerate(NAMES):
        samples = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(samples).save(tmp_path / "images" / name)
    return tmp_path / "images"


def is_used(images: Path, **columns: str) -> bool:
    """Return whether images are used; if not, they were refused in one line. No row is outside the folder."""
    try:
        table = baseline.image_table(images, columns=Columns(**columns))
    except BaselineError as error:
        assert "\n" not in str(error) and len(str(error)) < 20_000
        return False
    assert all(os.path.isfile(path) for path in table["path"])
    return True


def places(document: Any, place: tuple = ()) -> Iterator[tuple]:
    """Yield the place of each part of a document; of lists, the first two items."""
    yield place
    keys = (
        document if isinstance(document, dict) else range(min(2, len(document))) if isinstance(document, list) else ()
    )
    for key in keys:
        yield from places(document[key], (*place, key))


def replaced(document: Any, place: tuple, value: Any) -> Any:
    """Return a document with another value in a place, and in the same place of all items of a list."""
    if not place:
        return value
    key, *others = place
    if isinstance(document, list):
        return [replaced(item, tuple(others), value) for item in document]
    return {name: replaced(item, tuple(others), value) if name == key else item for name, item in document.items()}


@pytest.mark.parametrize("count", [60, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("layout", DOCUMENTS)
def test_edited_annotations_are_used_or_refused_in_one_line(layout: str, count: int | None, folder: Path) -> None:
    document, file = DOCUMENTS[layout], folder / "annotations.json"
    file.write_text(json.dumps(document))
    assert baseline.image_table(folder)["label"].tolist() == CLASSES
    cases = [(place, value) for place in places(document) for value in VALUES]
    answers: Counter[bool] = Counter()
    for place, value in random.Random(0).sample(cases, min(count or len(cases), len(cases))):
        file.write_text(json.dumps(replaced(document, place, value)))
        answers[is_used(folder)] += 1
    assert answers[False], answers


@pytest.mark.parametrize("start", ["a//", "//a/", "x//y//", "http://host//", "a\\\\"])
def test_names_with_empty_parts_are_found(start: str, folder: Path) -> None:
    (folder / "labels.json").write_text(json.dumps([{"image": start + name, "label": label} for name, label in PAIRS]))
    assert baseline.image_table(folder)["label"].tolist() == CLASSES


def test_names_of_very_many_parts_are_refused_in_time(folder: Path) -> None:
    pd.DataFrame({"image": ["a/" * 2000 + name for name in NAMES * 10], "label": "x"}).to_csv(folder / "x.csv")
    start = time.process_time()
    assert not is_used(folder)
    assert time.process_time() - start < 2, "almost four"


@pytest.mark.parametrize("number", ["²", "9" * 5000])
def test_numbers_that_python_cannot_convert_are_names(number: str, folder: Path) -> None:
    labels = ["7" if label == "cat" else number for label in CLASSES]
    frame = pd.DataFrame({"image": NAMES, "label": labels, "fold": [number, number, "0", "0"] * 2})
    frame.to_csv(folder / "labels.csv", index=False)
    table = baseline.image_table(folder)
    assert table["label"].tolist() == labels
    recipe = baseline.load_recipe("default").changed(split="kfold:fold")
    assert set(baseline.split(table, recipe)["split"]) <= {"train", "valid", "test"}
    (folder / "labels.csv").unlink()
    for name in (f"train{number[:9]}.txt", "train3.txt"):
        (folder / name).write_text("".join(f"{image} {label}\n" for image, label in zip(NAMES, labels, strict=True)))
    (folder / "classes.txt").write_text(f"cat {number[:9]}\n{number} a\n")
    assert is_used(folder)


@pytest.mark.parametrize(
    "text",
    [
        "names: [!!timestamp 9, b]",
        "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(25)) + "names: [*a24, b]",
        "names: &a {0: *a, 1: b}",
        "names: " + "[" * 100_000,
        "names: {" + "9" * 5000 + ": a, 1: b}",
        "names: {[]: a}",
    ],
    ids=["timestamp", "aliases", "circle", "nested", "digits", "key"],
)
def test_class_names_in_yaml_are_texts(text: str, folder: Path) -> None:
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"{number % 2} 0.5 0.5 0.1 0.1\n")
    (folder / "data.yaml").write_text("names: [yes, 2020-01-01]")
    assert baseline.image_table(folder)["label"].tolist() == ["yes", "2020-01-01"] * 4
    (folder / "data.yaml").write_text(text)
    start = time.process_time()
    is_used(folder)
    assert time.process_time() - start < 5


# ---- Parquet files --------------------------------------------------------------------------------------------------


def encoded(number: int) -> bytes:
    samples = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [{"bytes": encoded(number)} for number in range(8)]


def write_parquet(path: Path, features: Any = None, **columns: Any) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": IMAGES, "label": CLASSES, **columns})
    metadata = {b"huggingface": json.dumps({"info": {"features": {"label": features}}})}
    parquet.write_table(table.replace_schema_metadata(metadata), path)


def of_type(kind: str, values: list[Any], *arguments: Any) -> Any:
    """Return a column of a type of Arrow."""
    pa = pytest.importorskip("pyarrow")
    return pa.array(values, getattr(pa, kind)(*arguments))


@pytest.mark.parametrize(
    "columns",
    [
        lambda: {"features": {"names": 5}, "label": ["0", "1"] * 4},
        lambda: {"features": {"names": [["a"], {"b": 1}]}, "label": ["0", "1"] * 4},
        lambda: {"features": {"names": [None, None]}, "label": ["0", "1"] * 4},
        lambda: {"features": {"names": ["a", "b"]}, "label": ["²", "1"] * 4},
        lambda: {"features": {"names": ["a", "b"]}, "label": ["9" * 5000, "1"] * 4},
        lambda: {"label": [[b"\xff"], [b"\xfe"]] * 4},
        lambda: {"label": of_type("decimal128", [1, 2] * 4, 5)},
    ],
    ids=["names 5", "nested names", "null names", "code ²", "code 9...", "nested", "decimal"],
)
def test_odd_columns_beside_images_are_used(columns: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", **columns())
    assert len(baseline.image_table(tmp_path)) == 8


@pytest.mark.parametrize(
    "columns",
    [
        lambda: {"image": [{"bytes": "text"}] * 8},
        lambda: {"image": [{"bytes": 5}] * 8},
        lambda: {"image": [{"bytes": [1, 2]}] * 8},
        lambda: {"image": [None, *IMAGES[1:]]},
        lambda: {"label": of_type("duration", [2**62, 1] * 4, "s")},
        lambda: {"label": of_type("date32", [2**31 - 1, 0] * 4)},
        lambda: {"label": of_type("timestamp", [0, 1] * 4, "s", "No/Where")},
        lambda: {"label": of_type("binary", [b"\xff", b"\xfe"] * 4).view("string")},
        lambda: {"image": of_type("binary", []), "label": of_type("string", [])},
    ],
    ids=["text", "number", "list", "null", "duration", "date", "zone", "UTF-8", "no rows"],
)
def test_columns_that_cannot_be_read_are_refused(columns: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", **columns())
    with pytest.raises(DataError) as caught:
        baseline.image_table(tmp_path)
    assert "train.parquet" in str(caught.value) and "\n" not in str(caught.value)


def test_mutated_parquet_files_are_used_or_refused_in_one_line(tmp_path: Path) -> None:
    file, draw, answers = tmp_path / "train.parquet", random.Random(0), Counter[bool]()
    write_parquet(file)
    whole = file.read_bytes()
    for number in range(80):
        content = bytearray(whole[: draw.randrange(len(whole)) if number % 8 == 0 else None])
        for _ in range(draw.randint(0, 3)):
            start = len(content) - 1 - draw.randrange(min(800, len(content)))  # the footer is at the end
            content[start : start + draw.choice([0, 1, 4])] = draw.randbytes(draw.choice([0, 1, 4]))
        file.write_bytes(content)
        answers[is_used(draw.choice([tmp_path, file]))] += 1
    assert answers[True] and answers[False]


def test_a_parquet_file_of_one_large_image_in_many_rows_is_refused(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = pa.DictionaryArray.from_arrays(pa.array([0] * 400, "int32"), pa.array([bytes(3_000_000)]))
    parquet.write_table(pa.table({"image": images, "label": ["a", "b"] * 200}), tmp_path / "train.parquet")
    assert (tmp_path / "train.parquet").stat().st_size < 1_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="more than 100 times its size"):
        baseline.image_table(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000, "kB, instead of 1.5 GB"


@pytest.mark.parametrize(
    "columns",
    [
        {"path": [1, 2]},
        {"error": [0, 1]},
        {"features": [[1.0], [2.0, 3.0]]},
        {"features": [["a"], ["b"]]},
        {"features": None},
        {"path": [{"a": 1}, None]},
    ],
    ids=["path", "error", "ragged", "text", "none", "nested"],
)
def test_features_in_odd_columns_are_refused(columns: dict[str, Any], tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = pa.array([[1.0], [2.0]], pa.list_(pa.float32(), 1))
    good = {"path": ["a", "b"], "error": ["", ""], "features": features}
    parquet.write_table(pa.table(good), tmp_path / "features.parquet")
    assert read_embeddings(tmp_path / "features.parquet").features.tolist() == [[1], [2]]
    odd = {name: values for name, values in (good | columns).items() if values is not None}
    if "features" in columns and columns["features"] and isinstance(columns["features"][0][0], str):
        odd["features"] = pa.array(columns["features"], pa.list_(pa.string(), 1))
    parquet.write_table(pa.table(odd), tmp_path / "features.parquet")
    with pytest.raises(DataError, match="does not hold features"):
        read_embeddings(tmp_path / "features.parquet")


def test_a_pipe_named_like_a_parquet_file_is_not_waited_for(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    for label in ("cat", "dog"):
        (folder / label).mkdir()
        for name in NAMES[: 4 if label == "cat" else 8]:
            if (folder / name).exists():
                (folder / name).rename(folder / label / name)
    os.mkfifo(folder / "train.parquet")
    assert len(baseline.image_table(folder)) == 8
