"""What the commands print cannot control a terminal, and standard output may be full or closed."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from commands import call
from rich.table import Table

import baseline
from baseline.cli.output import StandardOutput, binary_output, print_json, print_table, print_text
from baseline.deploy.server.access_log import LogFormat, format_record, make_record
from baseline.terminal import escape_controls

HOSTILE = "a\x1b[2J\x1b]0;t\x07\x7f\x9b31m\u202e\u2066\u200f\u2028b\r"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def hostile(done: baseline.Baseline, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images and one of runs, in which every name has characters that control a terminal."""
    folder = tmp_path_factory.mktemp("hostile")
    for label in ("ants", "bees"):
        copy = shutil.copytree(images / label, folder / "images" / f"{label}{HOSTILE}")
        shutil.copy(copy / "00.jpg", copy / f"{HOSTILE}.jpg")
        (copy / f"{HOSTILE}bad.jpg").write_bytes(b"\xff\xd8\xffdamaged")
    run = shutil.copytree(done.folder, folder / "runs" / f"run{HOSTILE}")
    edited = ["manifest.json", "predictions.csv", "split.csv", "model/model.json"]
    for file in (run / name for name in edited):
        text = file.read_text().replace("ants", HOSTILE if file.suffix == ".csv" else json.dumps(HOSTILE)[1:-1])
        file.write_text(text.replace("\r", "") if file.suffix == ".csv" else text.replace("\\r", ""))
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["run", "images", "--dry-run"],
        ["audit", "images"],
        ["audit", "images", "--json"],
        ["runs", "runs"],
        ["compare", "RUN", "RUN"],
        ["evaluate", "RUN", "images", "--unknown", "drop"],
        ["check", "RUN"],
        ["push", "RUN", "me/model", "--dry-run"],
        ["report", "RUN", "--quiet"],
        ["predict", "RUN", HOSTILE],
        ["recipes", HOSTILE],
        [HOSTILE],
        ["run", f"--{HOSTILE}"],
    ],
    ids=lambda words: escape_controls(words[0] if len(words) < 3 else f"{words[0]} {words[2]}"),
)
def test_names_cannot_control_a_terminal(hostile: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hostile)
    run = next((hostile / "runs").iterdir())
    ended = call(*[str(run) if word == "RUN" else word for word in words])
    assert "Traceback" not in ended.stderr and ended.stdout + ended.stderr
    assert RAW.findall(ended.stdout + ended.stderr) == []


def test_every_control_character_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    every = "".join(map(chr, (*range(9), *range(11, 32), *range(127, 160), 0x200E, 0x200F, *range(0x2028, 0x202F),
                              *range(0x2066, 0x206A))))  # fmt: skip
    table = Table("heading")
    table.add_row(f"ants{every}")
    print_table(table)
    print_text(f"ants{every}\n\tbees")
    baseline.ConsoleProgress().log(every)
    print_json({"name": f"ants{every}"})
    printed, logged = capsys.readouterr()
    assert RAW.findall(printed + logged) == [] and "\n\tbees" in printed
    assert json.loads(printed[printed.index("{") :])["name"] == f"ants{every}"


def test_predictions_on_a_terminal_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    pty = pytest.importorskip("pty")
    here, there = pty.openpty()
    with os.fdopen(there, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        binary_output().write("é\x1b[2J\u202e\n".encode())
        binary_output().flush()
        assert os.read(here, 999).decode() == "é\\u001b[2J\\u202e\r\n"
    os.close(here)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_client_cannot_control_the_terminal_of_a_server(log_format: LogFormat) -> None:
    record = make_record(0.1, (HOSTILE, 0), HOSTILE, f"/{HOSTILE}", 200, 1) | {"images": 0}
    line = format_record(record, log_format)
    assert not RAW.search(line) and "\n" not in line


OUTPUT = "import os, sys; {}; from baseline.cli.app import main; main()"
FULL = "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize(
    "line",
    [
        "sources",
        "recipes",
        "runs .",
        "--help",
        "--version",
        "run --help",
        "copy default",
        "doctor",
        "run images --dry-run",
    ],
)
def test_a_standard_output_that_is_full_or_closed_is_an_error_of_one_line(
    line: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").symlink_to(images)
    for state, message in ((FULL, "Standard output cannot be written: No space left on device. "),
                           ("sys.stdout = None", "Standard output is closed. ")):  # fmt: skip
        ended = call(*line.split(), code=OUTPUT.format(state))
        assert ended.stderr.splitlines()[-1].startswith(f"baseline: {message}"), ended.stderr
        assert ended.returncode == 2 and "Traceback" not in ended.stderr
        Path("default.toml").unlink(missing_ok=True)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_names_can_be_printed_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that Windows redirects output to may have one of 256 characters."""
    name, content = "żółw 蟻 😀 é", io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(content, encoding))
    monkeypatch.setattr("sys.stdout", StandardOutput())
    print_json({"name": name})
    sys.stdout.flush()
    assert json.loads(content.getvalue().decode(encoding)) == {"name": name}
    content.truncate(content.seek(0))
    print_text(name)
    print_table(name)
    sys.stdout.flush()
    printed = content.getvalue().decode(encoding).splitlines()
    assert printed == 2 * [name.encode(encoding, "backslashreplace").decode(encoding)]
