"""What a user of the commands meets first: names, paths, tables, headers and caches of someone else."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageFont

import baseline
from baseline.cli import app
from baseline.data.image import open_image
from baseline.data.limits import TooLarge
from baseline.data.sources.folders import images_below
from baseline.data.sources.image_list import list_images
from baseline.data.sources.place import Place
from baseline.deploy.export import partial_path
from baseline.deploy.kaggle.submission import write_checked
from baseline.errors import BaselineError, DataError, OutputError, RecipeError, TrainingError
from baseline.files import REMOVED_DIR, UNFINISHED_DIR, cache_home, make_cache_folder, write_atomic
from baseline.inference.output import PredictOptions, convert_to_parquet
from baseline.progress import ConsoleProgress
from baseline.reading import load_weights, read_run_table
from baseline.report.figures import image_sheet
from baseline.training.checkpoint import Checkpoints

pq = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")


def error_of(command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command in this process, and return the one line of its error."""
    monkeypatch.setattr(sys, "argv", ["baseline", *command])
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    with pytest.raises(SystemExit) as end:
        app.main()
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and lines[-1].startswith("baseline: ")
    return lines[-1]


@pytest.mark.parametrize(
    "command", [["run", "{}", "--dry-run"], ["runs", "{}"], ["compare", "{}", "{}"], ["report", "{}"], ["check", "{}"]]
)
def test_a_path_too_long_for_the_system_is_an_error_of_one_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_of([part.format("x" * 5000) for part in command], monkeypatch, capsys)
    assert len(line) < 1200 and "more characters" in line


def test_a_folder_whose_name_is_not_utf8_is_an_error_of_one_line(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    try:
        shutil.copytree(images, folder)
    except OSError:
        pytest.skip("this disk has names in UTF-8 only")
    line = error_of(["run", folder, "--dry-run"], monkeypatch, capsys)
    assert "is not valid text" in line and r"\udcff" in line


@pytest.mark.parametrize("name", [5000 * "x", "\udcff\udcfe", "a\ud800", "a\0b"], ids=["long", "bytes", "half", "null"])
def test_a_name_that_the_system_refuses_is_an_error_of_one_line_in_python(
    name: str, tiny: Path, images: Path, tmp_path: Path
) -> None:
    model, place = baseline.load(tiny), tmp_path / name
    calls: list[Callable[[], object]] = [
        lambda: baseline.load(place), lambda: baseline.load_recipe(f"{place}.toml"), lambda: baseline.resume(place),
        lambda: baseline.image_table(place), lambda: baseline.compare_runs([place]), lambda: model.predict(place),
        lambda: model.evaluate(place), lambda: model.embed([place]), lambda: baseline.export(tiny, "learner", place),
        lambda: baseline.submit(tiny, place), lambda: baseline.make_baseline(place, out=tmp_path / "out"),
    ]  # fmt: skip
    for call in calls:
        try:
            call()
        except BaselineError as error:
            assert b"\n" not in str(error).encode() and len(str(error)) < 2000


def test_names_that_are_not_utf8_are_said_or_predicted_in_python(tiny: Path, images: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    try:
        shutil.copytree(images, folder)
    except OSError:
        pytest.skip("this disk has names in UTF-8 only")
    for use in (baseline.image_table, baseline.make_baseline, baseline.load_images):
        with pytest.raises(DataError, match=r"udcff.udcfe.* is not valid text: .* Rename"):
            use(folder)
    model, image = baseline.load(tiny), next(folder.rglob("*.jpg"))
    with pytest.raises(DataError, match=r"48 with a name that is not UTF-8 .*udcff"):
        model.predict(folder)
    assert model.predict([image])["path"].tolist() == [str(image).encode(errors="replace").decode().replace("?", "�")]


@pytest.mark.parametrize("size", [5000 * "9", "999999999", "²", "-5", "0", "wide"])
def test_an_impossible_size_of_the_terminal_is_ignored(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
        monkeypatch.setenv(name, size)
    assert 0 < ConsoleProgress().console.width < 10_000
    assert not {"COLUMNS", "LINES", "TERMINAL_WIDTH"} & set(os.environ)


def test_the_help_is_printed_on_a_terminal_of_an_impossible_size() -> None:
    odd = {"COLUMNS": 5000 * "9", "LINES": "²", "TERMINAL_WIDTH": "wide"}
    command = [sys.executable, "-m", "baseline", "--help"]
    ended = subprocess.run(command, env={**os.environ, **odd}, capture_output=True, text=True, check=True)
    assert "evaluate" in ended.stdout and not ended.stderr


@pytest.mark.parametrize("number", ["two", 5000 * "9", "²", ""])
def test_a_number_of_processes_that_is_no_number_is_an_error_of_one_line(
    number: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", number)
    with pytest.raises(RecipeError, match=r"WORLD_SIZE is .* a number of processes was needed"):
        baseline.make_baseline(images)


@pytest.mark.parametrize("command", [["run", "{}", "--dry-run", "--batch-size"], ["curve", "{}", "--sizes"]])
def test_a_number_of_5000_digits_is_an_error_of_one_line(
    command: list[str], images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_of([*(part.format(images) for part in command), "9" * 5000], monkeypatch, capsys)
    assert command[-1].strip("-").replace("-", "_") in line and len(line) < 1200


def test_processes_that_cannot_be_connected_are_an_error_of_one_line(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="that WORLD_SIZE names cannot be connected: "):
        baseline.make_baseline(images)


def test_a_very_long_name_does_not_fill_the_line_of_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    error = str(BaselineError(f"There is no class '{5000 * 'b'}'. Pass one of 'ants'."))
    assert len(error) < 600 and error.endswith("Pass one of 'ants'.") and "4,603 more characters" in error
    ConsoleProgress().log(f"classes: 3 {5000 * 'b'}, 4 ants")
    assert len(capsys.readouterr().err) < 600
    app.print_error(f"Known: {5000 * 'name '}. Pass another.")
    line = capsys.readouterr().err
    assert len(line) < 4200 and line.endswith("Pass another.\n")


@pytest.mark.parametrize("name", ["a\rb", "a\x85b", "a\u2029b", "a\x1cb", "\n" * 5000, "x" * 5000])
def test_a_caption_of_any_characters_is_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, lengths = ImageFont.FreeTypeFont.getlength, []
    monkeypatch.setattr(
        ImageFont.FreeTypeFont, "getlength", lambda font, text: lengths.append(len(text)) or measure(font, text)
    )
    sheet = Image.open(io.BytesIO(image_sheet([(None, f"ants\n{name}")])))
    assert sheet.height < 400 and np.asarray(sheet).min() < 128
    assert sum(lengths) < 20_000, "characters measured, which takes minutes if they are many"


def recurring_text(path: Path, rows: int, length: int, image: Any) -> Path:
    codes = pa.array([row % 2 for row in range(rows)], pa.int32())
    labels = pa.DictionaryArray.from_arrays(codes, pa.array(["b", length * "x"]))
    pq.write_table(pa.table({"image": image, "label": labels}), path, compression="zstd")
    assert path.stat().st_size < 1_000_000
    return path


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_parquet_file_of_one_long_text_that_recurs_is_refused(
    as_bytes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baseline.reading.free_memory_bytes", lambda: 10**9)
    monkeypatch.setattr("baseline.data.sources.read_table.free_memory_bytes", lambda: 10**9)
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    image = pa.array([{"bytes": content.getvalue()}] * 3000 if as_bytes else [f"{row % 4}.jpg" for row in range(3000)])
    path = recurring_text(tmp_path / "train.parquet", 3000, 300_000, image)
    with pytest.raises(DataError, match=r"GB of memory, but only 1\.0 GB"):
        baseline.image_table(path)


def test_a_parquet_file_of_differences_between_long_texts_is_measured(tmp_path: Path) -> None:
    from baseline.parallel.memory import parquet_text_bytes

    texts = [60_000 * "x" + str(row) for row in range(2000)]
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"label": texts}), path, use_dictionary=False, column_encoding={"label": "DELTA_BYTE_ARRAY"}
    )
    assert path.stat().st_size < 1_000_000 and parquet_text_bytes(path) > 100_000_000


def test_images_inside_a_parquet_file_are_no_paths(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [{"bytes": b"\xff\xd8"}] * 3, "label": ["a", "b", "a"]}), path)
    with pytest.raises(DataError, match="holds images, not paths"):
        list_images([str(path)])


@pytest.mark.parametrize("header", [50_000 * "a,", "path,label,path\n", ",".join(map(str, range(200_001)))])
def test_a_table_of_a_run_with_columns_that_no_run_writes_is_refused_at_once(header: str, tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text(header)
    with pytest.raises(DataError, match="is not a table of a run: its"):
        read_run_table(tmp_path / "split.csv")


def chunks_of_png(before: int = 0, after: int = 0) -> bytes:
    """Return a PNG image with empty chunks before and after its pixels."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    once, empty = content.getvalue(), bytes(4) + b"abCd" + zlib.crc32(b"abCd").to_bytes(4)
    return once[:33] + before * empty + once[33:-12] + after * empty + once[-12:]


@pytest.mark.parametrize(
    "content",
    [
        b"P6" + 2_000_000 * b" " + b"9 9 255\n" + bytes(243),
        b"P6\n#" + 2_000_000 * b"c" + b"\n9 9 255\n" + bytes(243),
        b"\xff\xd8" + 2_000_000 * b"\xff",
        b"\xff\xd8" + 400_000 * b"\xff\xfe\0\3a",
        b"\xff\xd8" + 800_000 * b"\xff\0",
        b"\xff\xd8\xff\xfe\0\3a" + 2_000_000 * b"b",
        chunks_of_png(before=100_000),
        chunks_of_png(after=100_000),
    ],
    ids=["spaces", "comment", "padding", "segments", "zeros", "junk", "chunks", "chunks after the pixels"],
)
def test_a_header_that_is_read_byte_by_byte_is_limited(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    for source in (content, tmp_path / "a.jpg"):
        with pytest.raises(
            TooLarge, match=r"header of more than 65,536 bytes|segments, or 65,536 bytes between|10,000 chunks"
        ):
            open_image(source)


@pytest.mark.parametrize(("kind", "ending"), [("PPM", "ppm"), ("JPEG", "jpg"), ("PNG", "png")])
def test_a_large_image_with_an_ordinary_header_is_opened(kind: str, ending: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3)).astype(np.uint8)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(noise).save(path, kind, **({"comment": 60_000 * "c", "quality": 99} if kind == "JPEG" else {}))
    assert path.stat().st_size > 1_000_000 and open_image(path).size == (900, 900)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such rights")
@pytest.mark.parametrize("is_link", [False, True])
def test_a_folder_in_the_cache_that_every_user_can_write_to_is_refused(
    is_link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, arrays = tmp_path / "home", tmp_path / "home" / "arrays"
    home.mkdir(mode=0o755)
    monkeypatch.setenv("BASELINE_HOME", str(home))
    before = os.umask(0)
    try:
        make_cache_folder(arrays / "new")
    finally:
        os.umask(before)
    assert arrays.stat().st_mode & 0o777 == 0o700 and cache_home() == home
    if is_link:
        arrays = arrays.rename(tmp_path / "elsewhere")
        (home / "arrays").symlink_to(arrays)
    arrays.chmod(0o777)
    with pytest.raises(OutputError, match=r"The cache .*arrays can be written by every user"):
        cache_home()


def test_a_line_of_standard_input_without_end_is_refused() -> None:
    endless = io.BytesIO(b"a.jpg\n" + 2_000_000 * b"x")
    images, _ = list_images(["-"], lines=endless)
    with pytest.raises(DataError, match="A line of standard input has more than 65,536 bytes"):
        list(images)
    assert endless.tell() < 100_000


def test_a_carriage_return_in_a_name_is_kept_in_parquet(
    drawn_images: Path, drawn_run: baseline.Baseline, tmp_path: Path
) -> None:
    paths = [tmp_path / "a\rb.jpg", tmp_path / "c.jpg"]
    paths[0].write_bytes(b"junk")
    shutil.copy(next(drawn_images.rglob("*.*g")), paths[1])
    out = tmp_path / "out.parquet"
    baseline.write_predictions(baseline.load(drawn_run.folder), map(str, paths), out, PredictOptions("parquet"))
    table = pd.read_parquet(out)
    assert list(table["path"]) == list(map(str, paths)) and list(table["predicted"].isna()) == [True, False]


@pytest.mark.parametrize(
    "value",
    [{1: torch.zeros(1)}, {"a": torch.zeros(2).to_sparse()}, {"a": {"b": torch.zeros(1, dtype=torch.complex64)}}],
)
def test_weights_that_no_network_has_are_refused(value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"not text|sparse, complex"):
        load_weights(tmp_path / "a.pth")


def test_a_file_in_place_of_checkpoints_does_not_end_a_run(tmp_path: Path) -> None:
    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints.folder = tmp_path / "unfinished"
    checkpoints.folder.write_text("mine")
    checkpoints.remove()
    assert checkpoints.folder.read_text() == "mine"


def test_checkpoints_are_removed_where_a_run_was_killed_while_it_removed_its_own(tmp_path: Path) -> None:
    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints.folder = tmp_path / UNFINISHED_DIR
    for name in (UNFINISHED_DIR, REMOVED_DIR):
        (tmp_path / name).mkdir()
        (tmp_path / name / "now.safetensors").touch()
    checkpoints.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    ["run|", "run||--dry-run", "predict||a.jpg", "predict|a|", "compare|a|b|--csv|", "compare|a|b|--html=",
     "run|a|--out=", "clean|a|--oof|", "embed|a|b|-o|", "predict|a|b|--ensemble|", "run|a|--fixes=", "run|a|--quiet|"],
)  # fmt: skip
def test_an_empty_path_is_not_the_working_folder(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "An argument is empty" in error_of(command.split("|"), monkeypatch, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [".", "/"])
def test_a_folder_as_an_output_is_an_error_of_one_line(place: str) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomic(Path(place), "text")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
@pytest.mark.parametrize("is_link", [False, True])
def test_a_device_or_a_pipe_is_not_replaced_by_a_file(is_link: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    target = tmp_path / ("link" if is_link else "pipe")
    with pytest.raises(OutputError, match="a device or a pipe, not a file"):
        write_atomic(target, "text")
    with pytest.raises(OSError, match="a device or a pipe, not a file"):
        write_checked(target, "text", lambda path: [])
    assert target.is_fifo() and target.is_symlink() is is_link and len(list(tmp_path.iterdir())) == 2


def test_a_link_with_the_name_of_a_temporary_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for name in (".a.parquet.part", ".a.part.onnx"):
        (tmp_path / name).symlink_to("mine")
    (tmp_path / "rows").write_bytes(b"path,confidence\na.jpg,0.5\n")
    convert_to_parquet(tmp_path / "rows", tmp_path / "a.parquet", b"path,confidence\n")
    with partial_path(tmp_path / "a.onnx") as part:
        part.write_text("network")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("place", ["runs/first", "first", "ants/first"])
@pytest.mark.parametrize(
    "files",
    ["manifest.json report.html", "ladder.json ladder.html", "curve.json curve.html", "findings.json pairs.csv"],
)
def test_pictures_of_results_among_the_images_are_no_images(
    place: str, files: str, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path, dirs_exist_ok=True)
    before = list(images_below(tmp_path))
    (tmp_path / place).mkdir(parents=True)
    for name in files.split():
        (tmp_path / place / name).touch()
    shutil.copy(images / "ants" / "00.jpg", tmp_path / place / "hits.png")
    assert list(images_below(tmp_path)) == before and len(before) == 48
    assert sorted(Place(tmp_path).images) == sorted(before)


def test_names_of_classes_are_plain_text_on_the_page_of_a_space() -> None:
    text = (Path(baseline.__file__).parent / "deploy" / "templates" / "app.py").read_text()
    names: dict[str, Any] = {}
    exec(text[text.index("def as_plain_text") : text.index("page = gradio")], names)
    shown = names["as_plain_text"]("<img src=x onerror=alert(1)> [a](http://b) *c* é")
    assert not set("<>[]()*=:/") & set(shown) and shown.endswith("é")


def test_a_host_of_any_length_is_an_error_of_one_line() -> None:
    from baseline.deploy.server.app import listen

    with pytest.raises(OutputError, match="Cannot listen on"), listen("x" * 5000, 0):
        pass


def test_a_jpeg_of_many_scans_is_large_for_the_server() -> None:
    from baseline.deploy.server.decoder import is_large

    content = io.BytesIO()
    Image.new("L", (2000, 2000)).save(content, "JPEG", progressive=True)
    once = content.getvalue()
    scan = once[once.rindex(b"\xff\xda") : -2]
    assert not is_large(open_image(once)) and is_large(open_image(once[:-2] + 90 * scan + b"\xff\xd9"))
    assert not is_large(open_image(once + 99 * b"\xff\xda\x00\x02"))  # what follows its end does not count


def test_the_scans_of_a_jpeg_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from baseline.data.formats import scans
    from baseline.deploy.server import decoder

    counted: list[int] = []

    def count(content: bytes, limit: int) -> int:
        counted.append(scans_of(content, limit))
        return counted[-1]

    scans_of = scans.scan_count
    for module in (scans, decoder):
        monkeypatch.setattr(module, "scan_count", count, raising=False)
    content = io.BytesIO()
    Image.new("L", (64, 64)).save(content, "JPEG", progressive=True)
    job = decoder.DecodeJob(("JPEG",), 10_000, seconds=60)
    for end, times in ((b"", 0), (200 * b"\xff\xda\x00\x02", 1)):
        assert decoder.answer(job, content.getvalue() + end)[0]["size"] == (64, 64)
        assert len(counted) == times
