"""Jobs run in this process or on Ray workers, with the same results, even if a worker is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import call

import baseline
from baseline import Progress, run_folds, run_ladder, run_seeds, write_predictions
from baseline.errors import OutputError, RecipeError
from baseline.inference.batch import BATCHES_PER_SHARD
from baseline.inference.output import PredictOptions
from baseline.inference.shards import predict_in_shards, remove_shards
from baseline.parallel import executor
from baseline.parallel.executor import Executor, Job, get_executor
from baseline.runs.folder import read_predictions

pytestmark = pytest.mark.usefixtures("no_page")

QUIET = Progress()


class RecordingProgress(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


# ---- without Ray ----------------------------------------------------------------------------------------------------


def test_local_jobs_run_one_after_the_other_and_are_consumed_lazily() -> None:
    progress, calls = RecordingProgress(), []

    def jobs() -> Iterator[Job]:
        for number in range(3):
            calls.append(f"job {number}")
            yield Job(f"job {number}" if number else "", lambda progress, number=number: calls.append(number) or number)

    with get_executor("", progress) as local:
        assert [result for _, result in local.as_completed(jobs())] == [0, 1, 2]
    assert calls == ["job 0", 0, "job 1", 1, "job 2", 2] and progress.lines == ["job 1", "job 2"]


@pytest.mark.parametrize("words", ["sun", "ray:", "ray://", "rays", "Ray"])
def test_unknown_executors_are_refused(words: str) -> None:
    message = f"--executor is '{words}'; ray, ray:auto, ray:HOST:6379 or ray://HOST"
    with pytest.raises(RecipeError, match=re.escape(message)):
        get_executor(words, QUIET)


def test_a_missing_ray_is_reported_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"needs the package ray: pip install .*\[ray\]'"):
        get_executor("ray", QUIET)


def test_an_unreachable_address_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "find_spec", lambda name: True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, but nobody listens
        began = time.perf_counter()
        for words in (f"ray://127.0.0.1:{port}", f"ray:127.0.0.1:{port}", "ray://no.such.host.invalid:10001"):
            with pytest.raises(OutputError, match=r"cannot be reached: .*Start it there, or omit --executor"):
                get_executor(words, QUIET)
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(OutputError, match=f"Ray at 127.0.0.1:{port} cannot be reached"):
            get_executor("ray", QUIET)
    for words in ("ray:head", "ray://head", "ray:head:port", "ray:1"):
        with pytest.raises(RecipeError, match="HOST:PORT was needed"):
            get_executor(words, QUIET)
    assert time.perf_counter() - began < 60


@pytest.mark.parametrize(
    "words, message",
    [
        (["run", "IMAGES", "--executor", "ray"], "--executor needs --seeds or a k-fold split"),
        (["run", "IMAGES", "--seeds", "2", "--executor", "sun"], "--executor is 'sun'"),
        (["ladder", "IMAGES", "--executor", "sun"], "--executor is 'sun'"),
        (["curve", "IMAGES", "--executor", "sun"], "--executor is 'sun'"),
        (["predict", "MODEL", "IMAGES", "--executor", "ray"], "requires --out FILE"),
        (["predict", "MODEL", "IMAGES", "--executor", "sun", "--out", "out.csv"], "--executor is 'sun'"),
    ],
)
def test_bad_input_gets_a_one_line_error_and_leaves_no_files(
    words: list[str], message: str, images: Path, tiny: Path
) -> None:
    given = {"IMAGES": images, "MODEL": tiny}
    done = call(*[str(given.get(word, word)) for word in words])
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(Path().iterdir())


class ReversedExecutor(Executor):
    """Runs three jobs at a time, the last first, and is interrupted after a number of jobs."""

    remote = True

    def __init__(self, interrupt_after: int = 10**9) -> None:
        super().__init__(QUIET)
        self.left, self.jobs_run = interrupt_after, 0

    def as_completed(self, jobs: Iterable[Job], max_workers: int = 0) -> Iterator[tuple[Job, Any]]:
        remaining = iter(jobs)
        while group := list(islice(remaining, 3)):
            for job in reversed(group):
                if not self.left:
                    raise KeyboardInterrupt
                self.left, self.jobs_run = self.left - 1, self.jobs_run + (not job.local)
                yield job, job.function(self.progress)


def make_rows(part: list[str]) -> tuple[bytes, int]:
    return "".join(f"{name}\n" for name in part).encode(), len(part)


def check_rows(content: bytes, part: list[str]) -> int | None:
    return 0 if content == make_rows(part)[0] else None


def test_shards_are_assembled_in_order_and_existing_ones_are_reused(tmp_path: Path) -> None:
    names = [f"image {number}" for number in range(23)]
    whole, folder = make_rows(names)[0], tmp_path / "shards"
    shards = partial(predict_in_shards, names, 2, make_rows, check_rows, folder)
    assert b"".join(rows for rows, _ in shards(ReversedExecutor())) == whole and not any(folder.iterdir())
    taken = []
    with pytest.raises(KeyboardInterrupt):
        taken.extend(rows for rows, _ in shards(ReversedExecutor(5)))
    assert b"".join(taken) == make_rows(names[:6])[0]
    assert sorted(path.name for path in folder.iterdir()) == ["000000000008", "000000000010"]
    (folder / "000000000010").write_bytes(b"of other images\n")
    (folder / ".000000000012.part").write_bytes(b"half a")
    again = ReversedExecutor()
    remaining = partial(predict_in_shards, names[6:], 2, make_rows, check_rows, folder)
    assert b"".join(rows for rows, _ in remaining(again, 6)) == make_rows(names[6:])[0]
    assert again.jobs_run == 8, "the complete shard of images 8 and 9 should be kept, and the other one should not"
    (folder / "mine.txt").touch()
    remove_shards(folder)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_workers_write_the_same_file_as_one_process_even_after_an_interrupt(
    tiny: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, paths = baseline.load(tiny), sorted(map(str, images.rglob("*.jpg")))
    paths = [*paths, "no such.jpg"] * 3
    options = PredictOptions(batch_size=2, every=True)
    assert len(paths) > 4 * BATCHES_PER_SHARD * 2
    write_predictions(model, paths, "alone.csv", options)
    monkeypatch.setattr(
        "baseline.inference.batch.get_executor",
        lambda name, progress: ReversedExecutor(4) if name else Executor(progress),
    )
    with pytest.raises(KeyboardInterrupt):
        write_predictions(model, paths, "remote.csv", options, executor="ray")
    assert Path("remote.csv").read_bytes() == b"".join(
        Path("alone.csv").read_bytes().splitlines(keepends=True)[: 3 * 2 * BATCHES_PER_SHARD + 1]
    )
    with Path("remote.csv").open("ab") as file:  # as if the job was killed while it took over a shard
        file.writelines(Path("alone.csv").read_bytes().splitlines(keepends=True)[3 * 2 * BATCHES_PER_SHARD + 1 :][:3])
    assert [path.name for path in Path("remote.csv.shards").iterdir()] == ["000000000128"]
    monkeypatch.setattr(
        "baseline.inference.batch.get_executor",
        lambda name, progress: ReversedExecutor() if name else Executor(progress),
    )
    stats = write_predictions(model, paths, "remote.csv", options, executor="ray", resume=True)
    assert (stats.already_done, stats.images, stats.unreadable) == (96 + 19, 32, 1)
    assert Path("remote.csv").read_bytes() == Path("alone.csv").read_bytes() and not Path("remote.csv.shards").exists()
    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(
            "baseline.inference.batch.get_executor",
            lambda name, progress: ReversedExecutor(4) if name else Executor(progress),
        )
        write_predictions(model, paths, "remote.csv", options, executor="ray", overwrite=True)
    write_predictions(model, paths, "remote.csv", options, resume=True)
    assert Path("remote.csv").read_bytes() == Path("alone.csv").read_bytes() and not Path("remote.csv.shards").exists()


# ---- on Ray workers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two() -> Iterator[Any]:
    """A Ray with room for two workers, whatever this machine has, as a script might have started it."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")  # as many as conftest gives to runs in this process
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


class KillingProgress(RecordingProgress):
    """Kills the worker that starts a job of this name, a number of times."""

    def __init__(self, name: str, times: int = 1) -> None:
        super().__init__()
        self.name, self.times = name, times

    def log(self, line: str) -> None:
        super().log(line)
        if self.times and self.name in line and (match := re.search(r"started on .*, process (\d+)$", line)):
            os.kill(int(match[1]), signal.SIGKILL)
            self.times -= 1


@pytest.fixture(scope="module")
def short(small: baseline.Recipe) -> baseline.Recipe:
    """A recipe that trains in seconds, with reproducible numbers."""
    return small.changed(
        frozen_precision="float32", audit="none", stages=(baseline.Stage("head", 1, 1e-2, augment=False),)
    )


def busy_workers() -> list[int]:
    """Return the process ids of the workers of this process's Ray that are running a job."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            if (process / "cmdline").read_bytes().startswith(b"ray::run_job"):
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                grandparent = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1]
                pids += [int(process.name)] if int(grandparent) == os.getpid() else []
    return pids


def read_results(run: Path) -> tuple[pd.DataFrame, dict[str, Any], str]:
    """Return everything that a run records except times."""
    manifest = json.loads((run / "manifest.json").read_text())
    fields = {name: manifest.get(name) for name in ("metrics", "calibration", "recipe", "data", "device", "versions")}
    return read_predictions(run), fields, (run / "split.csv").read_text()


def assert_same_runs(one: Path, other: Path) -> None:
    names = sorted(str(path.parent.relative_to(one)) for path in one.rglob("manifest.json"))
    assert names == sorted(str(path.parent.relative_to(other)) for path in other.rglob("manifest.json")) and names
    for name in names:
        (table, fields, split), (other_table, other_fields, other_split) = (
            read_results(one / name),
            read_results(other / name),
        )
        pd.testing.assert_frame_equal(table, other_table, check_exact=True)
        for field in fields:
            assert json.dumps(fields[field]).replace(str(one), str(other)) == json.dumps(other_fields[field]), (
                name,
                field,
            )
        assert split == other_split


@pytest.mark.slow
def test_folds_on_ray_equal_those_of_one_process_even_if_a_worker_is_killed(
    two: Any, images: Path, short: baseline.Recipe, tmp_path: Path
) -> None:
    one = run_folds(images, short, out=tmp_path / "one", split="kfold:3", progress=QUIET)
    progress = KillingProgress("fold 1, 2 of 3")
    other = run_folds(images, short, out=tmp_path / "other", split="kfold:3", executor="ray", progress=progress)
    assert_same_runs(one.folder, other.folder)
    assert (one.folder / "oof.csv").read_text() == (other.folder / "oof.csv").read_text()
    assert (one.metrics, one.mean, one.sd) == (other.metrics, other.mean, other.sd)
    starts = [line for line in progress.lines if line.startswith("fold 1, 2 of 3: started on")]
    assert progress.times == 0 and len(starts) == 2 and starts[0] != starts[1], progress.lines
    assert (
        sum(": finished in " in line for line in progress.lines) == 3
        and "Ray: at most 2 at once, threads for each: 1" in progress.lines
    )


@pytest.mark.slow
def test_a_ladder_on_ray_equals_that_of_one_process(
    two: Any, images: Path, short: baseline.Recipe, tmp_path: Path
) -> None:
    variants = ("logistic", "groups", "tta")
    short = short.changed(stages=(*short.stages, baseline.Stage(3, 1, 1e-4)))
    one = run_ladder(images, short, variants=variants, out=tmp_path / "one", progress=QUIET)
    other = run_ladder(images, short, variants=variants, out=tmp_path / "other", executor="ray", progress=QUIET)
    assert_same_runs(one.folder, other.folder)
    same = ["variant", "accuracy", "low", "high", "against", "difference", "p", "parameters"]
    pd.testing.assert_frame_equal(one.table[same], other.table[same], check_exact=True)


@pytest.mark.slow
def test_a_learning_curve_on_ray_equals_that_of_one_process(
    two: Any, images: Path, short: baseline.Recipe, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"variants": ("logistic", "head"), "sizes": (4, 6, 8), "seeds": 1, "progress": QUIET}
    one = baseline.run_learning_curve(images, short, out=tmp_path / "one", **options)
    other = baseline.run_learning_curve(images, short, out=tmp_path / "other", executor="ray", **options)
    pd.testing.assert_frame_equal(one.table.drop(columns="run"), other.table.drop(columns="run"), check_exact=True)
    assert one.fits == other.fits


@pytest.mark.slow
def test_errors_are_reported_in_one_line_and_not_retried(
    two: Any, images: Path, short: baseline.Recipe, tmp_path: Path
) -> None:
    progress, changes = RecordingProgress(), {"image_size": 48, "weights": str(tmp_path / "none.pth")}
    with pytest.raises(baseline.BaselineError) as alone:
        run_seeds(2, images, short, out=tmp_path / "one", progress=QUIET, **changes)
    with pytest.raises(type(alone.value)) as remote:
        run_seeds(2, images, short, out=tmp_path / "other", executor="ray", progress=progress, **changes)
    assert str(remote.value) == str(alone.value) and not (tmp_path / "other").exists()
    always = KillingProgress("seed 0", times=99)
    with pytest.raises(OutputError, match=r"seed 0, 1 of 2: its worker ended 4 times"):
        run_seeds(2, images, short, out=tmp_path / "killed", executor="ray", progress=always)
    assert always.times == 99 - 4


@pytest.mark.slow
def test_predictions_on_ray_equal_those_of_one_process_even_if_a_worker_is_killed(
    two: Any, tiny: Path, images: Path, tmp_path: Path
) -> None:
    model, paths = baseline.load(tiny), sorted(map(str, images.rglob("*.jpg"))) * 20
    options = PredictOptions(batch_size=4, every=True)
    write_predictions(model, paths, "alone.csv", options)
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            time.sleep(0.01)
            if len(list(Path("remote.csv.shards").glob("[0-9]*"))) and (working := busy_workers()):
                os.kill(working[0], signal.SIGKILL)
                killed.append(working[0])

    threading.Thread(target=kill, daemon=True).start()
    stats = write_predictions(model, paths, "remote.csv", options, executor="ray")
    assert killed, "no worker was busy when the first shard was there"
    assert Path("remote.csv").read_bytes() == Path("alone.csv").read_bytes() and stats.images == len(paths)
    assert not Path("remote.csv.shards").exists()
