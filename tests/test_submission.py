"""A submission has the sample's columns, ids and order, and the run's predictions in the shape it asks for."""

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
from baseline import DataError, OutputError, submission, submit

Competition = Callable[..., Path]
STEMS = ("0012", "b 7", "x,1", "ä", "2_a", "3.v2", "A", "10")
"""Ids as competitions have them, and worse: leading zeros, blanks, commas, dots."""


@pytest.fixture
def competition(tmp_path: Path) -> Competition:
    """A competition's folder: images of test, which the run has not seen, and a sample."""

    def made(sample: dict[str, list[str]] | str, test: str = "test", ending: str = ".jpg") -> Path:
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

    return made


def rows(path: Path, delimiter: str = ",") -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file, delimiter=delimiter))


def expected(done: baseline.Baseline, folder: Path) -> pd.DataFrame:
    """What the run's own Learner makes of the test photos, with TTA and the fitted temperature."""
    paths = [str(folder / f"{stem}.jpg") for stem in STEMS]
    table = pd.DataFrame({"path": paths, "label": "ants", "split": "test"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(done.learner.dls, "decoded", None)  # the photos of the run; these are read from disk
        found = baseline.predictions(done.learner, table, done.recipe.tta, splits=("test",))
    return baseline.calibrated(found, done.manifest["calibration"]["temperature"])


def test_class_names_are_written_for_the_samples_ids_in_its_order(
    done: baseline.Baseline, competition: Competition
) -> None:
    turned = list(reversed(STEMS))
    sample = competition({"id": turned, "species": ["bees"] * 8})
    made = submit(done.folder, sample)
    truth = expected(done, sample.parent / "test")["predicted"].tolist()
    assert made.path == Path.cwd() / "submission.csv" and made.shape.kind == "names"
    assert rows(made.path) == [["id", "species"], *map(list, zip(turned, reversed(truth), strict=True))]
    assert "8 rows; columns, ids and their order as in the sample" in made.told["checked"]


def test_probabilities_are_the_calibrated_ones_of_the_run(done: baseline.Baseline, competition: Competition) -> None:
    sample = competition({"file": [f"{stem}.jpg" for stem in STEMS], "bees": ["0.5"] * 8, "ants": ["0.5"] * 8})
    made = submit(done.folder, sample, sample.parent / "test", out="deep/er/mine.csv")
    header, *found = rows(made.path)
    truth = expected(done, sample.parent / "test")
    assert header == ["file", "bees", "ants"] and [row[0] for row in found] == [f"{stem}.jpg" for stem in STEMS]
    assert np.abs(np.array([row[1:] for row in found], dtype=float) - truth[["p_bees", "p_ants"]]).max().max() < 1e-5
    assert (
        made.path == Path("deep/er/mine.csv").absolute() and "each row's sum within 1e-06 of 1" in made.told["checked"]
    )


@pytest.mark.parametrize("who", ["table", "json", "option", "alphabet"])
def test_integer_codes_are_those_of_who_knows_them(done: baseline.Baseline, competition: Competition, who: str) -> None:
    sample = competition({"image_id": STEMS, "label": ["4"] * 8 if who != "alphabet" else ["1"] * 8})
    if who == "table":
        table = pd.DataFrame({"image": ["a", "b", "c"], "code": [4, 2, 4], "name": ["ants", "bees", "ants"]})
        table.to_csv(sample.with_name("train.csv"), index=False)
    if who == "json":
        sample.with_name("label_num_to_name.json").write_text(json.dumps({"4": "ants", "2": "bees"}))
    made = submit(done.folder, sample, codes="ants=4,bees=2" if who == "option" else None)
    codes = {"ants": "4", "bees": "2"} if who != "alphabet" else {"ants": "0", "bees": "1"}
    truth = expected(done, sample.parent / "test")["predicted"].map(codes).tolist()
    assert [row[1] for row in rows(made.path)[1:]] == truth and made.shape.kind == "codes"
    words = ("'name' and 'code' of train.csv", "by label_num_to_name.json", "as --codes says", "A GUESS")
    assert words[("table", "json", "option", "alphabet").index(who)] in made.told["shape"]


def test_one_probability_column_holds_that_of_one_class(done: baseline.Baseline, competition: Competition) -> None:
    sample = competition({"id": STEMS, "is_bees": ["0.5"] * 8})
    found = np.array([row[1] for row in rows(submit(done.folder, sample).path)[1:]], dtype=float)
    assert np.abs(found - expected(done, sample.parent / "test")["p_bees"]).max() < 1e-5


@pytest.mark.parametrize("test", ["test", "test_images", "images/test", "data/Test_set"])
def test_ids_name_photos_in_any_test_folder_with_and_without_ending(
    done: baseline.Baseline, competition: Competition, photos: Path, test: str
) -> None:
    sample = competition({"id": [stem if number % 2 else f"{stem}.jpg" for number, stem in enumerate(STEMS)],
                          "label": [""] * 8}, test)  # fmt: skip
    (sample.parent / "train" / "ants").mkdir(parents=True)
    shutil.copy(photos / "ants" / "00.jpg", sample.parent / "train" / "ants" / "0012.jpg")  # of the same name
    made = submit(done.folder, sample)
    assert [row[1] for row in rows(made.path)[1:]] == expected(done, sample.parent / test)["predicted"].tolist()


def test_ids_with_folders_and_training_photos_in_between(
    done: baseline.Baseline, competition: Competition, photos: Path
) -> None:
    sample = competition({"id": [f"all/{stem}" for stem in STEMS], "label": [""] * 8}, "all")
    for name in ("T_1.jpg", "T_2.jpg"):
        shutil.copy(photos / "ants" / "00.jpg", sample.parent / "all" / name)
    with pytest.raises(DataError, match=r"2 photos have no id in sample_submission.csv: 'T_1.jpg', 'T_2.jpg'"):
        submit(done.folder, sample)
    sample.with_name("train.csv").write_text("id,label\nall/T_1,ants\nall/T_2,bees\n")
    assert len(rows(submit(done.folder, sample).path)) == 9


def test_photos_that_the_run_was_trained_on_are_no_test_photos(done: baseline.Baseline, photos: Path) -> None:
    ids = [path.stem for path in sorted((photos / "ants").iterdir())][:5]
    Path("sample.csv").write_text("id,label\n" + "".join(f"ants/{each},\n" for each in ids))
    assert len(rows(submit(done.folder, "sample.csv", photos).path)) == 6


@pytest.mark.parametrize("form", ["bom", "semicolon", "tab", "crlf", "utf-16"])
def test_samples_in_other_forms_keep_their_delimiter(
    done: baseline.Baseline, competition: Competition, form: str
) -> None:
    delimiter = {"semicolon": ";", "tab": "\t"}.get(form, ",")
    frame = pd.DataFrame({"": STEMS, "Label": ["ants"] * 8})
    sample = competition("")
    encoding = {"bom": "utf-8-sig", "utf-16": "utf-16"}.get(form, "utf-8")
    text = frame.to_csv(index=False, sep=delimiter, lineterminator="\r\n" if form == "crlf" else "\n")
    sample.write_bytes(text.encode(encoding))
    found = rows(submit(done.folder, sample).path, delimiter)
    assert found[0] == ["", "Label"] and [row[0] for row in found[1:]] == list(STEMS)


def test_a_photo_that_cannot_be_read_gets_the_mean_of_the_others_and_is_told(
    done: baseline.Baseline, competition: Competition
) -> None:
    sample = competition({"id": STEMS, "ants": ["0.5"] * 8, "bees": ["0.5"] * 8})
    (sample.parent / "test" / "A.jpg").write_bytes(b"no photo")
    made = submit(done.folder, sample)
    found = np.array([row[1:] for row in rows(made.path)[1:]], dtype=float)
    place = STEMS.index("A")
    assert np.allclose(found[place], np.delete(found, place, axis=0).mean(0)) and "A.jpg" in made.told["unread"]
    for photo in (sample.parent / "test").iterdir():
        photo.write_bytes(b"")
    with pytest.raises(DataError, match="None of 8 test photos can be read"):
        submit(done.folder, sample, overwrite=True)
    assert rows(made.path)[1:] != []


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ("label\nants\n", "has no column of ids"),
        ("ants,bees\n0.5,0.5\n", "has no column of ids: none of 'ants', 'bees' names photos"),
        ("id\n0012\n", "no column to fill"),
        ("id,label\n0012,ants\n13,ants\n14,ants\n", r"2 of 3 ids of .* have no photo below .*: '13', '14'"),
        ("id,label\n0012,ants\n0012,ants\nA,ants\n", "1 ids of .* come more than once: '0012'"),
        ("id,label\n0012,ants\nA,ants\n", r"6 photos have no id in .*: '10.jpg', '2_a.jpg', '3.v2.jpg' and 3 more"),
        ("id,label\n0012,ants,1\n", "Row 1 of .* has 3 values, its header 2"),
        ("id,id\n0012,ants\n", "two columns of one name"),
        ("", "is empty"),
        ("id,label\n", "no rows"),
    ],
)
def test_a_sample_that_does_not_fit_the_photos_is_refused_and_nothing_is_written(
    done: baseline.Baseline, competition: Competition, sample: str, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        submit(done.folder, competition(sample))
    assert not list(Path().iterdir())


def test_photos_without_an_id_are_passed_over_where_that_is_wished(
    done: baseline.Baseline, competition: Competition
) -> None:
    made = submit(done.folder, competition("id,label\n0012,ants\nA,ants\n"), leave_extra=True)
    assert len(rows(made.path)) == 3 and "6 without an id are passed over" in made.told["photos"]


def test_a_training_photo_does_not_stand_in_for_a_test_photo(
    done: baseline.Baseline, competition: Competition, photos: Path
) -> None:
    sample = competition({"id": [*STEMS, "new"], "label": [""] * 9})
    (sample.parent / "train").mkdir()
    shutil.copy(photos / "ants" / "00.jpg", sample.parent / "train" / "new.jpg")
    with pytest.raises(DataError, match=r"1 of 9 ids .*: 'new'"):
        submit(done.folder, sample)


def test_only_a_folder_makes_test_photos_of_its_photos(done: baseline.Baseline, competition: Competition) -> None:
    sample = competition({"id": [*STEMS[1:], "testarossa"], "species": ["bees"] * 8}, test="images")
    (sample.parent / "images" / f"{STEMS[0]}.jpg").rename(sample.parent / "images" / "testarossa.jpg")
    assert len(rows(submit(done.folder, sample).path)) == 9


def test_what_is_there_is_kept_unless_it_may_be_overwritten(done: baseline.Baseline, competition: Competition) -> None:
    sample = competition({"id": STEMS, "label": [""] * 8})
    Path("submission.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"exists already\. Give --overwrite"):
        submit(done.folder, sample)
    with pytest.raises(OutputError, match="is the sample itself"):
        submit(done.folder, sample, out=sample, overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        submit(done.folder, sample, out="/proc/submission.csv")
    assert Path("submission.csv").read_text() == "mine"
    assert submit(done.folder, sample, overwrite=True).path.stat().st_size > 50
    assert [path.name for path in Path().iterdir()] == ["submission.csv"]


def test_a_file_that_is_not_as_it_should_be_is_not_left_behind(
    done: baseline.Baseline, competition: Competition, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = competition({"id": STEMS, "ants": ["0.5"] * 8, "bees": ["0.5"] * 8})
    for value, words in (("nan", "numbers leave 0 to 1"), ("0.6", "sum is 0.2 from 1"), ("", "values are missing")):
        monkeypatch.setattr(
            submission, "in_shape", lambda *_, value=value: dict.fromkeys(("ants", "bees"), [value] * 8)
        )
        with pytest.raises(OutputError, match=words):
            submit(done.folder, sample)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("given", [True, False])
def test_a_sample_in_a_zip_is_read_as_if_it_lay_beside(
    done: baseline.Baseline, competition: Competition, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    sample = competition({"id": STEMS, "label": [""] * 8})
    truth = expected(done, sample.parent / "test")["predicted"].tolist()
    archive = sample.with_name("sample_submission.csv.zip")
    with zipfile.ZipFile(archive, "w") as opened:
        opened.write(sample, sample.name)
        opened.writestr("__MACOSX/._sample_submission.csv", b"x")
    shutil.copytree(sample.parent, "input/c")
    monkeypatch.setenv("BASELINE_KAGGLE", str(Path.cwd()))
    assert (
        submit(done.folder, out="both.csv")
        .told["sample"]
        .startswith(str(Path("input/c/sample_submission.csv:").absolute()))
    )
    sample.unlink()
    Path("input/c/sample_submission.csv").unlink()
    made = submit(done.folder, archive if given else None, out="zipped.csv")
    assert [row[1] for row in rows(made.path)[1:]] == truth and "sample_submission.csv.zip: 8 rows" in made.told[
        "sample"
    ]
    assert Path("both.csv").read_bytes() == Path("zipped.csv").read_bytes()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.csv": "id,label\n0012,\n", "b.csv": "id,label\n"}, "holds 2 tables; one sample submission was needed"),
        ({"readme.txt": "x"}, "holds 0 tables"),
        ({"../a.csv": "id,label\n0012,\n"}, "leads out of the folder"),
        ({"a.csv": "id,label\n13,ants\n0012,ants\n"}, r"1 of 2 ids of sample_submission\.csv\.zip have no photo"),
        ({"a.csv": "id,label\n0012,ants\n"}, r"7 photos have no id in sample_submission\.csv\.zip"),
        (None, "is damaged, cut short"),
    ],
)
def test_a_zip_that_holds_no_fitting_sample_is_refused(
    done: baseline.Baseline, competition: Competition, members: dict[str, str] | None, words: str
) -> None:
    archive = competition("").with_name("sample_submission.csv.zip")
    archive.write_bytes(b"PK\3\4 and no more")
    if members is not None:
        with zipfile.ZipFile(archive, "w") as opened:
            for name, text in members.items():
                opened.writestr(name, text)
    with pytest.raises(DataError, match=words):
        submit(done.folder, archive)
    assert not list(Path().iterdir())


def test_photos_in_an_archive_beside_the_sample_are_unpacked(done: baseline.Baseline, competition: Competition) -> None:
    sample = competition({"id": STEMS, "label": [""] * 8})
    truth = expected(done, sample.parent / "test")["predicted"].tolist()
    shutil.make_archive(str(sample.parent / "test"), "zip", sample.parent, "test")
    shutil.rmtree(sample.parent / "test")
    assert [row[1] for row in rows(submit(done.folder, sample).path)[1:]] == truth


def test_on_kaggle_the_sample_is_found_and_the_command_ends_in_a_checked_file(
    done: baseline.Baseline, competition: Competition, tmp_path: Path
) -> None:
    sample = competition({"id": STEMS, "label": ["ants"] * 8})
    (tmp_path / "kaggle" / "input").mkdir(parents=True)
    (tmp_path / "kaggle" / "working").mkdir()
    inside = Path(shutil.move(sample.parent, tmp_path / "kaggle" / "input"))
    for folder in (inside / "test", inside, inside.parent):
        folder.chmod(0o555)
    ended = call("submit", str(done.folder), BASELINE_KAGGLE=str(tmp_path / "kaggle"))
    again = call("submit", str(done.folder), BASELINE_KAGGLE=str(tmp_path / "kaggle"))
    for folder in (inside.parent, inside, inside / "test"):
        folder.chmod(0o755)
    written = tmp_path / "kaggle" / "working" / "submission.csv"
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == str(written) and "checked: 8 rows; columns, ids" in ended.stdout
    assert "shape: class names in 'label', by name" in ended.stdout
    assert [row[0] for row in rows(written)] == ["id", *STEMS]
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and "exists already" in again.stderr
    shutil.copy(inside / "sample_submission.csv", inside / "sample_submission_2.csv")
    two = call("submit", str(done.folder), BASELINE_KAGGLE=str(tmp_path / "kaggle"))
    none = call("submit", str(done.folder), BASELINE_KAGGLE=str(tmp_path / "none"))
    assert two.returncode == none.returncode == 2
    assert "There are 2 sample submissions" in two.stderr and "There is no sample_submission*.csv" in none.stderr


def test_a_folder_without_a_model_and_codes_of_other_classes_are_refused(
    done: baseline.Baseline, competition: Competition
) -> None:
    sample = competition({"id": STEMS, "label": ["0"] * 8})
    with pytest.raises(OutputError, match="holds no model"):
        submit(sample.parent, sample)
    for codes in ("ants=0", "ants=0,bees=0", "ants=0,bees=1,wasps=2", "ants", "ants=,bees=1"):
        with pytest.raises(DataError, match="--codes has to give each of the run's classes a word of its own"):
            submit(done.folder, sample, codes=codes)
    assert submit(done.folder / "model", sample).path.exists() and len(list(Path().iterdir())) == 1
