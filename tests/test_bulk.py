"""Predictions by the thousand: rows in order, errors as rows, and a job that was killed ends as if it had not been."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_cli import call

import baseline
from baseline import DataError, OutputError, Wanted, load, write_predictions
from baseline.bulk import named_photos
from baseline.model import Model


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load(tiny)


@pytest.fixture(scope="module")
def paths(photos: Path) -> list[str]:
    return sorted(str(path) for path in photos.rglob("*.jpg"))


def rows_of(path: str | Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(path).read_text(), newline="")))


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_rows_are_what_the_model_predicts_in_order(model: Model, paths: list[str]) -> None:
    counts = write_predictions(model, iter(paths), "out.csv", Wanted(top_k=2, every=True, batch_size=7))
    written, expected = pd.read_csv("out.csv"), model.predict(paths)
    top = ["class_1", "probability_1", "class_2", "probability_2"]
    shares = ["p_ants", "p_bees", "p_wasps"]
    assert list(written) == ["path", "predicted", "confidence", "error", *top, *shares]
    assert list(written["path"]) == paths and list(written["predicted"]) == list(expected["predicted"])
    assert np.allclose(written[["confidence", *shares]], expected[["confidence", *shares]], atol=1e-5)
    assert (written["class_1"] == written["predicted"]).all() and (
        written["probability_1"] == written["confidence"]
    ).all()
    assert (written["probability_2"] == np.sort(written[shares], axis=1)[:, -2]).all()
    assert (counts.photos, counts.unreadable, counts.before) == (48, 0, 0)


def test_json_lines_say_the_same(model: Model, paths: list[str]) -> None:
    plain = Wanted(format="jsonl", tta=False, top_k=9, every=True)
    write_predictions(model, [*paths, "nowhere.jpg"], "out.jsonl", plain)
    *rows, last = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    expected = model.predict(paths, tta=False)
    assert [row["path"] for row in rows] == paths and [row["predicted"] for row in rows] == list(expected["predicted"])
    assert all(len(row["top"]) == 3 and row["top"][0]["class"] == row["predicted"] for row in rows)
    assert np.allclose([row["probabilities"]["bees"] for row in rows], expected["p_bees"], atol=1e-5)
    assert last == {"path": "nowhere.jpg", "predicted": None, "confidence": None, "error": "No such file or directory"}


def test_what_is_unsure_is_called_so(model: Model, paths: list[str]) -> None:
    sure = model.predict(paths)["confidence"]
    counts = write_predictions(model, paths, "out.csv", Wanted(min_confidence=float(sure.median())))
    unsure = [row["predicted"] == "unsure" for row in rows_of("out.csv")]
    assert unsure == (sure < sure.median()).tolist() and counts.unsure == sum(unsure) > 0


def test_photos_that_cannot_be_read_have_rows_that_say_why(model: Model, paths: list[str], tmp_path: Path) -> None:
    whole = Path(paths[0]).read_bytes()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    bad = ["text.jpg", "empty.jpg", "half.jpg", "folder.jpg", "pipe.jpg", "huge.png", "nowhere.jpg", "nul\0.jpg"]
    mixed = [paths[0], *[str(tmp_path / name) for name in bad], paths[1]]
    counts = write_predictions(model, mixed, "out.csv", Wanted(batch_size=3))
    rows = rows_of("out.csv")
    assert [row["path"] for row in rows] == mixed and counts.unreadable == len(bad) and counts.photos == len(mixed)
    words = ["not a photo", "empty file", "truncated", "not a file", "not a file", "more than", "No such file", "null"]
    for row, word in zip(rows[1:-1], words, strict=True):
        assert word in row["error"] and row["predicted"] == row["confidence"] == "", row
    alone = model.predict([paths[0], paths[1]])["confidence"]
    assert [float(rows[at]["confidence"]) for at in (0, -1)] == pytest.approx(alone.tolist(), abs=1e-5)


def test_mutated_photos_are_predicted_or_say_why(model: Model, paths: list[str], tmp_path: Path) -> None:
    chance, made = random.Random(0), []
    forms = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]
    for number in range(300):
        content = io.BytesIO()
        Image.open(paths[number % 48]).resize((60, 40)).save(content, forms[number % 6])
        data = bytearray(content.getvalue())
        for _ in range(chance.randint(1, 20)):
            data[chance.randrange(min(len(data), chance.choice([64, 10**6])))] = chance.randrange(256)
        made.append(str(tmp_path / str(number)))
        Path(made[-1]).write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
    counts = write_predictions(model, made, "out.csv")
    assert counts.photos == 300 > counts.unreadable > 0 and [row["path"] for row in rows_of("out.csv")] == made


# ---- going on after a kill ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_cut_anywhere_becomes_the_undisturbed_one(
    model: Model, paths: list[str], tmp_path: Path, kind: str
) -> None:
    odd = tmp_path / 'comma, "quote"\nand newline.jpg'
    shutil.copy(paths[0], odd)
    mixed = [*paths[:9], str(odd), "nowhere,\n.jpg", *paths[9:19]]
    wanted, out = Wanted(format=kind, top_k=1, batch_size=4), Path(f"out.{kind}")
    write_predictions(model, mixed, out, wanted)
    whole, chance = out.read_bytes(), random.Random(1)
    for size in [0, 1, len(whole) - 1, len(whole), *[chance.randrange(len(whole)) for _ in range(30)]]:
        out.write_bytes(whole[:size])
        counts = write_predictions(model, iter(mixed), out, wanted, resume=True)
        assert out.read_bytes() == whole and counts.before + counts.photos == len(mixed), size
    assert counts.before % 4 == 0
    out.unlink()
    assert write_predictions(model, mixed, out, wanted, resume=True).before == 0 and out.read_bytes() == whole


def killed(tiny: Path, listed: Path, out: Path, kills: int, seed: int) -> int:
    """Runs the command with `--resume` again and again, killed at random moments, until it ends; how often it was."""
    chance, done = random.Random(seed), 0
    lines = sum(1 for _ in listed.open())
    command = [sys.executable, "-m", "baseline", "predict", str(tiny), "-", "--out", str(out), "--resume"]
    for turn in range(kills + 1):
        ended = subprocess.Popen(
            [*command, "--batch-size", "8"], stdin=listed.open(), stderr=subprocess.PIPE, text=True
        )
        least = chance.uniform(turn, turn + 1) / (kills + 1)  # rows to be seen, as a share of all, before it is killed
        while turn < kills and ended.poll() is None:
            if out.exists() and out.read_bytes().count(b"\n") > least * lines:
                ended.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        words = ended.communicate()[1]
        assert ended.returncode in (0, -signal.SIGKILL), words
        done += ended.returncode != 0
    return done


def test_kill_9_loses_and_repeats_nothing(tiny: Path, paths: list[str], tmp_path: Path) -> None:
    listed = tmp_path / "paths.txt"
    listed.write_text("".join(f"{path}\n" for path in paths * 8))
    assert killed(tiny, listed, tmp_path / "whole.csv", 0, 0) == 0
    assert killed(tiny, listed, tmp_path / "killed.csv", 3, 0) > 0
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert [row["path"] for row in rows_of(tmp_path / "killed.csv")] == paths * 8


@pytest.mark.slow
def test_twenty_kills_of_twenty_thousand_photos(tiny: Path, paths: list[str], tmp_path: Path) -> None:
    listed = tmp_path / "paths.txt"
    listed.write_text("".join(f"{path}\n" for path in (paths * 417)[:20_000]))
    killed(tiny, listed, tmp_path / "whole.csv", 0, 0)
    assert killed(tiny, listed, tmp_path / "killed.csv", 20, 0) == 20
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_another_job_cannot_go_on_with_the_file(model: Model, done: baseline.Baseline, paths: list[str]) -> None:
    wanted = Wanted(batch_size=4)
    write_predictions(model, paths[:8], "out.csv", wanted)
    before = Path("out.csv").read_bytes()
    with pytest.raises(OutputError, match=r"out\.csv exists. Give --resume to go on"):
        write_predictions(model, paths, "out.csv", wanted)
    for words, one, photos, other in (
        ("begun with another tta, top_k", model, paths, Wanted(tta=False, top_k=1, batch_size=4)),
        ("begun with another model", done.model, paths, wanted),
        (r"row 1 of out\.csv is not of photo .*: it was begun with other photos", model, paths[1:], wanted),
        (r"out\.csv has rows of more photos", model, paths[:7], wanted),
    ):
        with pytest.raises(OutputError, match=words):
            write_predictions(one, photos, "out.csv", other, resume=True)
    assert Path("out.csv").read_bytes() == before
    Path("out.csv").write_text("mine\n")
    with pytest.raises(OutputError, match="does not begin as this job's file would"):
        write_predictions(model, paths, "out.csv", wanted, resume=True)
    Path("out.csv.job.json").unlink()
    with pytest.raises(OutputError, match=r"out\.csv\.job\.json, which tells what out\.csv is of, is not there"):
        write_predictions(model, paths, "out.csv", wanted, resume=True)
    assert Path("out.csv").read_text() == "mine\n"
    write_predictions(model, paths[:8], "out.csv", wanted, overwrite=True)
    assert Path("out.csv").read_bytes() == before


def test_two_jobs_cannot_write_one_file(model: Model, paths: list[str]) -> None:
    def meanwhile() -> object:
        yield paths[0]
        with pytest.raises(OutputError, match="is being written by another job"):
            write_predictions(model, paths, "out.csv", resume=True)
        yield paths[1]

    assert write_predictions(model, meanwhile(), "out.csv").photos == 2


# ---- what is to be predicted ----------------------------------------------------------------------------------------


def test_words_name_photos_in_many_ways(photos: Path, tmp_path: Path) -> None:
    def paths(*words: str, **options: object) -> list[str]:
        found, total = named_photos(words, **options)  # type: ignore[arg-type]
        found = list(found)
        assert total in (0, len(found)) and (total or "-" in words)
        return found

    ants = [str(photos / "ants" / f"{number:02}.jpg") for number in range(24)]
    assert paths(str(photos / "ants")) == ants and paths(str(photos))[:24] == ants
    assert paths(ants[1], ants[0]) == [ants[1], ants[0]]
    assert paths(str(photos / "ants" / "0?.jpg")) == ants[:10] and len(paths(str(photos / "**" / "01.jpg"))) == 2
    (tmp_path / "list.csv").write_text("id,file,extra\n1,a.jpg,x\n2,deep/b.jpg,y\n")
    listed = [str(tmp_path / "a.jpg"), str(tmp_path / "deep" / "b.jpg")]
    assert paths(str(tmp_path / "list.csv")) == listed
    assert paths(str(tmp_path / "list.csv"), column="extra") == [str(tmp_path / name) for name in "xy"]
    assert paths("-", ants[0], lines=[b"a b.jpg\r\n", b"\n", b"\xff.jpg"]) == ["a b.jpg", "\udcff.jpg", ants[0]]
    (tmp_path / "none").mkdir()
    (tmp_path / "two.csv").write_text("x,y\n1,2\n")
    (tmp_path / "photos.zip").write_bytes(b"")
    for word, words in (
        ("nowhere.jpg", "There is no photo, folder or table"),
        (str(tmp_path / "none"), "holds no photos"),
        (str(tmp_path / "two.csv"), "Give --image-col"),
        (str(tmp_path / "photos.zip"), "is an archive. Unpack it"),
        ("nul\0", "There is no photo"),
        ("long" * 100, "cannot be looked at"),
    ):
        with pytest.raises(DataError, match=words):
            paths(word)


def test_predict_is_a_command(tiny: Path, photos: Path, paths: list[str]) -> None:
    printed = call("predict", str(tiny), str(photos / "ants"))
    assert printed.returncode == 0, printed.stderr
    rows = list(csv.DictReader(io.StringIO(printed.stdout)))
    assert [row["path"] for row in rows] == paths[:24]
    assert "predicted: 24 photos in" in printed.stderr and "photos/s)" in printed.stderr
    fed = f"{paths[0]}\nnowhere.jpg\n".encode() + b"\xff\n"
    command = [sys.executable, "-m", "baseline", "predict", str(tiny), "-", "--format", "jsonl", "--top-k", "1", "-q"]
    ended = subprocess.run(command, input=fed, capture_output=True)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.stderr == b"" and [line["path"] for line in lines] == [paths[0], "nowhere.jpg", "\ufffd"]
    ended = call("predict", str(tiny), paths[0], "--out", "deep/out.csv", "--no-tta")
    assert ended.returncode == 0 and ended.stdout == "" and len(rows_of("deep/out.csv")) == 1
    assert sorted(path.name for path in Path("deep").iterdir()) == ["out.csv", "out.csv.job.json"]
    checked = call("check", str(tiny))
    assert checked.returncode == 0 and "golden inputs: largest difference of a probability" in checked.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["TINY"], "Missing argument 'photos'"),
        (["TINY", "nowhere.jpg"], "There is no photo, folder or table nowhere.jpg"),
        (["nowhere", "PHOTOS"], "cannot be read: No such file"),
        (["TINY", "PHOTOS", "--out", "out.txt"], "out.txt is no .csv or .jsonl file by its name"),
        (["TINY", "PHOTOS", "--format", "xml"], "--format xml is unknown; needed: csv or jsonl"),
        (["TINY", "PHOTOS", "--resume"], "go with a file. Give --out FILE"),
        (["TINY", "PHOTOS", "--resume", "--overwrite", "--out", "o.csv"], "Give one of them"),
        (["TINY", "list.csv", "--out", "list.csv", "--overwrite"], "is one of those to predict"),
        (["TINY", "PHOTOS", "--out", "list.csv"], "list.csv exists. Give --resume"),
        (["TINY", "PHOTOS", "--out", "folder.csv", "--overwrite"], "is no file that can be written"),
        (["TINY", "PHOTOS", "--out", "/proc/none/out.csv"], "cannot be written"),
        (["TINY", "PHOTOS", "--min-confidence", "2"], "Invalid value for '--min-confidence'"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(tiny: Path, photos: Path, words: list[str], message: str) -> None:
    Path("list.csv").write_text("path\na.jpg\n")
    Path("folder.csv").mkdir()
    known = {"TINY": str(tiny), "PHOTOS": str(photos)}
    ended = call("predict", *[known.get(word, word) for word in words])
    assert ended.returncode == 2 and message in ended.stderr, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("baseline: ") and "Traceback" not in ended.stderr
    assert (
        sorted(path.name for path in Path().iterdir()) == ["folder.csv", "list.csv"]
        and Path("list.csv").read_text() == "path\na.jpg\n"
    )
