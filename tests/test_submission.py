"""A submission has the sample's columns, ids and order, and the run's predictions in the format it asks for."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import call
from conftest import REAL
from insects import draw

import baseline
from baseline import submit
from baseline.deploy.kaggle import submission
from baseline.errors import DataError, OutputError

Competition = Callable[..., Path]
STEMS = ("0012", "b 7", "x,1", "ä", "2_a", "3.v2", "A", "10")
"""Ids as in competitions, and harder ones: leading zeros, spaces, commas, dots."""


def sample_of(label: str) -> str:
    """The text of a sample that has this label for every image."""
    return pd.DataFrame({"id": STEMS, "label": label}).to_csv(index=False)


@pytest.fixture
def competition(tmp_path: Path) -> Competition:
    """A competition's folder: images of test, which are new to the run, and a sample."""

    def make(sample: dict[str, list[str]] | str, test: str = "test", ending: str = ".jpg") -> Path:
        folder = tmp_path / "competition"
        (folder / test).mkdir(parents=True)
        for number, stem in enumerate(STEMS):
            name = ("ants", "bees")[number % 2]
            real = sorted((REAL / "hymenoptera_256" / "val" / name).glob("*.jpg"))
            target = folder / test / f"{stem}{ending}"
            if real:
                shutil.copy(real[number], target)
            else:
                draw(name, 100 + number).save(target, "JPEG", quality=90)
        path = folder / "sample_submission.csv"
        path.write_text(sample if isinstance(sample, str) else pd.DataFrame(sample).to_csv(index=False))
        return path

    return make


def rows(path: Path, delimiter: str = ",") -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file, delimiter=delimiter))


def expected(done: baseline.Baseline, folder: Path) -> pd.DataFrame:
    """Predictions of the run's own Learner for the test images, with TTA and the fitted temperature."""
    paths = [str(folder / f"{stem}.jpg") for stem in STEMS]
    table = pd.DataFrame({"path": paths, "label": "ants", "split": "test"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(done.learner.dls, "decoded", None)  # it holds the run's images; these are read from disk
        predictions = baseline.predict(done.learner, table, done.recipe.evaluation.tta, splits=("test",))
    return baseline.calibrate(predictions, done.manifest["calibration"]["temperature"])


def test_class_names_are_written_for_the_samples_ids_in_order(
    done: baseline.Baseline, competition: Competition
) -> None:
    reversed_stems = list(reversed(STEMS))
    sample = competition({"id": reversed_stems, "species": ["bees"] * 8})
    made = submit(done.folder, sample)
    truth = expected(done, sample.parent / "test")["predicted"].tolist()
    assert made.path == Path.cwd() / "submission.csv" and made.format.kind == "names"
    assert rows(made.path) == [["id", "species"], *map(list, zip(reversed_stems, reversed(truth), strict=True))]
    assert "8 rows; columns, ids and their order as in the sample" in made.notes["checked"]


def test_probabilities_are_calibrated(done: baseline.Baseline, competition: Competition) -> None:
    sample = competition({"file": [f"{stem}.jpg" for stem in STEMS], "bees": ["0.5"] * 8, "ants": ["0.5"] * 8})
    made = submit(done.folder, sample, sample.parent / "test", out="deep/er/mine.csv")
    header, *values = rows(made.path)
    truth = expected(done, sample.parent / "test")
    assert header == ["file", "bees", "ants"] and [row[0] for row in values] == [f"{stem}.jpg" for stem in STEMS]
    assert np.abs(np.array([row[1:] for row in values], dtype=float) - truth[["p_bees", "p_ants"]]).max().max() < 1e-5
    assert (
        made.path == Path("deep/er/mine.csv").absolute() and "each row's sum within 1e-06 of 1" in made.notes["checked"]
    )


@pytest.mark.parametrize("source", ["table", "json", "option", "alphabet"])
def test_integer_codes_come_from_each_source(done: baseline.Baseline, competition: Competition, source: str) -> None:
    sample = competition({"image_id": STEMS, "label": ["4"] * 8 if source != "alphabet" else ["1"] * 8})
    if source == "table":
        table = pd.DataFrame({"image": ["a", "b", "c"], "code": [4, 2, 4], "name": ["ants", "bees", "ants"]})
        table.to_csv(sample.with_name("train.csv"), index=False)
    if source == "json":
        sample.with_name("label_num_to_name.json").write_text(json.dumps({"4": "ants", "2": "bees"}))
    made = submit(done.folder, sample, codes="ants=4,bees=2" if source == "option" else None)
    codes = {"ants": "4", "bees": "2"} if source != "alphabet" else {"ants": "0", "bees": "1"}
    truth = expected(done, sample.parent / "test")["predicted"].map(codes).tolist()
    assert [row[1] for row in rows(made.path)[1:]] == truth and made.format.kind == "codes"
    notes = ("'name' and 'code' of train.csv", "by label_num_to_name.json", "as given by --codes", "A GUESS")
    assert notes[("table", "json", "option", "alphabet").index(source)] in made.notes["shape"]


def test_a_single_probability_column_holds_the_probability_of_one_class(
    done: baseline.Baseline, competition: Competition
) -> None:
    sample = competition({"id": STEMS, "is_bees": ["0.5"] * 8})
    values = np.array([row[1] for row in rows(submit(done.folder, sample).path)[1:]], dtype=float)
    assert np.abs(values - expected(done, sample.parent / "test")["p_bees"]).max() < 1e-5


@pytest.mark.parametrize("test", ["test", "test_images", "images/test", "data/Test_set"])
def test_ids_name_images_in_any_test_folder_with_and_without_extension(
    done: baseline.Baseline, competition: Competition, images: Path, test: str
) -> None:
    sample = competition({"id": [stem if number % 2 else f"{stem}.jpg" for number, stem in enumerate(STEMS)],
                          "label": [""] * 8}, test)  # fmt: skip
    (sample.parent / "train" / "ants").mkdir(parents=True)
    shutil.copy(images / "ants" / "00.jpg", sample.parent / "train" / "ants" / "0012.jpg")  # of the same name
    made = submit(done.folder, sample)
    assert [row[1] for row in rows(made.path)[1:]] == expected(done, sample.parent / test)["predicted"].tolist()


def test_ids_with_folders_and_training_images_among_the_test_images(
    done: baseline.Baseline, competition: Competition, images: Path
) -> None:
    sample = competition({"id": [f"all/{stem}" for stem in STEMS], "label": [""] * 8}, "all")
    for name in ("T_1.jpg", "T_2.jpg"):
        shutil.copy(images / "ants" / "00.jpg", sample.parent / "all" / name)
    with pytest.raises(DataError, match=r"2 images have no id in sample_submission.csv: 'T_1.jpg', 'T_2.jpg'"):
        submit(done.folder, sample)
    sample.with_name("train.csv").write_text("id,label\nall/T_1,ants\nall/T_2,bees\n")
    assert len(rows(submit(done.folder, sample).path)) == 9


def test_training_images_of_the_run_are_not_test_images(done: baseline.Baseline, images: Path) -> None:
    ids = [path.stem for path in sorted((images / "ants").iterdir())][:5]
    Path("sample.csv").write_text("id,label\n" + "".join(f"ants/{stem},\n" for stem in ids))
    assert len(rows(submit(done.folder, "sample.csv", images).path)) == 6


@pytest.mark.parametrize("form", ["bom", "semicolon", "tab", "crlf", "utf-16", "cp1252"])
def test_samples_in_other_encodings_keep_their_delimiter(
    done: baseline.Baseline, competition: Competition, form: str
) -> None:
    delimiter = {"semicolon": ";", "tab": "\t"}.get(form, ",")
    frame = pd.DataFrame({"": STEMS, "Label": ["ants"] * 8})
    sample = competition("")
    encoding = {"bom": "utf-8-sig", "utf-16": "utf-16", "cp1252": "cp1252"}.get(form, "utf-8")
    text = frame.to_csv(index=False, sep=delimiter, lineterminator="\r\n" if form == "crlf" else "\n")
    sample.write_bytes(text.encode(encoding))
    header, *values = rows(submit(done.folder, sample).path, delimiter)
    assert header == ["", "Label"] and [row[0] for row in values] == list(STEMS)


def test_an_unreadable_image_gets_the_mean_of_the_others_and_is_reported(
    done: baseline.Baseline, competition: Competition
) -> None:
    sample = competition({"id": STEMS, "ants": ["0.5"] * 8, "bees": ["0.5"] * 8})
    (sample.parent / "test" / "A.jpg").write_bytes(b"no image")
    made = submit(done.folder, sample)
    values = np.array([row[1:] for row in rows(made.path)[1:]], dtype=float)
    index = STEMS.index("A")
    assert np.allclose(values[index], np.delete(values, index, axis=0).mean(0)) and "A.jpg" in made.notes["unread"]
    for image in (sample.parent / "test").iterdir():
        image.write_bytes(b"")
    with pytest.raises(DataError, match="None of 8 test images can be read; the first is"):
        submit(done.folder, sample, overwrite=True)
    assert rows(made.path)[1:] != []


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("label\nants\n", "has no column of ids"),
        ("ants,bees\n0.5,0.5\n", "has no column of ids: none of 'ants', 'bees' names images"),
        ("id\n0012\n", "no column to fill"),
        ("id,label\n0012,ants\n13,ants\n14,ants\n", r"2 of 3 ids of .* have no image in .*: '13', '14'"),
        ("id,label\n0012,ants\n0012,ants\nA,ants\n", "1 id of .* appears more than once: '0012'"),
        ("id,label\n0012,ants\nA,ants\n", r"6 images have no id in .*: '10.jpg', '2_a.jpg', '3.v2.jpg' and 3 more"),
        ("id,label\n0012,ants,1\n", "Row 1 of .* has 3 values, but the header has 2"),
        ("id,id\n0012,ants\n", "two columns of the same name"),
        ("", "is empty"),
        ("id,label\n", "no rows"),
        (sample_of("9" * 5000), "contains .999"),
    ],
)
def test_a_sample_that_does_not_fit_the_images_is_refused_and_nothing_is_written(
    done: baseline.Baseline, competition: Competition, sample: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        submit(done.folder, competition(sample))
    assert not list(Path().iterdir())


def test_images_without_an_id_are_skipped_on_request(done: baseline.Baseline, competition: Competition) -> None:
    made = submit(done.folder, competition("id,label\n0012,ants\nA,ants\n"), leave_extra=True)
    assert len(rows(made.path)) == 3 and "6 without an id skipped" in made.notes["images"]


def test_a_training_image_is_not_used_for_a_test_id(
    done: baseline.Baseline, competition: Competition, images: Path
) -> None:
    sample = competition({"id": [*STEMS, "new"], "label": [""] * 9})
    (sample.parent / "train").mkdir()
    shutil.copy(images / "ants" / "00.jpg", sample.parent / "train" / "new.jpg")
    with pytest.raises(DataError, match=r"1 of 9 ids .* has no image .*: 'new'"):
        submit(done.folder, sample)


def test_test_in_a_file_name_does_not_make_a_test_image(done: baseline.Baseline, competition: Competition) -> None:
    sample = competition({"id": [*STEMS[1:], "testarossa"], "species": ["bees"] * 8}, test="images")
    (sample.parent / "images" / f"{STEMS[0]}.jpg").rename(sample.parent / "images" / "testarossa.jpg")
    assert len(rows(submit(done.folder, sample).path)) == 9


def test_an_existing_file_is_kept_unless_overwrite_is_given(done: baseline.Baseline, competition: Competition) -> None:
    sample = competition({"id": STEMS, "label": [""] * 8})
    Path("submission.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"already exists\. Pass --overwrite"):
        submit(done.folder, sample)
    with pytest.raises(OutputError, match="is the sample itself"):
        submit(done.folder, sample, out=sample, overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        submit(done.folder, sample, out="/proc/submission.csv")
    assert Path("submission.csv").read_text() == "mine"
    assert submit(done.folder, sample, overwrite=True).path.stat().st_size > 50
    assert [path.name for path in Path().iterdir()] == ["submission.csv"]


def test_a_file_that_fails_verification_is_not_left_behind(
    done: baseline.Baseline, competition: Competition, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = competition({"id": STEMS, "ants": ["0.5"] * 8, "bees": ["0.5"] * 8})
    for value, message in (
        ("nan", "numbers are outside 0 to 1"),
        ("0.6", "differs from 1 by 0.2"),
        ("", "values are missing"),
    ):
        monkeypatch.setattr(
            submission,
            "format_predictions",
            lambda *_, value=value: dict.fromkeys(("ants", "bees"), [value] * 8),
        )
        with pytest.raises(OutputError, match=message):
            submit(done.folder, sample)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("explicit", [True, False])
def test_a_sample_in_a_zip_is_read_like_a_plain_one(
    done: baseline.Baseline, competition: Competition, monkeypatch: pytest.MonkeyPatch, explicit: bool
) -> None:
    sample = competition({"id": STEMS, "label": [""] * 8})
    truth = expected(done, sample.parent / "test")["predicted"].tolist()
    archive = sample.with_name("sample_submission.csv.zip")
    with zipfile.ZipFile(archive, "w") as file:
        file.write(sample, sample.name)
        file.writestr("__MACOSX/._sample_submission.csv", b"x")
    shutil.copytree(sample.parent, "input/c")
    monkeypatch.setenv("BASELINE_KAGGLE", str(Path.cwd()))
    assert (
        submit(done.folder, out="both.csv")
        .notes["sample"]
        .startswith(str(Path("input/c/sample_submission.csv:").absolute()))
    )
    sample.unlink()
    Path("input/c/sample_submission.csv").unlink()
    made = submit(done.folder, archive if explicit else None, out="zipped.csv")
    assert [row[1] for row in rows(made.path)[1:]] == truth and "sample_submission.csv.zip: 8 rows" in made.notes[
        "sample"
    ]
    assert Path("both.csv").read_bytes() == Path("zipped.csv").read_bytes()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"a.csv": "id,label\n0012,\n", "b.csv": "id,label\n"},
            "contains 2 tables, but must contain exactly one sample submission",
        ),
        ({"readme.txt": "x"}, "contains 0 tables"),
        ({"../a.csv": "id,label\n0012,\n"}, "points outside the folder"),
        ({"a.csv": "id,label\n13,ants\n0012,ants\n"}, r"1 of 2 ids of sample_submission\.csv\.zip has no image"),
        ({"a.csv": "id,label\n0012,ants\n"}, r"7 images have no id in sample_submission\.csv\.zip"),
        (None, "is damaged, truncated"),
    ],
)
def test_a_zip_without_a_valid_sample_is_refused(
    done: baseline.Baseline, competition: Competition, members: dict[str, str] | None, message: str
) -> None:
    archive = competition("").with_name("sample_submission.csv.zip")
    archive.write_bytes(b"PK\3\4 and no more")
    if members is not None:
        with zipfile.ZipFile(archive, "w") as file:
            for name, text in members.items():
                file.writestr(name, text)
    with pytest.raises(DataError, match=message):
        submit(done.folder, archive)
    assert not list(Path().iterdir())


def test_images_in_an_archive_beside_the_sample_are_unpacked(done: baseline.Baseline, competition: Competition) -> None:
    sample = competition({"id": STEMS, "label": [""] * 8})
    truth = expected(done, sample.parent / "test")["predicted"].tolist()
    shutil.make_archive(str(sample.parent / "test"), "zip", sample.parent, "test")
    shutil.rmtree(sample.parent / "test")
    assert [row[1] for row in rows(submit(done.folder, sample).path)[1:]] == truth


def test_on_kaggle_the_sample_is_found_and_the_command_writes_a_checked_file(
    done: baseline.Baseline, competition: Competition, tmp_path: Path
) -> None:
    sample = competition({"id": STEMS, "label": ["ants"] * 8})
    (tmp_path / "kaggle" / "input").mkdir(parents=True)
    (tmp_path / "kaggle" / "working").mkdir()
    inside = Path(shutil.move(sample.parent, tmp_path / "kaggle" / "input"))
    for folder in (inside / "test", inside, inside.parent):
        folder.chmod(0o555)
    first = call("submit", str(done.folder), BASELINE_KAGGLE=str(tmp_path / "kaggle"))
    again = call("submit", str(done.folder), BASELINE_KAGGLE=str(tmp_path / "kaggle"))
    for folder in (inside.parent, inside, inside / "test"):
        folder.chmod(0o755)
    written = tmp_path / "kaggle" / "working" / "submission.csv"
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == str(written) and "checked: 8 rows; columns, ids" in first.stdout
    assert "shape: class names in 'label', by name" in first.stdout
    assert [row[0] for row in rows(written)] == ["id", *STEMS]
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and "already exists" in again.stderr
    shutil.copy(inside / "sample_submission.csv", inside / "sample_submission_2.csv")
    two = call("submit", str(done.folder), BASELINE_KAGGLE=str(tmp_path / "kaggle"))
    none = call("submit", str(done.folder), BASELINE_KAGGLE=str(tmp_path / "none"))
    assert two.returncode == none.returncode == 2
    assert "There are 2 sample submissions" in two.stderr and "There is no sample_submission*.csv" in none.stderr


def test_a_folder_without_a_model_and_codes_of_other_classes_are_refused(
    done: baseline.Baseline, competition: Competition
) -> None:
    sample = competition({"id": STEMS, "label": ["0"] * 8})
    with pytest.raises(OutputError, match="contains no model"):
        submit(sample.parent, sample)
    for codes in ("ants=0", "ants=0,bees=0", "ants=0,bees=1,wasps=2", "ants", "ants=,bees=1"):
        with pytest.raises(DataError, match="--codes must give each of the run's classes a name of its own"):
            submit(done.folder, sample, codes=codes)
    assert submit(done.folder / "model", sample).path.exists() and len(list(Path().iterdir())) == 1


def test_the_sample_beside_the_images_of_the_run_comes_first(
    done: baseline.Baseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, competition, run = tmp_path / "input", tmp_path / "leaves", tmp_path / "run"
    for folder in (inputs / "other", competition / "train", run):
        folder.mkdir(parents=True)
    for folder in (inputs / "other", competition):
        (folder / "sample_submission.csv").write_text("id,label\n1,ants\n")
    monkeypatch.setattr(submission, "kaggle_dir", lambda _: inputs)
    manifest = {**done.manifest, "images": str(competition / "train")}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert submission.find_sample(None, run) == competition / "sample_submission.csv"
    (competition / "train" / "sample_submission.csv").write_text("id,label\n1,ants\n")
    assert submission.find_sample(None, run) == competition / "train" / "sample_submission.csv"
    (competition / "train" / "sampleSubmission.csv").write_text("id,label\n1,ants\n")
    with pytest.raises(DataError, match="There are 2 sample submissions beside the images of the run"):
        submission.find_sample(None, run)
    (run / "manifest.json").write_text(json.dumps({**manifest, "images": None}))
    assert submission.find_sample(None, run) == inputs / "other" / "sample_submission.csv"
    (inputs / "other" / "sample_submission.csv").unlink()
    with pytest.raises(DataError, match=r"no sample_submission.* beside the run's images or below"):
        submission.find_sample(None, run)
