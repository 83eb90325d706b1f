"""Signals at any moment: the exit code says which, nothing half-written stays, and the same command works again."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call

import baseline
from baseline import __main__ as entry
from baseline.cli import app
from baseline.data.sources.cached_images import fill_once
from baseline.errors import OutputError, system_errors
from baseline.experiments.evaluate_models import evaluate_models
from baseline.files import LOCK_FILE, atomic_folder, sha256_of, write_atomic
from baseline.inference.output import PredictOptions
from baseline.inference.workers import blocked_interrupts
from baseline.parallel import distributed
from baseline.runs.folder import create_run_folder
from baseline.system import lock_file
from baseline.training.checkpoint import Checkpoints
from baseline.vision.cache import ArrayCache

INTERRUPTED = """
import os, signal, sys
number = getattr(signal, sys.argv.pop())
def fsync(_):
    try:
        os.kill(os.getpid(), number)
    finally:
        os.kill(os.getpid(), number)
os.fsync = fsync
from baseline.cli.app import run_process
run_process()
"""
"""The command line, to which a signal is sent twice while it writes its first file."""

WORDS = {
    "audit": ["audit", "{images}", "--out", "out"],
    "copy": ["copy", "default", "mine.toml"],
    "embed": ["embed", "{tiny}", "{images}", "--out", "out.npz"],
    "filter": ["filter", "{images}", "--model", "{tiny}", "--keep", "ants", "--above", "0", "--out", "out.csv"],
    "export": ["export", "{tiny}", "--to", "timm", "--out", "out"],
}


@pytest.mark.parametrize(
    ("command", "name"),
    [("audit", "SIGTERM"), ("copy", "SIGHUP"), ("embed", "SIGINT"), ("filter", "SIGTERM"), ("export", "SIGHUP")],
)
def test_a_signal_that_comes_twice_ends_any_command_and_leaves_nothing(
    command: str, name: str, images: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word.format(images=images, tiny=tiny) for word in WORDS[command]]
    ended = call(*words, name, code=INTERRUPTED)
    assert ended.returncode == 128 + getattr(signal, name), ended.stderr
    assert "Traceback" not in ended.stderr and not [path for path in tmp_path.rglob("*") if path.is_file()]


CONVERTED = """
import os, signal
import baseline.cli.data
def convert(*_):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        raise RuntimeError("cancelled") from None
baseline.cli.data.recipes_folder = convert
from baseline.cli.app import run_process
run_process()
"""


def test_an_interrupt_that_a_library_turns_into_an_error_is_an_interrupt() -> None:
    ended = call("copy", "default", "mine.toml", code=CONVERTED)
    assert (ended.returncode, ended.stderr.strip()) == (143, "")


EXECUTED = """
import os, signal, time
from baseline.cli import app
app.app_for = lambda _: lambda **_: exec("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)")
app.run_process()
"""


def test_the_exit_code_names_a_signal_that_comes_while_text_is_executed(tmp_path: Path) -> None:
    (tmp_path / "executed.py").write_text(EXECUTED)  # a module, as Python ends a script with another code
    ended = subprocess.run(
        [sys.executable, "-m", "executed"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (143, "")  # not SIGHUP, which nohup ignores


def test_an_interrupt_while_the_command_line_is_imported_has_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    module = types.ModuleType("baseline.cli.app")
    module.__getattr__ = interrupt  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "baseline.cli.app", module)
    with pytest.raises(SystemExit) as ended:
        entry.run()
    assert ended.value.code == 130


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "history.csv", "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "last", "others"),
    [
        ("evaluate", "metrics.json", ["evaluation.html", "predictions.csv"]),
        ("clean", "issues.csv", ["clean.html", "fixes.csv"]),
        ("filter", "kept.csv", ["kept-left-out.csv"]),
        pytest.param("export", "model.pkl", ["labels.txt"], marks=pytest.mark.slow),
    ],
)
def test_files_that_belong_together_are_all_written_or_none(
    command: str, last: str, others: list[str], tiny: Path, images: Path, body: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out, progress, replace = tmp_path / "out", baseline.Progress(), Path.replace
    options = {"out": out, "progress": progress}
    words = ["filter", images, "--model", tiny, "--keep", "ants", "--above", 0, "--quiet", "--out", out / last]
    commands: dict[str, Any] = {
        "evaluate": lambda: evaluate_models([tiny], images, **options),
        "clean": lambda: baseline.clean(images, accept=0.1, image_size=48, **body, **options),
        "filter": lambda: app.app(list(map(str, words)), standalone_mode=False) == 130 and interrupt(),
        "export": lambda: baseline.export(tiny, "learner", out / last),
    }

    def interrupt_the_last(part: Path, target: Path) -> Path:
        return interrupt() if Path(target).name == last else replace(part, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", interrupt_the_last)
        commands[command]()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    commands[command]()
    assert sorted(path.name for path in out.iterdir()) == sorted([last, *others])


def test_an_evaluation_that_was_killed_while_it_wrote_its_results_is_repeated(
    tiny: Path, images: Path, tmp_path: Path
) -> None:
    def evaluate_again() -> None:
        (tmp_path / LOCK_FILE).touch()  # which the process that was killed has left
        evaluate_models([tiny], images, out=tmp_path, progress=baseline.Progress())

    for name in ("predictions.csv", "predictions-2.csv", ".evaluation.html.part", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(OutputError, match="exists already"):
        evaluate_again()
    (tmp_path / "notes.txt").unlink()
    evaluate_again()
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.csv", "evaluation.html", "metrics.json"}
    with pytest.raises(OutputError, match="exists already"):
        evaluate_again()


def test_a_file_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match=r"history\.csv cannot be written: "):
        write_atomic(tmp_path / "out" / "history.csv", "x")


def test_what_a_killed_process_left_beside_a_folder_is_removed(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    for kind in ("part", "old"):
        for number in (ended.pid, os.getppid()):
            (tmp_path / f".model.{kind}-{number}").mkdir()
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "model"):
        raise ZeroDivisionError
    assert (tmp_path / f".model.old-{ended.pid}").exists()  # what the killed process was about to replace
    with atomic_folder(tmp_path / "model"):
        pass
    left = [f".model.old-{os.getppid()}", f".model.part-{os.getppid()}", "model"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_an_interrupted_array_is_removed_from_the_cache(tmp_path: Path) -> None:
    cache, keys = ArrayCache(1, folder=tmp_path), [{"what": "images", "cut": cut} for cut in range(2)]
    with pytest.raises(KeyboardInterrupt), cache.lock(keys[0]):
        arrays = [cache.allocate(key, (3,), np.uint8) for key in keys]
        assert arrays[0] is not None
        cache.commit(keys[0], arrays[0])
        interrupt()
    assert cache.get(keys[0]) is not None
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


def test_what_a_killed_run_left_in_the_cache_is_removed(tmp_path: Path) -> None:
    for name in (".images.tmp-abc", ".images.part-1", ".other.tmp-abc"):
        (tmp_path / name).mkdir()
    (tmp_path / ".images.size.part").touch()
    assert fill_once(tmp_path / "images", lambda folder: folder.mkdir(), print)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".images.")]
    assert (tmp_path / ".other.tmp-abc").exists()


def test_predictions_killed_before_the_first_row_are_resumed(tiny: Path, images: Path, tmp_path: Path) -> None:
    model, paths = baseline.load(tiny), sorted(images.rglob("*.jpg"))[:2]
    for name in ("out.csv.rows.csv", "out.csv", "out.parquet.rows.csv"):
        (tmp_path / name).touch()
    for out in (tmp_path / "out.csv", tmp_path / "out.parquet"):
        options = PredictOptions(out.suffix[1:])
        baseline.write_predictions(model, paths, out, options, resume=True)
        assert out.stat().st_size
    with pytest.raises(OutputError, match=r"out\.csv exists"):
        baseline.write_predictions(model, paths, tmp_path / "out.csv", PredictOptions())


def test_the_state_of_a_run_that_ended_while_it_was_removed_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt), create_run_folder(folder, "any"):
        (folder / "manifest.json").write_text("{}")
        checkpoints = Checkpoints(folder)
        checkpoints.folder.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr("shutil.rmtree", interrupt)
            checkpoints.remove()
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]


def test_a_lock_is_waited_for_or_refused(tmp_path: Path) -> None:
    holder = [sys.executable, "-S", "-c", "import fcntl, sys; fcntl.flock(sys.stdout, fcntl.LOCK_EX); input()"]
    with (tmp_path / "lock").open("w") as file:
        process = subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=file)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            with lock_file(tmp_path / "lock"):
                time.sleep(0.02)
        except BlockingIOError:
            break
    with lock_file(tmp_path / "lock", wait=lambda: process.communicate(b"\n")):
        assert process.returncode == 0
    with lock_file(tmp_path / "lock"):
        pass


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks here")
def test_processes_that_predict_leave_signals_of_the_terminal_to_their_parent() -> None:
    code = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with blocked_interrupts():
        printed = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    assert "SIGINT" in printed and "SIGHUP" in printed
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.skipif(os.name != "posix", reason="no signals here")
def test_an_interrupt_of_one_process_ends_all_that_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "python"
    saves = f"trap 'touch {tmp_path}/saved-$RANK; exit 143' TERM; touch {tmp_path}/ready-$RANK"
    stub.write_text(f"#!/bin/sh\n{saves}\nwhile :; do sleep 0.1; done\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    ready = [tmp_path / f"ready-{rank}" for rank in range(2)]
    monkeypatch.setattr(
        distributed, "failed_processes", lambda _: interrupt() if all(path.exists() for path in ready) else []
    )
    assert distributed.launch(2, ["run"]) == (130, "")
    assert all((tmp_path / f"saved-{rank}").exists() for rank in range(2))


# ---- standard error, and places that cannot be used ------------------------------------------------------------------

LOST = """
import io, os, sys
kind = sys.argv.pop()
if kind == "closed":
    sys.stderr = None
else:
    read, write = os.pipe()
    os.close(read)
    os.dup2(write if kind == "gone" else os.open("/dev/full", os.O_WRONLY), 2)
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "w")), line_buffering=True)
from baseline.cli.app import run_process
run_process()
"""
"""The command line with a standard error that cannot be written."""


@pytest.mark.parametrize("kind", ["closed", "gone", "full"])
def test_a_command_does_not_end_because_its_messages_are_lost(
    kind: str, tiny: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    ended = call("predict", tiny, images / "ants", "--out", out, "--json", kind, code=LOST)
    assert ended.returncode == 0 and ended.stdout.startswith("{") and len(out.read_text().splitlines()) == 25
    ended = call("predict", tiny, images / "ants", "--out", out, kind, code=LOST)
    assert (ended.returncode, ended.stdout) == (2, "")


REMOVED = """
import os
os.mkdir("here")
os.chdir("here")
os.rmdir("../here")
from baseline.cli.app import main
main()
"""


def test_a_working_folder_that_was_removed_is_said(tiny: Path, images: Path) -> None:
    ended = call("predict", tiny, images / "ants", "--out", "out.csv", code=REMOVED)
    assert (ended.returncode, ended.stderr.splitlines()[-1:]) == (
        2, ["baseline: The working folder was removed. Change to another one."]
    )  # fmt: skip


@pytest.mark.parametrize("out", ["file", "file/below", "loop/below"])
def test_an_audit_into_a_place_that_is_no_folder_is_refused(out: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    ended = call("audit", images, "--out", tmp_path / out)
    assert ended.returncode == 2 and ended.stderr.splitlines()[-1].startswith(f"baseline: {tmp_path / out}/findings")


UNNAMED = """
import baseline.cli.data
baseline.cli.data.recipes_folder = lambda: open("nowhere")
from baseline.cli.app import main
main()
"""


def test_an_error_of_the_system_is_one_line_wherever_it_comes_from() -> None:
    ended = call("copy", "default", code=UNNAMED)
    reason = "No such file or directory. Check the path, its permissions and the disk."
    assert ended.returncode == 2 and ended.stderr == f"baseline: nowhere cannot be read or written: {reason}\n"


def test_errors_of_connections_are_not_said_to_be_of_files() -> None:
    message = r"^The operating system reports an error: Connection refused\. Check"
    with pytest.raises(OutputError, match=message), system_errors(of_any_code=True):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "my.txt"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
    ],
)
def test_errors_of_the_callers_own_code_pass_unchanged(error: Exception, tiny: Path, images: Path) -> None:
    class Own(baseline.Progress):
        def log(self, line: str) -> None:
            raise error

    def own_images() -> Iterator[str]:
        yield str(images / "ants" / "00.jpg")
        raise error

    model = baseline.load(tiny)
    (images_beside := Path("images")).mkdir()
    shutil.copy(images / "ants" / "00.jpg", images_beside)
    (images_beside / "notes.txt").touch()
    uses: list[Callable[[], object]] = [
        lambda: model.predict(own_images()), lambda: model.predict(images_beside, progress=Own()),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(type(error)) as caught:
            use()
        assert caught.value is error


def test_errors_of_the_system_in_this_package_are_one_line() -> None:
    message = r"^nowhere cannot be read or written: No such file or directory\."
    with pytest.raises(OutputError, match=message), system_errors():
        sha256_of(Path("nowhere"))
