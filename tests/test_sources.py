"""Folders and DataFrames become the photo table; what cannot be a baseline's photos is refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

import baseline
from baseline import DataError, photo_table, readable

pytestmark = pytest.mark.usefixtures("no_page")


def fill(folder: Path, *names: str) -> Path:
    """Small photos under these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name, format="PNG")
    return folder


def test_class_folders_become_rows_without_split(photos: Path) -> None:
    table = photo_table(photos)
    assert table.groupby("label").size().to_dict() == {"ants": 24, "bees": 24}
    assert table["split"].isna().all() and all(Path(path).is_absolute() for path in table["path"])


@pytest.mark.parametrize("valid", ["valid", "val", "validation", "Val"])
def test_split_folders_are_known_by_their_names(tmp_path: Path, valid: str) -> None:
    names = [f"{part}/{label}/{n}.png" for part in ("train", valid, "test") for label in "ab" for n in range(2)]
    table = photo_table(fill(tmp_path, *names))
    assert table.groupby("split").size().to_dict() == {"test": 4, "train": 4, "valid": 4}


def test_hidden_files_other_endings_and_nested_folders(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.PNG", "a/deep/er/2.jpg", "a/.hidden.png", "b/ö ü.png", "b/3.png", ".git/x/4.png")
    (tmp_path / "a" / "notes.txt").write_text("no photo")
    table = photo_table(tmp_path)
    assert sorted(Path(path).name for path in table["path"]) == ["1.PNG", "2.jpg", "3.png", "ö ü.png"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "holds no photos"),
        (["1.png", "2.png"], "holds 2 photos but no folder per class"),
        (["a/1.png", "a/2.png"], "one class, 'a'"),
        (
            ["train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png", "val/c/1.png"],
            "No training photo of 'c'",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, names: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        photo_table(fill(tmp_path, *names))


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder or file .*nowhere"):
        photo_table(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"or one that ends in \.csv"):
        photo_table(fill(tmp_path, "a.png") / "a.png")


def test_a_dataframe_is_checked_and_copied(photos: Path) -> None:
    table = photo_table(photos)
    again = photo_table(table[["path", "label"]].sample(frac=1, random_state=0))
    assert set(again["path"]) == set(table["path"]) and "split" in again
    for frame, words in [
        (table[["path"]], "no column that looks like labels; its columns: 'path'"),
        (table.assign(label=None), "48 of 48 rows of the DataFrame have no label in 'label', first row 1"),
        (table.assign(path="/nowhere/" + table.index.astype(str)), "48 of 48 images of the DataFrame are not in"),
        (table.iloc[:0], "has no rows"),
    ]:
        with pytest.raises(DataError, match=words):
            photo_table(frame)


def test_unreadable_photos_are_left_out_counted_and_kept_on_disk(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "mixed")
    whole = (tmp_path / "mixed/ants/00.jpg").read_bytes()
    (tmp_path / "mixed/ants/half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "mixed/bees/text.jpg").write_text("this is no photo")
    (tmp_path / "mixed/bees/empty.png").touch()
    table, broken = readable(photo_table(tmp_path / "mixed"))
    assert sorted(Path(path).name for path in broken["path"]) == ["empty.png", "half.jpg", "text.jpg"]
    reasons = {Path(path).name: why for path, why in broken[["path", "reason"]].to_numpy()}
    assert reasons["empty.png"] == "empty file" and reasons["text.jpg"] == "not a photo"
    assert "truncated" in reasons["half.jpg"] and len(table) == 48
    assert (tmp_path / "mixed/ants/half.jpg").exists()


def test_no_readable_photo_at_all_is_refused(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("nothing")
    with pytest.raises(DataError, match="None of the 4 photos can be read"):
        readable(photo_table(tmp_path))


def test_too_few_photos_left_after_the_unreadable_ones_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "a/2.png", "b/1.png")
    (tmp_path / "b/2.png").write_text("nothing")
    table = photo_table(tmp_path)
    assert table.attrs["source"]["oddities"] == []
    with pytest.raises(DataError, match=r"Class 'b' has one photo only; two were needed to train\. Add photos"):
        baseline.make_baseline(table, out=tmp_path / "run", show=baseline.Show())
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_what_cannot_be_trained_with_can_be_looked_at(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "a/2.png", "b/1.png", "B/1.png", "ant/1.png", "ant/2.png", "Ant/1.png", "Ant/2.png")
    table = photo_table(tmp_path)
    assert table.attrs["source"]["oddities"] == [
        "classes 'B', 'b' have one photo only; two were needed to train",
        "'Ant', 'ant' differ in case only", "'B', 'b' differ in case only",
    ]  # fmt: skip
    assert "tiny classes" in set(baseline.audit(table).findings["finding"])
    with pytest.raises(DataError, match=r"Classes 'B', 'b' have one photo only"):
        baseline.make_baseline(table, out=tmp_path / "run", show=baseline.Show())


def test_one_class_is_told_from_all_others(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{label}/{n}.png" for label in ("glass", "metal", "plastic") for n in range(3)))
    table = photo_table(tmp_path, positive="plastic")
    assert table.groupby("label").size().to_dict() == {"not plastic": 6, "plastic": 3}
    assert table.attrs["source"]["oddities"] == ["2 classes are one, 'not plastic'"]
    again = photo_table(table, positive="plastic")
    assert list(again["label"]) == list(table["label"]) and not again.attrs["source"]["oddities"]
    with pytest.raises(DataError, match=r"no class 'plastik'\. Did you mean 'plastic'"):
        photo_table(tmp_path, positive="plastik")
    with pytest.raises(DataError, match="several labels are not told into 'glass' and the rest"):
        photo_table(table.assign(label="glass;metal"), positive="glass")
