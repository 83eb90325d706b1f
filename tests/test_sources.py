"""Folders and DataFrames become the image table; unusable ones are rejected in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

import baseline
from baseline import image_table
from baseline.data.audit.readable import drop_unreadable
from baseline.errors import DataError

pytestmark = pytest.mark.usefixtures("no_page")


def fill(folder: Path, *names: str) -> Path:
    """Save small images under these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name, format="PNG")
    return folder


def test_class_folders_become_rows_without_split(images: Path) -> None:
    table = image_table(images)
    assert table.groupby("label").size().to_dict() == {"ants": 24, "bees": 24}
    assert table["split"].isna().all() and all(Path(path).is_absolute() for path in table["path"])


@pytest.mark.parametrize("valid", ["valid", "val", "validation", "Val"])
def test_split_folders_are_recognized_by_name(tmp_path: Path, valid: str) -> None:
    names = [f"{part}/{label}/{n}.png" for part in ("train", valid, "test") for label in "ab" for n in range(2)]
    table = image_table(fill(tmp_path, *names))
    assert table.groupby("split").size().to_dict() == {"test": 4, "train": 4, "valid": 4}


def test_hidden_files_other_suffixes_and_nested_folders(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.PNG", "a/deep/er/2.jpg", "a/.hidden.png", "b/ö ü.png", "b/3.png", ".git/x/4.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    table = image_table(tmp_path)
    assert sorted(Path(path).name for path in table["path"]) == ["1.PNG", "2.jpg", "3.png", "ö ü.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "contains no images"),
        (["1.png", "2.png"], "contains 2 images but no class folders"),
        (["a/1.png", "a/2.png"], "one class, 'a'"),
        (
            ["train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png", "val/c/1.png"],
            "No training image of 'c'",
        ),
    ],
)
def test_unusable_folder_is_rejected(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        image_table(fill(tmp_path, *names))


def test_missing_folder_and_plain_file_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder or file .*nowhere"):
        image_table(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"or a file that ends in \.csv"):
        image_table(fill(tmp_path, "a.png") / "a.png")


def test_dataframe_is_checked_and_copied(images: Path) -> None:
    table = image_table(images)
    again = image_table(table[["path", "label"]].sample(frac=1, random_state=0))
    assert set(again["path"]) == set(table["path"]) and "split" in again
    for frame, message in [
        (table[["path"]], "no column that looks like labels; its columns: 'path'"),
        (table.assign(label=None), "48 of 48 rows of the DataFrame have no label in 'label', the first is row 1"),
        (
            table.assign(path="/nowhere/" + table.index.astype(str)),
            "48 of 48 images in column 'path' of the DataFrame are not in",
        ),
        (table.iloc[:0], "has no rows"),
    ]:
        with pytest.raises(DataError, match=message):
            image_table(frame)


def test_unreadable_images_are_excluded_and_kept_on_disk(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "mixed")
    content = (tmp_path / "mixed/ants/00.jpg").read_bytes()
    (tmp_path / "mixed/ants/half.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "mixed/bees/text.jpg").write_text("this is no image")
    (tmp_path / "mixed/bees/empty.png").touch()
    table, broken, _ = drop_unreadable(image_table(tmp_path / "mixed"))
    assert sorted(Path(path).name for path in broken["path"]) == ["empty.png", "half.jpg", "text.jpg"]
    reasons = {Path(path).name: reason for path, reason in broken[["path", "reason"]].to_numpy()}
    assert reasons["empty.png"] == "empty file" and reasons["text.jpg"] == "not an image"
    assert "truncated" in reasons["half.jpg"] and len(table) == 48
    assert (tmp_path / "mixed/ants/half.jpg").exists()


def test_no_readable_image_is_rejected(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("nothing")
    with pytest.raises(DataError, match="None of the 4 images can be read"):
        drop_unreadable(image_table(tmp_path))


def test_too_few_readable_images_are_rejected(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "a/2.png", "b/1.png")
    (tmp_path / "b/2.png").write_text("nothing")
    table = image_table(tmp_path)
    assert table.attrs["source"]["notes"] == []
    with pytest.raises(
        DataError, match=r"Class 'b' has only one image; at least two are needed for training\. Add images"
    ):
        baseline.make_baseline(table, out=tmp_path / "run", progress=baseline.Progress())
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_table_that_cannot_be_trained_on_can_be_audited(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "a/2.png", "b/1.png", "B/1.png", "ant/1.png", "ant/2.png", "Ant/1.png", "Ant/2.png")
    table = image_table(tmp_path)
    assert table.attrs["source"]["notes"] == [
        "classes 'B', 'b' have only one image; at least two are needed for training "
        "(--min-per-class 2 leaves such classes out, --other NAME merges them)",
        "'Ant', 'ant' differ only in case", "'B', 'b' differ only in case",
    ]  # fmt: skip
    assert "tiny classes" in set(baseline.audit(table).findings["finding"])
    with pytest.raises(DataError, match=r"Classes 'B', 'b' have only one image"):
        baseline.make_baseline(table, out=tmp_path / "run", progress=baseline.Progress())


def test_positive_class_against_all_others(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{label}/{n}.png" for label in ("glass", "metal", "plastic") for n in range(3)))
    table = image_table(tmp_path, positive="plastic")
    assert table.groupby("label").size().to_dict() == {"not plastic": 6, "plastic": 3}
    assert table.attrs["source"]["notes"] == ["2 classes merged into 'not plastic'"]
    again = image_table(table, positive="plastic")
    assert list(again["label"]) == list(table["label"]) and not again.attrs["source"]["notes"]
    with pytest.raises(DataError, match=r"no class 'plastik'\. Did you mean 'plastic'"):
        image_table(tmp_path, positive="plastik")
    with pytest.raises(DataError, match="positive='glass' needs one label per image, and these have several"):
        image_table(table.assign(label="glass;metal"), positive="glass")
