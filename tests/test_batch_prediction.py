"""Bulk prediction: rows in order, unreadable images as rows, and a resumed job that ends like an undisturbed one."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import COMMAND_WITH_FORKS, Command, call
from PIL import Image

import baseline
from baseline import load, write_predictions
from baseline.data.image import FORMATS
from baseline.data.sources.image_list import list_images
from baseline.errors import DataError, OutputError, RecipeError
from baseline.inference import model as model_module
from baseline.inference import output
from baseline.inference.model import Model
from baseline.inference.output import PredictOptions
from baseline.inference.workers import predict_in_workers


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load(tiny)


@pytest.fixture(scope="module")
def paths(images: Path) -> list[str]:
    return sorted(str(path) for path in images.rglob("*.jpg"))


def read_rows(path: str | Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(path).read_text(), newline="")))


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_rows_hold_the_models_predictions_in_order(model: Model, paths: list[str]) -> None:
    stats = write_predictions(model, iter(paths), "out.csv", PredictOptions(top_k=2, every=True, batch_size=7))
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
    assert (stats.images, stats.unreadable, stats.already_done) == (48, 0, 0)


def test_json_lines_hold_the_same_predictions(model: Model, paths: list[str]) -> None:
    plain = PredictOptions(format="jsonl", tta=False, top_k=9, every=True)
    write_predictions(model, [*paths, "nowhere.jpg"], "out.jsonl", plain)
    *rows, last = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    expected = model.predict(paths, tta=False)
    assert [row["path"] for row in rows] == paths and [row["predicted"] for row in rows] == list(expected["predicted"])
    assert all(len(row["top"]) == 3 and row["top"][0]["class"] == row["predicted"] for row in rows)
    assert np.allclose([row["probabilities"]["bees"] for row in rows], expected["p_bees"], atol=1e-5)
    assert last == {"path": "nowhere.jpg", "predicted": None, "confidence": None, "error": "No such file or directory"}


def test_low_confidence_is_reported_as_unsure(model: Model, paths: list[str]) -> None:
    sure = model.predict(paths)["confidence"]
    stats = write_predictions(model, paths, "out.csv", PredictOptions(min_confidence=float(sure.median())))
    unsure = [row["predicted"] == "unsure" for row in read_rows("out.csv")]
    assert unsure == (sure < sure.median()).tolist() and stats.unsure == sum(unsure) > 0


def test_unreadable_images_get_a_row_with_the_reason(model: Model, paths: list[str], tmp_path: Path) -> None:
    whole = Path(paths[0]).read_bytes()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    bad = ["text.jpg", "empty.jpg", "half.jpg", "folder.jpg", "pipe.jpg", "huge.png", "nowhere.jpg", "nul\0.jpg"]
    mixed = [paths[0], *[str(tmp_path / name) for name in bad], paths[1]]
    stats = write_predictions(model, mixed, "out.csv", PredictOptions(batch_size=3))
    rows = read_rows("out.csv")
    assert [row["path"] for row in rows] == mixed and stats.unreadable == len(bad) and stats.images == len(mixed)
    words = ["not an image", "empty file", "truncated", "not a file", "not a file", "more than", "No such file", "null"]
    for row, word in zip(rows[1:-1], words, strict=True):
        assert word in row["error"] and row["predicted"] == row["confidence"] == "", row
    alone = model.predict([paths[0], paths[1]])["confidence"]
    assert [float(rows[at]["confidence"]) for at in (0, -1)] == pytest.approx(alone.tolist(), abs=1e-5)


def encode_in_many_formats(path: str) -> list[bytes]:
    """Return an image in the formats, modes and compressions that PIL writes."""
    picture = Image.open(path).convert("RGB").resize((90, 60))
    turned = Image.Exif()
    turned[0x0112], turned[0x010E] = 6, "a picture"
    clear = picture.convert("RGBA")
    clear.putalpha(100)
    gray = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 256)
    more = {"save_all": True, "append_images": [picture.rotate(20), picture.rotate(40)]}
    pair = {"save_all": True, "append_images": [picture.rotate(20)]}  # Pillow 10.4 damages an MPO file of more images
    variants: list[tuple[Image.Image, str, dict]] = [
        (picture, "JPEG", {"exif": turned, "icc_profile": bytes(600)}), (picture, "JPEG", {"progressive": True}),
        (picture.convert("CMYK"), "JPEG", {}), (picture.convert("L"), "JPEG", {"restart_marker_blocks": 4}),
        (picture, "PNG", {"exif": turned}), (clear, "PNG", {}), (gray, "PNG", {}), (picture, "PNG", more),
        (picture.quantize(16), "PNG", {"transparency": 3}), (picture.convert("1"), "PNG", {}),
        (picture, "GIF", {}), (picture, "GIF", more), (picture, "WEBP", {"exif": turned}), (picture, "WEBP", more),
        (clear, "WEBP", {"lossless": True}), (picture, "BMP", {}), (picture.quantize(16), "BMP", {}),
        (clear, "BMP", {}),
        (picture, "TIFF", {}), (picture, "TIFF", {"compression": "tiff_lzw"}),
        (gray, "TIFF", {"compression": "packbits"}),
        (picture, "TIFF", {"compression": "jpeg"}), (clear, "TIFF", {"compression": "tiff_deflate"}),
        (picture.convert("F"), "TIFF", {}), (picture, "TIFF", more), (picture, "PPM", {}),
        (picture, "JPEG2000", {}), (picture, "MPO", pair), (picture, "TGA", {"compression": "tga_rle"}),
        (picture, "ICO", {}), *([(picture, "AVIF", {})] if "AVIF" in FORMATS else []),
    ]  # fmt: skip
    made = []
    for image, format_name, options in variants:
        content = io.BytesIO()
        image.save(content, format_name, **options)
        made.append(content.getvalue())
    return made


def mutate(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Return the bytes with bits flipped, the header edited, parts swapped, removed or replaced, or truncated."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        at = chance.randrange(len(data) or 1)
        size = chance.randint(1, chance.choice([2, 20, 200]))
        kind = chance.choice(["bits", "bytes", "header", "number", "swap", "out", "double", "other", "cut"])
        if kind == "bits":
            for _ in range(chance.randint(1, chance.choice([1, 30]))):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == "bytes":
            data[at : at + size] = chance.randbytes(size)
        elif kind == "header":
            data[chance.randrange(min(len(data), 64))] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
        elif kind == "number":
            many = chance.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 10_000, chance.randrange(2**32)])
            place = chance.randrange(min(len(data), 400))
            data[place : place + 4] = many.to_bytes(4, chance.choice(["big", "little"]))
        elif kind == "swap":
            there = chance.randrange(len(data))
            data[at : at + size], data[there : there + size] = data[there : there + size], data[at : at + size]
        elif kind == "out":
            del data[at : at + size]
        elif kind == "double":
            data[at:at] = data[at : at + size]
        elif kind == "other":
            data[at:] = other[chance.randrange(len(other)) :]
        else:
            del data[at:]
        if not data:
            break
    return bytes(data)


def mutated_images(paths: list[str], count: int) -> Iterator[bytes]:
    chance = random.Random(0)
    whole = [content for path in paths[:4] for content in encode_in_many_formats(path)]
    for _ in range(count):
        yield mutate(chance.choice(whole), chance.choice(whole), chance)


def test_images_in_any_format_are_read(model: Model, paths: list[str]) -> None:
    [batch] = model.predict_batches(encode_in_many_formats(paths[0]))
    assert set(batch.errors) == {""} and len(batch.images) == 30 + ("AVIF" in FORMATS)


@pytest.mark.filterwarnings("ignore")
def test_mutated_images_are_predicted_or_reported(model: Model, paths: list[str], tmp_path: Path) -> None:
    made = []
    for number, content in enumerate(mutated_images(paths, 300)):
        made.append(str(tmp_path / str(number)))
        Path(made[-1]).write_bytes(content)
    stats = write_predictions(model, made, "out.csv")
    assert stats.images == 300 > stats.unreadable > 0 and [row["path"] for row in read_rows("out.csv")] == made


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ten_thousand_mutated_images(model: Model, paths: list[str], tmp_path: Path, capfd: Any) -> None:
    read, slowest = 0, (0.0, 0)
    for number, content in enumerate(mutated_images(paths, 10_000)):
        began = time.perf_counter()
        [batch] = model.predict_batches([content], optimize=False)
        slowest = max(slowest, (time.perf_counter() - began, number))
        read += not batch.errors[0]
        assert bool(batch.errors[0]) == bool(np.isnan(batch.confidence[0])) and "\n" not in batch.errors[0]
        assert batch.errors[0] or batch.probabilities[0].sum() == pytest.approx(1)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    with capfd.disabled():
        print(
            f"{read:,} of 10,000 were read; number {slowest[1]} took longest, {slowest[0]:.2f} s; {most:,} MB at most"
        )
    assert slowest[0] < 20 and 2_000 < read < 8_000
    assert not list(Path().iterdir()) and not list(tmp_path.iterdir())


def test_a_program_in_place_of_an_image_is_not_run(model: Model, tmp_path: Path) -> None:
    script = tmp_path / "bin" / "gs"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    script.chmod(0o755)
    (tmp_path / "image.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
        [batch] = model.predict_batches([tmp_path / "image.jpg"])
    assert batch.errors == ["not an image"] and not (tmp_path / "ran").exists()


# ---- resuming after a kill -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_truncated_anywhere_is_completed_identically(
    model: Model, paths: list[str], tmp_path: Path, kind: str
) -> None:
    odd = tmp_path / 'comma, "quote"\nand newline.jpg'
    shutil.copy(paths[0], odd)
    mixed = [*paths[:9], str(odd), "nowhere,\n.jpg", *paths[9:19]]
    options, out = PredictOptions(format=kind, top_k=1, batch_size=4), Path(f"out.{kind}")
    write_predictions(model, mixed, out, options)
    whole, chance = out.read_bytes(), random.Random(1)
    for size in [0, 1, len(whole) - 1, len(whole), *[chance.randrange(len(whole)) for _ in range(30)]]:
        out.write_bytes(whole[:size])
        stats = write_predictions(model, iter(mixed), out, options, resume=True)
        assert out.read_bytes() == whole and stats.already_done + stats.images == len(mixed), size
    assert stats.already_done % 4 == 0
    out.unlink()
    assert write_predictions(model, mixed, out, options, resume=True).already_done == 0 and out.read_bytes() == whole


def kill_repeatedly(tiny: Path, listed: Path, out: Path, kills: int, seed: int) -> int:
    """Run the command with `--resume` repeatedly, killing it at random moments, and return the number of kills."""
    chance, done = random.Random(seed), 0
    lines = sum(1 for _ in listed.open())
    words = ["predict", tiny, "-", "--out", out, "--resume", "--batch-size", "8"]
    for turn in range(kills + 1):
        with listed.open() as file:
            ended = Command(*words, stdin=file)
        least = chance.uniform(turn, turn + 1) / (kills + 1)  # rows to be seen, as a share of all, before it is killed
        while turn < kills and ended.poll() is None:
            if out.exists() and out.read_bytes().count(b"\n") > least * lines:
                ended.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        errors = ended.communicate()[1]
        assert ended.returncode in (0, -signal.SIGKILL), errors
        done += ended.returncode != 0
    return done


def test_kill_9_loses_and_repeats_no_rows(tiny: Path, paths: list[str], tmp_path: Path) -> None:
    listed = tmp_path / "paths.txt"
    listed.write_text("".join(f"{path}\n" for path in paths * 8))
    assert kill_repeatedly(tiny, listed, tmp_path / "whole.csv", 0, 0) == 0
    assert kill_repeatedly(tiny, listed, tmp_path / "killed.csv", 2, 0) > 0
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert [row["path"] for row in read_rows(tmp_path / "killed.csv")] == paths * 8


@pytest.mark.slow
def test_twenty_kills_of_twenty_thousand_images(tiny: Path, paths: list[str], tmp_path: Path) -> None:
    listed = tmp_path / "paths.txt"
    listed.write_text("".join(f"{path}\n" for path in (paths * 417)[:20_000]))
    kill_repeatedly(tiny, listed, tmp_path / "whole.csv", 0, 0)
    assert kill_repeatedly(tiny, listed, tmp_path / "killed.csv", 20, 0) == 20
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_different_job_cannot_resume_the_file(model: Model, done: baseline.Baseline, paths: list[str]) -> None:
    options = PredictOptions(batch_size=4)
    write_predictions(model, paths[:8], "out.csv", options)
    before = Path("out.csv").read_bytes()
    with pytest.raises(OutputError, match=r"out\.csv exists. Pass --resume to continue it"):
        write_predictions(model, paths, "out.csv", options)
    for words, one, images, other in (
        ("started with a different tta, top_k", model, paths, PredictOptions(tta=False, top_k=1, batch_size=4)),
        ("started with a different model", done.model, paths, options),
        (r"Row 1 of out\.csv is not for image .*: the job was started with other images", model, paths[1:], options),
        (r"out\.csv has too many rows: the job was started with other images", model, paths[:7], options),
    ):
        with pytest.raises(OutputError, match=words):
            write_predictions(one, images, "out.csv", other, resume=True)
    assert Path("out.csv").read_bytes() == before
    Path("out.csv").write_text("mine\n")
    with pytest.raises(OutputError, match=r"out\.csv was not written by this job"):
        write_predictions(model, paths, "out.csv", options, resume=True)
    Path("out.csv.job.json").unlink()
    with pytest.raises(OutputError, match=r"out\.csv\.job\.json is missing, so out\.csv cannot be continued"):
        write_predictions(model, paths, "out.csv", options, resume=True)
    assert Path("out.csv").read_text() == "mine\n"
    write_predictions(model, paths[:8], "out.csv", options, overwrite=True)
    assert Path("out.csv").read_bytes() == before


def test_rows_are_written_while_the_job_runs(model: Model, paths: list[str]) -> None:
    def watched() -> Iterator[str]:
        for number, path in enumerate(paths):
            written = Path("out.csv").read_bytes().count(b"\n") - 1 if number > 20 else number
            assert written >= number - 4 * 4  # three batches are read ahead
            yield path

    write_predictions(model, watched(), "out.csv", PredictOptions(batch_size=4))


def test_two_jobs_cannot_write_one_file(model: Model, paths: list[str]) -> None:
    def meanwhile() -> object:
        yield paths[0]
        job = Path("out.csv.job.json").read_bytes()
        for given, other in (({"resume": True}, None), ({"overwrite": True}, PredictOptions(top_k=2))):
            with pytest.raises(OutputError, match="is being written by another job"):
                write_predictions(model, paths, "out.csv", other, **given)
        assert Path("out.csv.job.json").read_bytes() == job
        yield paths[1]

    assert write_predictions(model, meanwhile(), "out.csv").images == 2
    assert [row["path"] for row in read_rows(Path("out.csv"))] == paths[:2]


# ---- Parquet, several processes, number formats ---------------------------------------------------------------------


def test_parquet_holds_the_same_rows_as_csv_and_appears_at_the_end(
    model: Model, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(output, "ROW_GROUP_BYTES", 1000)
    mixed = [*paths[:9], *(f'nowhere,\n"odd" {number}.jpg' for number in range(40)), *paths[9:30]]
    options: dict[str, Any] = {"top_k": 2, "every": True, "min_confidence": 0.4, "batch_size": 4}

    def seen() -> Iterator[str]:
        for number, path in enumerate(mixed):
            assert not Path("out.parquet").exists() and (not number or Path("out.parquet.rows.csv").exists())
            yield path

    write_predictions(model, mixed, "out.csv", PredictOptions(**options))
    write_predictions(model, seen(), "out.parquet", PredictOptions("parquet", **options))
    expected = pd.read_csv("out.csv", dtype={"error": "str"})
    found = pd.read_parquet("out.parquet")
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert found["confidence"].dtype == "float64" and found.loc[9, "predicted":"confidence"].isna().all()
    assert parquet.ParquetFile("out.parquet").num_row_groups > 3
    assert sorted(path.name for path in Path().iterdir()) == [
        "out.csv", "out.csv.job.json", "out.parquet", "out.parquet.job.json",
    ]  # fmt: skip
    write_predictions(model, [], "none.parquet", PredictOptions("parquet"))
    assert list(pd.read_parquet("none.parquet")) == ["path", "predicted", "confidence", "error"]


@pytest.mark.usefixtures("open_files_stay")
def test_files_are_closed_before_they_are_removed(model: Model, paths: list[str]) -> None:
    pytest.importorskip("pyarrow")
    write_predictions(model, paths[:5], "out.parquet", PredictOptions("parquet"))
    assert {path.name for path in Path().iterdir()} == {"out.parquet", "out.parquet.job.json"}

    def gone() -> Iterator[str]:
        raise OutputError("the images are gone")
        yield

    with pytest.raises(OutputError, match="the images are gone"), output.open_output(Path("none.csv")):
        next(gone())
    assert not Path("none.csv").exists()


def test_a_parquet_job_resumes_and_finishes_once(
    model: Model, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    options, again = PredictOptions("parquet", batch_size=4), {"resume": True}

    def stopped(rest: list[str]) -> Iterator[str]:
        yield from rest
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(model, stopped(paths[:22]), "out.parquet", options)
    with pytest.raises(OutputError, match=r"out\.parquet\.rows\.csv exists. Pass --resume"):
        write_predictions(model, paths, "out.parquet", options)
    with monkeypatch.context() as patch:
        patch.setattr(output, "iterate_row_groups", lambda *_: 1 / 0)  # in the middle of being turned into Parquet
        with pytest.raises(ZeroDivisionError):
            write_predictions(model, paths, "out.parquet", options, **again)
    assert not Path("out.parquet").exists() and not list(Path().glob(".*"))
    stats = write_predictions(model, paths, "out.parquet", options, **again)
    assert stats.already_done == 48 and list(pd.read_parquet("out.parquet")["path"]) == paths
    before = Path("out.parquet").read_bytes()
    stats = write_predictions(model, iter(paths), "out.parquet", options, **again)
    assert (stats.already_done, stats.images) == (48, 0)
    for images, words in (
        (paths[1:], r"Row 1 of out\.parquet is for another image"),
        (paths[:-1], r"Row 48 of out\.parquet is for another image"),
        ([*paths, "more.jpg"], "is complete with 48 rows, and there are more images"),
    ):
        with pytest.raises(OutputError, match=words):
            write_predictions(model, images, "out.parquet", options, **again)
    assert Path("out.parquet").read_bytes() == before
    Path("out.parquet").write_bytes(before[:-9])
    with pytest.raises(OutputError, match="is not a complete Parquet file"):
        write_predictions(model, paths, "out.parquet", options, **again)
    write_predictions(model, paths, "out.parquet", options, overwrite=True)
    assert pd.read_parquet("out.parquet").equals(pd.read_parquet(io.BytesIO(before)))


def test_parquet_without_pyarrow_or_a_file_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "import_failure", lambda name: f"No module named {name!r}")
    with pytest.raises(OutputError, match=r"needs pyarrow: pip install .*\[parquet\]'"):
        PredictOptions("parquet")
    monkeypatch.undo()
    with pytest.raises(OutputError, match=r"Parquet needs a file. Pass --out FILE"):
        write_predictions(model, [], io.BytesIO(), PredictOptions("parquet"))


def test_two_processes_write_the_same_file_as_one(model: Model, paths: list[str], tmp_path: Path) -> None:
    whole = pack(tmp_path / "images.zip", [(f"{n}.jpg", Path(path).read_bytes()) for n, path in enumerate(paths[:9])])
    damage_member(whole, b"3.jpg")
    mixed = [*paths, "nowhere.jpg", *paths[:20], *list_images([str(whole)])[0]]
    options = PredictOptions(top_k=1, batch_size=8)
    write_predictions(model, mixed, "one.csv", options)
    shutil.copy("one.csv.job.json", "two.csv.job.json")
    Path("two.csv").write_bytes(Path("one.csv").read_bytes()[:999])
    stats = write_predictions(model, iter(mixed), "two.csv", options, processes=2, resume=True)
    assert Path("two.csv").read_bytes() == Path("one.csv").read_bytes()
    assert (stats.already_done + stats.images, stats.unreadable) == (len(mixed), 2) and 0 < stats.already_done < 24
    assert not multiprocessing.active_children()


def test_a_killed_prediction_process_is_reported(model: Model, tiny: Path, paths: list[str], tmp_path: Path) -> None:
    def deadly() -> Iterator[str]:
        yield from paths[:8]
        for child in multiprocessing.active_children():
            child.kill()
        yield from paths * 9

    with pytest.raises(OutputError, match="A prediction process ended unexpectedly with exit code -9"):
        write_predictions(model, deadly(), "out.csv", PredictOptions(batch_size=4), processes=2)
    assert not multiprocessing.active_children()
    with pytest.raises(OutputError, match="changed while predicting"):
        list(predict_in_workers([tiny], "another", paths, 1, batch_size=4))


def test_the_requested_number_format_is_used(model: Model, paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {
        name: next(model.predict_batches(paths, precision=name)).probabilities for name in ("", "float32", "bfloat16")
    }
    assert np.array_equal(seen[""], seen["float32"])
    assert 1e-5 < np.abs(seen["bfloat16"] - seen["float32"]).max() < 0.05
    monkeypatch.setattr(model_module, "bfloat16_instructions", lambda: ["AMX"])
    auto = PredictOptions(precision="auto", batch_size=4)
    write_predictions(model, paths[:6], "out.csv", auto)
    write_predictions(model, paths[:6], "out.csv", replace(auto, precision="bfloat16"), resume=True)
    write_predictions(model, paths, "out.csv", auto, resume=True)
    write_predictions(model, paths, "all.csv", PredictOptions(precision="bfloat16", batch_size=4))
    assert Path("out.csv").read_bytes() == Path("all.csv").read_bytes()
    with pytest.raises(OutputError, match="started with a different precision"):
        write_predictions(model, paths, "out.csv", PredictOptions(batch_size=4), resume=True)
    monkeypatch.setattr(model_module, "bfloat16_instructions", list)
    assert model.resolve_precision("auto")[0] == "float32"
    with pytest.raises(RecipeError, match="bfloat16 needs a CPU with AMX or AVX-512 BF16"):
        write_predictions(model, paths, "new.csv", PredictOptions(precision="bfloat16"))
    assert not Path("new.csv").exists()


# ---- archives -------------------------------------------------------------------------------------------------------


def pack(archive: Path, members: list[tuple[str, bytes]]) -> Path:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, content in members:
                opened.writestr(name, content)
        return archive
    mode: Any = f"w:{archive.suffix[1:].replace('tgz', 'gz').replace('tar', '')}"
    with tarfile.open(archive, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive


def damage_member(archive: Path, name: bytes) -> None:
    """Overwrite some bytes behind a member's name in a zip."""
    content = bytearray(archive.read_bytes())
    start = content.index(name) + 200
    content[start : start + 50] = bytes(50)
    archive.write_bytes(content)


@pytest.mark.parametrize("ending", ["zip", "tar", "tgz", "tar.xz"])
def test_images_in_archives_are_predicted_without_unpacking(
    model: Model, images: Path, paths: list[str], tmp_path: Path, ending: str
) -> None:
    inner = [path.relative_to(images).as_posix() for path in map(Path, paths)]
    others = [("labels.csv", b"x"), (".hidden/a.jpg", b"x"), ("__MACOSX/._a.jpg", b"x"), ("bad.jpg", b"no image")]
    whole = [(f"./{name}", Path(path).read_bytes()) for name, path in zip(inner, paths, strict=True)]
    archive = pack(tmp_path / f"some images.{ending}", [*others, *whole])
    found, total = list_images([str(archive)])
    assert total == 49
    options = PredictOptions(batch_size=8, top_k=1)
    write_predictions(model, found, "out.csv", options)
    write_predictions(model, ["bad.jpg", *paths], "files.csv", options)
    rows, expected = read_rows("out.csv"), read_rows("files.csv")
    assert [row["path"] for row in rows] == [f"{archive}/{name}" for name in ("bad.jpg", *inner)]
    assert rows[0]["error"] == "not an image"
    assert [{**row, "path": ""} for row in rows[1:]] == [{**row, "path": ""} for row in expected[1:]]
    once = Path("out.csv").read_bytes()
    Path("out.csv").write_bytes(once[: len(once) // 2])
    stats = write_predictions(model, list_images([str(archive)])[0], "out.csv", options, resume=True)
    assert Path("out.csv").read_bytes() == once and 0 < stats.already_done < 49
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name]
    several, total = list_images([str(tmp_path / "*"), paths[0]])
    assert total == len(list(several)) == 50
    gone, _ = list_images([str(archive)])
    archive.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        write_predictions(model, gone, "gone.csv", options)


def test_a_damaged_image_in_a_zip_gets_a_row_with_the_reason(model: Model, paths: list[str], tmp_path: Path) -> None:
    archive = pack(tmp_path / "p.zip", [(f"{number}.jpg", Path(paths[number]).read_bytes()) for number in range(3)])
    damage_member(archive, b"1.jpg")
    write_predictions(model, list_images([str(archive)])[0], "out.csv")
    assert [bool(row["error"]) for row in read_rows("out.csv")] == [False, True, False]


LINK = tarfile.TarInfo("a.jpg")
LINK.type, LINK.linkname = tarfile.SYMTYPE, "/etc/passwd"


@pytest.mark.parametrize(
    ("ending", "members", "words"),
    [
        ("zip", [("../out.jpg", b"x")], "points outside the folder"),
        ("tgz", [("a/../../out.jpg", b"x")], "points outside the folder"),
        ("tar", [("/etc/out.jpg", b"x")], "has an absolute name"),
        ("zip", [("a.jpg", b"x"), ("a.jpg", b"y")], "appears twice"),
        ("tar.xz", [("a.jpg", b"x"), ("a.jpg", b"y")], "appears twice"),
        ("zip", [("a.jpg", bytes(200_000_000))], "exceeds the limit of 100,000,000 bytes"),
        ("tgz", [("a.txt", bytes(200_000_000)), ("b.jpg", b"x")], "exceeds the limit of 100,000,000 bytes"),
        ("tar", [(LINK, b"")], "is a link or a device"),
        ("cut.zip", [("a.jpg", b"x" * 999)], "is damaged, truncated"),
        ("cut.tar.xz", [("a.jpg", random.Random(0).randbytes(999))], "is damaged, truncated"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_refused_archive_gets_a_one_line_error_and_no_rows(
    tmp_path: Path, ending: str, members: Any, words: str
) -> None:
    archive = tmp_path / f"bad.{ending}"
    if members[0][0] is LINK:
        with tarfile.open(archive, "w") as tar:
            tar.addfile(LINK)
    else:
        pack(archive, members)
    if "cut" in ending:
        archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(DataError, match=words) as caught:
        list_images([str(archive)])
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == [archive.name]


# ---- naming images and the command ----------------------------------------------------------------------------------


def test_images_are_named_by_paths_patterns_tables_and_archives(images: Path, tmp_path: Path) -> None:
    def paths(*words: str, **options: object) -> list[str]:
        found, total = list_images(words, **options)  # type: ignore[arg-type]
        found = list(found)
        assert total in (0, len(found)) and (total or "-" in words)
        return found

    ants = [str(images / "ants" / f"{number:02}.jpg") for number in range(24)]
    assert paths(str(images / "ants")) == ants and paths(str(images))[:24] == ants
    assert paths(ants[1], ants[0]) == [ants[1], ants[0]]
    assert paths(str(images / "ants" / "0?.jpg")) == ants[:10] and len(paths(str(images / "**" / "01.jpg"))) == 2
    (tmp_path / "list.csv").write_text("id,file,extra\n1,a.jpg,x\n2,deep/b.jpg,y\n")
    listed = [str(tmp_path / "a.jpg"), str(tmp_path / "deep" / "b.jpg")]
    assert paths(str(tmp_path / "list.csv")) == listed
    assert paths(str(tmp_path / "list.csv"), column="extra") == [str(tmp_path / name) for name in "xy"]
    assert paths("-", ants[0], lines=[b"a b.jpg\r\n", b"\n", b"\xff.jpg"]) == ["a b.jpg", "\udcff.jpg", ants[0]]
    (tmp_path / "none").mkdir()
    (tmp_path / "two.csv").write_text("x,y\n1,2\n")
    (tmp_path / "images.zip").write_bytes(b"")
    pack(tmp_path / "list.zip", [("list.csv", b"path")])
    for word, words in (
        ("nowhere.jpg", "There is no image, folder or table"),
        (str(tmp_path / "non?"), "it matches no file as a pattern"),
        (str(tmp_path / "none"), "contains no images"),
        (str(tmp_path / "two.csv"), "Pass --image-col"),
        (str(tmp_path / "images.zip"), "is damaged, truncated, or not a tar or zip archive"),
        (str(tmp_path / "list.zip"), "contains no images. Pass an archive"),
        ("nul\0", "There is no image"),
        ("long" * 100, "cannot be accessed"),
    ):
        with pytest.raises(DataError, match=words):
            paths(word)


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_images_none_of_which_can_be_read_end_in_an_error(
    tiny: Path, paths: list[str], tmp_path: Path, command: str
) -> None:
    (tmp_path / "film.mp4").write_text("no film")
    out = tmp_path / ("out.csv" if command == "predict" else "out.npz")
    printed = call(command, tiny, tmp_path / "film.mp4", "--out", out)
    assert printed.returncode == 2 and out.exists()
    assert printed.stderr.splitlines()[-1].startswith(
        "baseline: The image could not be read; the output gives the reason."
    )
    if command == "predict":
        assert [row["error"] for row in csv.DictReader(out.open())] == ["not an image"]
    mixed = tmp_path / f"mixed{out.suffix}"
    some = (command, tiny, paths[0], tmp_path / "film.mp4", "--batch-size", "1", "--out", mixed)
    printed = call(*some)
    assert printed.returncode == 0, printed.stderr
    if command == "predict":
        mixed.write_bytes(b"".join(mixed.read_bytes().splitlines(keepends=True)[:2]))  # killed after the first image
        printed = call(*some, "--resume")
        assert printed.returncode == 0 and "1 already done" in printed.stderr, printed.stderr


def test_the_predict_command(tiny: Path, images: Path, paths: list[str]) -> None:
    printed = call("predict", str(tiny), str(images / "ants"))
    assert printed.returncode == 0, printed.stderr
    rows = list(csv.DictReader(io.StringIO(printed.stdout)))
    assert [row["path"] for row in rows] == paths[:24]
    assert "predicted: 24 images in" in printed.stderr and "images/s)" in printed.stderr
    Path("paths").write_bytes(f"{paths[0]}\nnowhere.jpg\n".encode() + b"\xff\n")
    with Path("paths").open() as fed:
        options = ["--format", "jsonl", "--top-k", "1", "-q"]
        printed, errors = Command("predict", tiny, "-", *options, stdin=fed).communicate()
    lines = [json.loads(line) for line in printed.splitlines()]
    assert errors == "" and [line["path"] for line in lines] == [paths[0], "nowhere.jpg", "\ufffd"]
    archive = pack(Path("p.zip"), [("a.jpg", Path(paths[0]).read_bytes())])
    options = ["--processes", "2", "--precision", "float32"]
    ended = call("predict", tiny, archive, "-o", "two.parquet", *options, code=COMMAND_WITH_FORKS)
    assert ended.returncode == 0 and ended.stderr.startswith("predicted: 1 image in"), ended.stderr
    assert pd.read_parquet("two.parquet")["path"].tolist() == ["p.zip/a.jpg"]
    pack(archive, [("../a.jpg", b"")])
    ended = call("predict", str(tiny), str(archive), "-o", "three.csv")
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and not Path("three.csv").exists()
    ended = call("predict", str(tiny), paths[0], "--out", "deep/out.csv", "--no-tta")
    assert ended.returncode == 0 and ended.stdout == "" and len(read_rows("deep/out.csv")) == 1
    assert sorted(path.name for path in Path("deep").iterdir()) == ["out.csv", "out.csv.job.json"]
    checked = call("check", str(tiny))
    assert checked.returncode == 0 and "golden inputs: largest difference in a probability" in checked.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["TINY"], "Missing argument 'IMAGES'"),
        (["TINY", "nowhere.jpg"], "There is no image, folder or table nowhere.jpg"),
        (["nowhere", "IMAGES"], "cannot be read: No such file"),
        (["TINY", "IMAGES", "--out", "out.txt"], "out.txt has an unknown extension; needed: csv, jsonl, parquet"),
        (["TINY", "IMAGES", "--format", "xml"], "xml cannot be written to standard output; needed: csv, jsonl"),
        (["TINY", "IMAGES", "--precision", "float16"], "precision is 'float16'"),
        (["TINY", "IMAGES", "--processes", "0"], "Invalid value for '--processes'"),
        (["TINY", "list.csv.zip", "--out", "o.csv"], "There is no image, folder or table list.csv.zip"),
        (["TINY", "IMAGES", "--resume"], "--overwrite and --resume require --out FILE"),
        (["TINY", "IMAGES", "--resume", "--overwrite", "--out", "o.csv"], "cannot be combined"),
        (["TINY", "list.csv", "--out", "list.csv", "--overwrite"], "is one of the images to predict"),
        (["TINY", "IMAGES", "--out", "list.csv"], "list.csv exists. Pass --resume"),
        (["TINY", "IMAGES", "--out", "folder.csv", "--overwrite"], "is not a file that can be written"),
        (["TINY", "IMAGES", "--out", "/proc/none/out.csv"], "cannot be written"),
        (["TINY", "IMAGES", "--min-confidence", "2"], "Invalid value for '--min-confidence'"),
    ],
)
def test_bad_input_gets_a_one_line_error_and_exit_code_2(
    tiny: Path, images: Path, words: list[str], message: str
) -> None:
    Path("list.csv").write_text("path\na.jpg\n")
    Path("folder.csv").mkdir()
    known = {"TINY": str(tiny), "IMAGES": str(images)}
    ended = call("predict", *[known.get(word, word) for word in words])
    assert ended.returncode == 2 and message in ended.stderr, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("baseline: ") and "Traceback" not in ended.stderr
    assert (
        sorted(path.name for path in Path().iterdir()) == ["folder.csv", "list.csv"]
        and Path("list.csv").read_text() == "path\na.jpg\n"
    )
