"""Tables of every format give the same image table as folders; invalid ones are rejected in one line."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

import baseline
from baseline import Progress, image_table
from baseline.data.sources.place import Columns
from baseline.data.table import summarize_source
from baseline.errors import BaselineError, DataError
from baseline.inference.features import check_embeddings_path, read_embeddings
from baseline.inference.output import PredictOptions

pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture
def forest(tmp_path: Path) -> Path:
    """Six images in two class folders."""
    for number, name in enumerate(
        ("oak/o 1.jpg", "oak/o2.JPG", "oak/ö3.png", "pine/p1.png", "pine/p2.png", "pine/p3.png")
    ):
        (tmp_path / "forest" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / "forest" / name, "PNG")
    return tmp_path / "forest"


def rows(forest: Path) -> pd.DataFrame:
    paths = sorted(path for path in forest.rglob("*") if path.is_file() and path.suffix != ".csv")
    return pd.DataFrame({"image": [str(p.relative_to(forest)) for p in paths], "label": [p.parent.name for p in paths]})


def same(one: pd.DataFrame, two: pd.DataFrame) -> bool:
    keys = ["path", "label", "split", "group"]
    return one[keys].astype(str).equals(two[keys].astype(str))


def test_csv_tsv_dataframe_and_folders_give_the_same_table(forest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = image_table(forest)
    frame = rows(forest)
    shuffled = frame.sample(frac=1, random_state=1)
    shuffled.to_csv(forest / "a.csv", index=False)
    frame.to_csv(forest / "b.tsv", index=False, sep="\t")
    frame.to_csv(forest / "c.csv", index=False, sep=";", encoding="utf-16")
    frame.to_csv(forest / "d.csv", index=False, encoding="utf-8-sig")
    for name in ("a.csv", "b.tsv", "c.csv", "d.csv"):
        assert same(image_table(forest / name), folders), name
    monkeypatch.chdir(forest)
    assert same(image_table(frame), folders)


def test_parquet_gives_the_same_table(forest: Path) -> None:
    pytest.importorskip("pyarrow")
    rows(forest).assign(label=[1, 1, 1, 2, 2, 2]).to_parquet(forest / "a.parquet")
    assert image_table(forest / "a.parquet")["label"].tolist() == list("111222")


def test_a_parquet_reader_that_cannot_be_imported_is_named_with_the_reason(
    forest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    rows(forest).to_parquet(forest / "a.parquet")
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "modules" / "pyarrow").mkdir(parents=True)
    reason = "numpy.core.multiarray failed to import"
    (tmp_path / "modules" / "pyarrow" / "__init__.py").write_text(f"raise ImportError({reason!r})")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    uses: list[Callable[[], object]] = [
        lambda: image_table(forest / "a.parquet"), lambda: read_embeddings(forest / "a.parquet"),
        lambda: check_embeddings_path(forest / "new.parquet"), lambda: PredictOptions("parquet"),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(BaselineError, match=f"pyarrow cannot be imported: {reason}"):
            use()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_are_unpacked_once_and_give_the_same_table(forest: Path, kind: str) -> None:
    shutil.make_archive(str(forest.parent / "packed"), {"zip": "zip", "tar.gz": "gztar"}[kind], forest.parent, "forest")
    first, second = (image_table(forest.parent / f"packed.{kind}") for _ in range(2))
    folders = image_table(forest)
    assert [Path(path).name for path in first["path"]] == [Path(path).name for path in folders["path"]]
    assert first["label"].tolist() == folders["label"].tolist() and same(first, second)


def test_competition_folder_is_read_by_its_train_csv(forest: Path, tmp_path: Path) -> None:
    competition = tmp_path / "competition"
    for part in ("train_images", "test_images"):
        (competition / part).mkdir(parents=True)
    frame = rows(forest)
    for number, name in enumerate(frame["image"]):
        for part in ("train_images", "test_images"):  # the same IDs in both, as in competitions
            shutil.copy(forest / name, competition / part / f"{number:04}.png")
    ids = pd.DataFrame({"image_id": [f"{n:04}" for n in range(6)], "tree": frame["label"]})
    ids.to_csv(competition / "train.csv", index=False)
    ids[["image_id"]].assign(tree="oak").to_csv(competition / "sample_submission.csv", index=False)
    table = image_table(competition)
    assert all("train_images" in path for path in table["path"]) and table["label"].tolist() == frame["label"].tolist()
    summary = "\n".join(summarize_source(table))
    assert (
        "images from 'image_id', labels from 'tree'" in summary
        and "6 images listed without a file extension" in summary
    )
    assert "6 images without a label in train.csv ignored" in summary


def test_loose_images_with_a_table_are_read_by_the_table(forest: Path, tmp_path: Path) -> None:
    (tmp_path / "set/images").mkdir(parents=True)
    frame = rows(forest)
    for name in frame["image"]:
        shutil.copy(forest / name, tmp_path / "set/images" / Path(name).name)
    frame.assign(image=frame["image"].map(lambda n: Path(n).name)).to_csv(tmp_path / "set/labels.csv", index=False)
    assert image_table(tmp_path / "set")["label"].value_counts().to_dict() == {"oak": 3, "pine": 3}


def test_columns_are_detected_by_name_and_content_or_named(forest: Path) -> None:
    frame = rows(forest).rename(columns={"image": "where", "label": "what"})
    frame["patient"] = list("uuvwwx")
    frame["subset"] = ["Train", "training", "VAL", "train", "train", "validation"]
    frame["age"] = range(6)
    frame["label"] = "nonsense"
    frame.to_csv(forest / "a.csv", index=False)
    named = image_table(forest / "a.csv", columns=Columns(label="what", group="age"))
    assert named["label"].tolist() == ["oak"] * 3 + ["pine"] * 3 and named["group"].tolist() == list("012345")
    found = image_table(forest / "a.csv", columns=Columns(label="what"))
    assert found["group"].tolist() == list("uuvwwx") and "age" in found
    assert found["split"].tolist() == ["train", "train", "valid", "train", "train", "valid"]


def test_images_in_another_folder(forest: Path, tmp_path: Path) -> None:
    rows(forest).to_csv(tmp_path / "a.csv", index=False)
    assert len(image_table(tmp_path / "a.csv", columns=Columns(image_dir=str(forest)))) == 6
    with pytest.raises(DataError, match=r"There is no folder .*nowhere to look"):
        image_table(tmp_path / "a.csv", columns=Columns(image_dir=str(tmp_path / "nowhere")))


def test_images_are_found_in_subfolders(forest: Path, tmp_path: Path) -> None:
    frame = rows(forest)
    frame.to_csv(tmp_path / "a.csv", index=False)  # names are relative to a subfolder
    assert len(image_table(tmp_path / "a.csv")) == 6
    shutil.copytree(forest, tmp_path / "copy")
    with pytest.raises(
        DataError, match=r"6 of 6 images in column 'image' of a\.csv are not in"
    ):  # now every name matches two images
        image_table(tmp_path / "a.csv")


def test_one_hot_columns_are_single_label_and_others_multilabel(forest: Path) -> None:
    frame = rows(forest)[["image"]]
    frame.assign(oak=[1, 1, 1, 0, 0, 0], pine=[0, 0, 0, 1, 1, 1]).to_csv(forest / "a.csv", index=False)
    assert image_table(forest / "a.csv")["label"].tolist() == ["oak"] * 3 + ["pine"] * 3
    frame.assign(wet=[1, 1, 1, 0, 0, 0], tall=[0, 1, 1, 1, 1, 0]).to_csv(forest / "b.csv", index=False)
    assert image_table(forest / "b.csv")["label"].tolist() == ["wet", "tall;wet", "tall;wet", "tall", "tall", ""]
    frame.assign(tags=["b; a", "a;b", "a", "b", "b", "a"]).to_csv(forest / "c.csv", index=False)
    assert image_table(forest / "c.csv")["label"].tolist()[:3] == ["a;b", "a;b", "a"]


def test_labels_and_groups_from_file_names_by_regular_expression(tmp_path: Path) -> None:
    for name in ("cat_7_1.png", "cat_7_2.png", "deep/dog_8_1.png", "dog_9_1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    table = image_table(tmp_path, label_from=r"(?P<label>cat|dog)_(?P<group>\d)")
    assert table["label"].tolist() == ["cat", "cat", "dog", "dog"] and table["group"].tolist() == list("7789")
    for pattern, message in (
        ("(", "not a regular expression"),
        ("cat", "has no group"),
        ("(cat)", r"does not match the paths of 2 of 4 images in .*: '[^/]*'"),
    ):
        with pytest.raises(DataError, match=message):
            image_table(tmp_path, label_from=pattern)


def invalid_table(forest: Path, kind: str) -> pd.DataFrame:
    frame = rows(forest)
    return {
        "missing": frame.assign(image=frame["image"].replace({"oak/o2.JPG": "oak/gone.jpg"})),
        "repeated": pd.concat([frame, frame.head(1)]),
        "conflicting": pd.concat([frame, frame.head(1).assign(label="pine")]),
        "unlabeled": frame.assign(label=["oak", "", "oak", "pine", "pine", "pine"]),
        "header": frame.head(0),
        "no images": frame.assign(image=range(6)).rename(columns={"image": "size"}),
        "all missing": frame.assign(image="x/" + frame["image"] + ".jpg"),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"1 of 6 images in column 'image' of a\.csv is not in .*forest: 'oak/gone\.jpg'"),
        ("repeated", r"1 row of a\.csv repeats an image, first .*o 1\.jpg"),
        ("conflicting", r"1 image of a\.csv has conflicting labels, first .*o 1\.jpg: 'oak', 'pine'"),
        ("unlabeled", r"1 of 6 rows of a\.csv has no label in 'label', the first is row 2"),
        ("header", "has a header but no rows"),
        ("no images", r"no column that looks like images; its columns: 'size', 'label'"),
        ("all missing", r"6 of 6 images in column 'image' of a\.csv are not in .*, such as 'x/oak/o 1\.jpg\.jpg'"),
    ],
)
def test_invalid_table_is_rejected(forest: Path, kind: str, message: str) -> None:
    invalid_table(forest, kind).to_csv(forest / "a.csv", index=False)
    with pytest.raises(DataError, match=message):
        image_table(forest / "a.csv")


def test_unknown_encoding_is_rejected_with_its_position(forest: Path) -> None:
    labels = ["樫", "樫", "樫", "松", "松", "松"]
    rows(forest).assign(label=labels).to_csv(forest / "a.csv", index=False, encoding="utf-8")
    (forest / "a.csv").write_bytes((forest / "a.csv").read_text("utf-8").replace("ö3", "o2").encode("shift_jis"))
    with pytest.raises(DataError, match=r"is not UTF-8 \(byte 0x8a in line 2\).*give --encoding"):
        image_table(forest / "a.csv")
    (forest / "b.csv").write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        image_table(forest / "b.csv")


def test_unknown_column_suggests_the_nearest(forest: Path) -> None:
    rows(forest).to_csv(forest / "a.csv", index=False)
    with pytest.raises(DataError, match=r"no column 'lable'. Did you mean 'label'"):
        image_table(forest / "a.csv", columns=Columns(label="lable"))


def test_links_are_followed_once_and_loops_end(forest: Path) -> None:
    (forest / "oak" / "loop").symlink_to(forest, target_is_directory=True)
    (forest / "oak" / "again").symlink_to(forest / "oak", target_is_directory=True)
    assert image_table(forest).groupby("label").size()["pine"] == 3


@pytest.mark.parametrize("name", ["../out.png", "/abs.png"])
def test_archive_with_outside_names_or_links_is_rejected(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(name, b"x")
    with pytest.raises(DataError, match="was rejected and nothing of it was kept"):
        image_table(tmp_path / "a.zip")
    with tarfile.open(tmp_path / "b.tar", "w") as packed:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(link)
    with pytest.raises(DataError, match="is a link or a device"):
        image_table(tmp_path / "b.tar")


def test_unknown_torchvision_dataset_suggests_the_nearest() -> None:
    with pytest.raises(DataError, match="Did you mean 'FashionMNIST'"):
        image_table("torchvision:FashonMNIST")


def test_torchvision_images_become_class_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    import numpy as np

    from baseline.data.sources import external

    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 255, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for name, values, kind in (("images-idx3", images, 3), ("labels-idx1", labels, 1)):
            head = bytes([0, 0, 8, kind]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
            with gzip.open(folder / f"{part}-{name}-ubyte.gz", "wb") as out:
                out.write(head + values.tobytes())
    monkeypatch.setattr(external, "DEBIAN", tmp_path)
    table = image_table("torchvision:FashionMNIST")
    assert table["split"].value_counts().to_dict() == {"train": 40, "test": 20}
    assert "Ankle boot" in set(table["label"]) and table["label"].nunique() == 10


def test_hugging_face_folder_becomes_class_folders(forest: Path, tmp_path: Path) -> None:
    hugging_face = pytest.importorskip("datasets")
    frame = rows(forest)
    features = hugging_face.Features(image=hugging_face.Image(), label=hugging_face.ClassLabel(names=["oak", "pine"]))
    items = {"image": [str(forest / name) for name in frame["image"]], "label": frame["label"].tolist()}
    hugging_face.Dataset.from_dict(items, features=features).save_to_disk(str(tmp_path / "saved"))
    table = image_table(f"hf:{tmp_path / 'saved'}")
    assert table["label"].value_counts().to_dict() == {"oak": 3, "pine": 3} and set(table["split"]) == {"train"}


def test_source_summary_has_five_lines(forest: Path) -> None:
    (forest / "oak" / "notes.txt").write_text("")
    (forest / "empty").mkdir()
    lines = summarize_source(image_table(forest))
    assert [line.split(":")[0] for line in lines] == ["read as", "columns", "classes", "splits", "notes"]
    assert "6 images in 2 classes: oak 3, pine 3" in lines[2]
    assert "no images in 'empty'" in lines[4] and "1 other file ignored: 'notes.txt'" in lines[4]


def test_multilabel_end_to_end(images: Path, tmp_path: Path) -> None:
    paths = sorted(images.rglob("*.jpg"))
    tags = [
        ";".join(["insect", path.parent.name] if number % 3 else [path.parent.name])
        for number, path in enumerate(paths)
    ]
    frame = pd.DataFrame({"image": [str(path) for path in paths], "tags": tags})
    recipe = baseline.Recipe().changed(
        image_size=48, stages=(baseline.Stage("head", 8, 1e-2, augment=False), baseline.Stage(3, 1, 1e-4))
    )
    done = baseline.make_baseline(frame, recipe, out=tmp_path / "run", progress=Progress())
    assert done.recipe.data.task == "multilabel" and set(done.learner.dls.vocab) == {"ants", "bees", "insect"}
    numbers = done.metrics["test"]["tta"]
    assert set(numbers["classes"]) == {"ants", "bees", "insect"}
    assert 0 < numbers["micro_f1"] <= 1 and 0 < numbers["mean_average_precision"] <= 1
    losses = done.history.epochs["train_loss"]  # which weights four validation images select is random
    assert losses.iloc[-1] < 0.4 < losses.iloc[0] and "valid_micro_f1" in done.history.epochs
    flags = done.predictions[["p_ants", "p_bees", "p_insect"]] >= 0.5
    expected = [";".join(name[2:] for name in flags.columns if row[name]) for _, row in flags.iterrows()]
    assert done.predictions["predicted"].tolist() == expected
    assert set(done.learner.predict(str(paths[0]))[0]) <= {"ants", "bees", "insect"}


def test_zip_bomb_is_rejected(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a/1.png", bytes(150_000_000))
    with pytest.raises(DataError, match="exceeds the limit of 100,000,000 bytes"):
        image_table(tmp_path / "a.zip")


def test_every_source_gives_the_same_predictions(images: Path, body: dict[str, str], tmp_path: Path) -> None:
    paths = sorted(images.rglob("*.jpg"))
    frame = pd.DataFrame({"file": [f"{p.parent.name}/{p.name}" for p in paths], "kind": [p.parent.name for p in paths]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    shutil.make_archive(str(tmp_path / "b"), "zip", images)
    (tmp_path / "kaggle/train_images").mkdir(parents=True)
    for path in paths:
        shutil.copy(path, tmp_path / "kaggle/train_images" / f"{path.parent.name}{path.name}")
    ids = frame["file"].str.replace("/", "").str.removesuffix(".jpg")
    pd.DataFrame({"image_id": ids, "label": frame["kind"]}).to_csv(tmp_path / "kaggle/train.csv", index=False)
    recipe = baseline.Recipe().changed(
        image_size=32, frozen_precision="float32", stages=(baseline.Stage("head", 2, 1e-2, augment=False),), **body
    )
    in_folder = recipe.changed(image_dir=str(images))
    runs = {
        "folders": (images, recipe),
        "csv": (tmp_path / "a.csv", in_folder),
        "frame": (frame, in_folder),
        "zip": (tmp_path / "b.zip", recipe),
        "kaggle": (tmp_path / "kaggle", recipe),
    }
    results = {
        name: baseline.make_baseline(source, run_recipe, out=tmp_path / f"run-{name}", progress=Progress()).predictions
        for name, (source, run_recipe) in runs.items()
    }
    for name, predictions in results.items():
        pd.testing.assert_frame_equal(
            predictions.drop(columns="path"), results["folders"].drop(columns="path"), obj=name
        )


def test_split_folders_may_have_longer_names_and_an_extra_level(tmp_path: Path) -> None:
    for part in ("seg_train/seg_train", "seg_test/seg_test"):
        for name in ("oak", "pine"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / part / name / f"{number}.png")
    (tmp_path / "seg_pred").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "seg_pred" / "1.png")
    table = image_table(tmp_path)
    assert table.groupby(["split", "label"]).size().to_dict() == {
        ("test", "oak"): 2, ("test", "pine"): 2, ("train", "oak"): 2, ("train", "pine"): 2,
    }  # fmt: skip
    assert "1 image in 'seg_pred' ignored" in summarize_source(table)[-1]
    shutil.rmtree(tmp_path / "seg_train")
    shutil.rmtree(tmp_path / "seg_pred")
    (tmp_path / "val").symlink_to(tmp_path / "seg_test/seg_test")
    with pytest.raises(DataError, match="contains 'seg_test', 'val' but no training images"):
        image_table(tmp_path)


def test_class_may_be_named_like_a_split(tmp_path: Path) -> None:
    for name in ("bus", "train", "tram"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    assert set(image_table(tmp_path)["label"]) == {"bus", "train", "tram"}


def test_row_number_is_not_mistaken_for_the_image(tmp_path: Path) -> None:
    for number in range(1, 7):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number}.jpg", "PNG")
    rows = [(number, f"{7 - number}.jpg", "a" if number > 3 else "b") for number in range(1, 7)]
    pd.DataFrame(rows, columns=["id", "foto", "label"]).to_csv(tmp_path / "a.csv", index=False)
    table = image_table(tmp_path / "a.csv")
    assert {Path(path).name: label for path, label in table[["path", "label"]].to_numpy()}["1.jpg"] == "a"
    assert table.attrs["source"]["columns"].startswith("images from 'foto'")


def test_label_column_is_not_used_for_groups_and_reserved_columns_are_not_overwritten(forest: Path) -> None:
    frame = rows(forest).rename(columns={"label": "person"})
    frame.to_csv(forest / "a.csv", index=False)
    frame.assign(duplicate_id=range(6), width=7).to_csv(forest / "b.csv", index=False)
    for file, columns in (("a.csv", Columns()), ("b.csv", Columns(label="person"))):
        table = image_table(forest / file, columns=columns)
        assert table["label"].tolist() == ["oak"] * 3 + ["pine"] * 3 and table["group"].isna().all()
    assert "duplicate_id_" in table and "duplicate_id" not in table


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"label": "label,"}, None), ({"label": ","}, "no column ','"), ({"label": "label,label"}, None)],
)
def test_extra_commas_in_label_columns(forest: Path, columns: dict, message: str | None) -> None:
    rows(forest).to_csv(forest / "a.csv", index=False)
    if message is None:
        assert len(image_table(forest / "a.csv", columns=Columns(**columns))) == 6
    else:
        with pytest.raises(DataError, match=message):
            image_table(forest / "a.csv", columns=Columns(**columns))


def test_options_that_do_not_apply_are_rejected(forest: Path) -> None:
    rows(forest).to_csv(forest / "a.csv", index=False)
    with pytest.raises(
        DataError, match="Columns can be named for a table only, but the source is one folder per class"
    ):
        image_table(forest, columns=Columns(group="patient"))
    with pytest.raises(DataError, match="label-from needs a folder"):
        image_table(forest / "a.csv", label_from="(x)")


@pytest.mark.parametrize("path", ["~nosuch/images", "x" * 300, "hf:", "torchvision:" + "x" * 300])
def test_impossible_file_names_are_rejected(path: str) -> None:
    with pytest.raises(DataError):
        image_table(path)


def test_frame_with_unusual_values(forest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(forest)
    frame = rows(forest)
    labels = pd.Categorical(frame["label"], categories=["oak", "pine", "wasp"])
    assert set(image_table(frame.assign(label=labels))["label"]) == {"oak", "pine"}
    with pytest.raises(DataError, match="two columns 'label'"):
        image_table(pd.concat([frame, frame["label"]], axis=1))
    with pytest.raises(DataError, match="1 of 6 rows of the DataFrame has no label"):
        image_table(frame.assign(label=[pd.NaT, *frame["label"][1:]]))


def test_a_file_whose_name_is_not_utf8_is_left_out_and_reported(forest: Path) -> None:
    Path(os.fsdecode(os.fsencode(forest) + b"/oak/\xfe.jpg")).touch()
    table = image_table(forest)
    assert len(table) == 6
    note = "1 other file ignored: 1 with a name that is not UTF-8 ('\\udcfe.jpg')"
    assert note in summarize_source(table)[4]


def test_all_zero_one_hot_rows_are_images_without_a_label(forest: Path) -> None:
    frame = rows(forest)[["image"]].assign(oak=[1, 1, 0, 0, 0, 0], pine=[0, 0, 0, 1, 1, 1])
    frame.to_csv(forest / "a.csv", index=False)
    assert "2 classes (several labels per image)" in summarize_source(image_table(forest / "a.csv"))[2]


def test_class_folder_names_are_unique(tmp_path: Path) -> None:
    from baseline.data.sources.external import class_folder_name

    labels = ["a/b", "a_b", "a%2Fb", ".net", "..", "ü x"]
    safe = [class_folder_name(label, "x") for label in labels]
    assert len(set(safe)) == len(labels) and not any("/" in name or name.startswith(".") for name in safe)
    with pytest.raises(DataError, match="class with an empty name"):
        class_folder_name(" ", "hf:x")
