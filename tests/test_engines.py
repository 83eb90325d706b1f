"""Jobs are done here or by Ray's workers, with the same results, whatever becomes of a worker."""

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
from baseline import OutputError, RecipeError, Show, engines, make_folds, make_ladder, make_seeds, write_predictions
from baseline.bulk import SHARD_BATCHES, Wanted
from baseline.engines import Engine, Job, engine
from baseline.save import read_predictions
from baseline.shards import cleared, in_shards

pytestmark = pytest.mark.usefixtures("no_page")

QUIET = Show()


class Listening(Show):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


# ---- without Ray ----------------------------------------------------------------------------------------------------


def test_here_jobs_are_done_one_after_the_other_when_their_turn_comes() -> None:
    show, made = Listening(), []

    def jobs() -> Iterator[Job]:
        for number in range(3):
            made.append(f"job {number}")
            yield Job(f"job {number}" if number else "", lambda show, number=number: made.append(number) or number)

    with engine("", show) as here:
        assert [result for _, result in here.each(jobs())] == [0, 1, 2]
    assert made == ["job 0", 0, "job 1", 1, "job 2", 2] and show.said == ["job 1", "job 2"]


@pytest.mark.parametrize("words", ["sun", "ray:", "ray://", "rays", "Ray"])
def test_words_that_name_no_engine_are_refused(words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"--on is '{words}'; ray, ray:auto, ray:HOST:6379 or ray://HOST")):
        engine(words, QUIET)


def test_a_missing_ray_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"needs the package ray: pip install 'fastai-baseline\[ray\]'"):
        engine("ray", QUIET)


def test_an_address_where_nobody_answers_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, but nobody listens
        began = time.perf_counter()
        for words in (f"ray://127.0.0.1:{port}", f"ray:127.0.0.1:{port}", "ray://no.such.host.invalid:10001"):
            with pytest.raises(OutputError, match=r"cannot be reached: .*Start it there, or leave --on out"):
                engine(words, QUIET)
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(OutputError, match=f"Ray at 127.0.0.1:{port} cannot be reached"):
            engine("ray", QUIET)
    for words in ("ray:head", "ray://head", "ray:head:port", "ray:1"):
        with pytest.raises(RecipeError, match="HOST:PORT was needed"):
            engine(words, QUIET)
    assert time.perf_counter() - began < 60


@pytest.mark.parametrize(
    "words, message",
    [
        (["run", "PHOTOS", "--on", "ray"], "--on goes with --seeds or folds"),
        (["run", "PHOTOS", "--seeds", "2", "--on", "sun"], "--on is 'sun'"),
        (["ladder", "PHOTOS", "--on", "sun"], "--on is 'sun'"),
        (["curve", "PHOTOS", "--on", "sun"], "--on is 'sun'"),
        (["predict", "MODEL", "PHOTOS", "--on", "ray"], "Give --out FILE"),
        (["predict", "MODEL", "PHOTOS", "--on", "sun", "--out", "out.csv"], "--on is 'sun'"),
    ],
)
def test_bad_words_get_one_line_and_leave_nothing(words: list[str], message: str, photos: Path, tiny: Path) -> None:
    given = {"PHOTOS": photos, "MODEL": tiny}
    done = call(*[str(given.get(word, word)) for word in words])
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(Path().iterdir())


class Backwards(Engine):
    """Does three jobs at a time, the last first; ends in the midst where it is told to."""

    far = True

    def __init__(self, ends_after: int = 10**9) -> None:
        super().__init__(QUIET)
        self.left, self.made = ends_after, 0

    def each(self, jobs: Iterable[Job], count: int = 0) -> Iterator[tuple[Job, Any]]:
        rest = iter(jobs)
        while some := list(islice(rest, 3)):
            for job in reversed(some):
                if not self.left:
                    raise KeyboardInterrupt
                self.left, self.made = self.left - 1, self.made + (not job.here)
                yield job, job.make(self.show)


def made_rows(part: list[str]) -> tuple[bytes, int]:
    return "".join(f"{name}\n" for name in part).encode(), len(part)


def kept_rows(content: bytes, part: list[str]) -> int | None:
    return 0 if content == made_rows(part)[0] else None


def test_shards_are_put_together_in_order_and_those_that_lie_there_are_not_made_again(tmp_path: Path) -> None:
    names = [f"photo {number}" for number in range(23)]
    whole, folder = made_rows(names)[0], tmp_path / "shards"
    shards = partial(in_shards, names, 2, made_rows, kept_rows, folder)
    assert b"".join(rows for rows, _ in shards(Backwards())) == whole and not any(folder.iterdir())
    taken = []
    with pytest.raises(KeyboardInterrupt):
        taken.extend(rows for rows, _ in shards(Backwards(5)))
    assert b"".join(taken) == made_rows(names[:6])[0]
    assert sorted(path.name for path in folder.iterdir()) == ["000000000008", "000000000010"]
    (folder / "000000000010").write_bytes(b"of other photos\n")
    (folder / ".000000000012.part").write_bytes(b"half a")
    again = Backwards()
    rest = partial(in_shards, names[6:], 2, made_rows, kept_rows, folder)
    assert b"".join(rows for rows, _ in rest(again, 6)) == made_rows(names[6:])[0]
    assert again.made == 8, "the whole shard of photos 8 and 9 was to be kept, the other one not"
    (folder / "mine.txt").touch()
    cleared(folder)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_what_workers_predict_is_the_file_of_one_process_also_after_an_interrupt(
    tiny: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, paths = baseline.load(tiny), sorted(map(str, photos.rglob("*.jpg")))
    paths = [*paths, "no such.jpg"] * 3
    wanted = Wanted(batch_size=2, every=True)
    assert len(paths) > 4 * SHARD_BATCHES * 2
    write_predictions(model, paths, "alone.csv", wanted)
    monkeypatch.setattr("baseline.bulk.engine", lambda on, show: Backwards(4) if on else Engine(show))
    with pytest.raises(KeyboardInterrupt):
        write_predictions(model, paths, "far.csv", wanted, on="ray")
    assert Path("far.csv").read_bytes() == b"".join(
        Path("alone.csv").read_bytes().splitlines(keepends=True)[: 3 * 2 * SHARD_BATCHES + 1]
    )
    with Path("far.csv").open("ab") as file:  # as if killed while a shard was taken over
        file.writelines(Path("alone.csv").read_bytes().splitlines(keepends=True)[3 * 2 * SHARD_BATCHES + 1 :][:3])
    assert [path.name for path in Path("far.csv.shards").iterdir()] == ["000000000128"]
    monkeypatch.setattr("baseline.bulk.engine", lambda on, show: Backwards() if on else Engine(show))
    counts = write_predictions(model, paths, "far.csv", wanted, on="ray", resume=True)
    assert (counts.before, counts.photos, counts.unreadable) == (96 + 19, 32, 1)
    assert Path("far.csv").read_bytes() == Path("alone.csv").read_bytes() and not Path("far.csv.shards").exists()
    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr("baseline.bulk.engine", lambda on, show: Backwards(4) if on else Engine(show))
        write_predictions(model, paths, "far.csv", wanted, on="ray", overwrite=True)
    write_predictions(model, paths, "far.csv", wanted, resume=True)
    assert Path("far.csv").read_bytes() == Path("alone.csv").read_bytes() and not Path("far.csv.shards").exists()


# ---- by Ray's workers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two() -> Iterator[Any]:
    """A Ray with room for two workers, whatever this machine has, as a script may have started it."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'fastai-baseline[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")  # as many as conftest gives to runs in this process
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


class Killing(Listening):
    """Kills the worker that begins something of this name, so many times."""

    def __init__(self, name: str, times: int = 1) -> None:
        super().__init__()
        self.name, self.times = name, times

    def say(self, line: str) -> None:
        super().say(line)
        if self.times and self.name in line and (found := re.search(r"begun on .*, process (\d+)$", line)):
            os.kill(int(found[1]), signal.SIGKILL)
            self.times -= 1


@pytest.fixture(scope="module")
def short(small: baseline.Recipe) -> baseline.Recipe:
    """Ends in seconds, and repeats to the last digit."""
    return small.changed(frozen_precision="float32", audit="none", stages=(baseline.Stage("head", 1, 1e-2),))


def at_work() -> list[int]:
    """Processes of workers of this process's Ray that do a job."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            if (process / "cmdline").read_bytes().startswith(b"ray::_work"):
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                grandparent = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1]
                found += [int(process.name)] if int(grandparent) == os.getpid() else []
    return found


def numbers_of(run: Path) -> tuple[pd.DataFrame, dict[str, Any], str]:
    """All that a run says, but for times."""
    manifest = json.loads((run / "manifest.json").read_text())
    kept = {name: manifest.get(name) for name in ("metrics", "calibration", "recipe", "data", "device", "versions")}
    return read_predictions(run), kept, (run / "split.csv").read_text()


def assert_same_runs(one: Path, other: Path) -> None:
    names = sorted(str(path.parent.relative_to(one)) for path in one.rglob("manifest.json"))
    assert names == sorted(str(path.parent.relative_to(other)) for path in other.rglob("manifest.json")) and names
    for name in names:
        (table, facts, split), (table_2, facts_2, split_2) = numbers_of(one / name), numbers_of(other / name)
        pd.testing.assert_frame_equal(table, table_2, check_exact=True)
        for part in facts:
            assert json.dumps(facts[part]).replace(str(one), str(other)) == json.dumps(facts_2[part]), (name, part)
        assert split == split_2


@pytest.mark.slow
def test_folds_by_ray_are_those_of_one_process_though_a_worker_is_killed(
    two: Any, photos: Path, short: baseline.Recipe, tmp_path: Path
) -> None:
    one = make_folds(photos, short, out=tmp_path / "one", split="kfold:3", show=QUIET)
    show = Killing("fold 1, 2 of 3")
    other = make_folds(photos, short, out=tmp_path / "other", split="kfold:3", on="ray", show=show)
    assert_same_runs(one.folder, other.folder)
    assert (one.folder / "oof.csv").read_text() == (other.folder / "oof.csv").read_text()
    assert (one.metrics, one.mean, one.sd) == (other.metrics, other.mean, other.sd)
    begun = [line for line in show.said if line.startswith("fold 1, 2 of 3: begun on")]
    assert show.times == 0 and len(begun) == 2 and begun[0] != begun[1], show.said
    assert (
        sum(": done in " in line for line in show.said) == 3
        and "Ray: at most 2 at once, threads of each: 1" in show.said
    )


@pytest.mark.slow
def test_a_ladder_by_ray_is_that_of_one_process(two: Any, photos: Path, short: baseline.Recipe, tmp_path: Path) -> None:
    rungs = ("logistic", "groups", "tta")
    short = short.changed(stages=(*short.stages, baseline.Stage(3, 1, 1e-4)))
    one = make_ladder(photos, short, rungs=rungs, out=tmp_path / "one", show=QUIET)
    other = make_ladder(photos, short, rungs=rungs, out=tmp_path / "other", on="ray", show=QUIET)
    assert_same_runs(one.folder, other.folder)
    same = ["rung", "accuracy", "low", "high", "against", "difference", "p", "parameters"]
    pd.testing.assert_frame_equal(one.table[same], other.table[same], check_exact=True)


@pytest.mark.slow
def test_a_curve_by_ray_is_that_of_one_process(two: Any, photos: Path, short: baseline.Recipe, tmp_path: Path) -> None:
    options: dict[str, Any] = {"rungs": ("logistic", "head"), "sizes": (4, 6, 8), "seeds": 1, "show": QUIET}
    one = baseline.make_curve(photos, short, out=tmp_path / "one", **options)
    other = baseline.make_curve(photos, short, out=tmp_path / "other", on="ray", **options)
    pd.testing.assert_frame_equal(one.table.drop(columns="run"), other.table.drop(columns="run"), check_exact=True)
    assert one.fits == other.fits


@pytest.mark.slow
def test_what_is_wrong_is_told_in_one_line_and_not_tried_again(
    two: Any, photos: Path, short: baseline.Recipe, tmp_path: Path
) -> None:
    show, asked = Listening(), {"image_size": 48, "weights": str(tmp_path / "none.pth")}
    with pytest.raises(baseline.BaselineError) as alone:
        make_seeds(2, photos, short, out=tmp_path / "one", show=QUIET, **asked)
    with pytest.raises(type(alone.value)) as far:
        make_seeds(2, photos, short, out=tmp_path / "other", on="ray", show=show, **asked)
    assert str(far.value) == str(alone.value) and not (tmp_path / "other").exists()
    always = Killing("seed 0", times=99)
    with pytest.raises(OutputError, match=r"seed 0, 1 of 2: its worker ended 4 times"):
        make_seeds(2, photos, short, out=tmp_path / "killed", on="ray", show=always)
    assert always.times == 99 - 4


@pytest.mark.slow
def test_predictions_by_ray_are_those_of_one_process_though_a_worker_is_killed(
    two: Any, tiny: Path, photos: Path, tmp_path: Path
) -> None:
    model, paths = baseline.load(tiny), sorted(map(str, photos.rglob("*.jpg"))) * 20
    wanted = Wanted(batch_size=4, every=True)
    write_predictions(model, paths, "alone.csv", wanted)
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            time.sleep(0.01)
            if len(list(Path("far.csv.shards").glob("[0-9]*"))) and (working := at_work()):
                os.kill(working[0], signal.SIGKILL)
                killed.append(working[0])

    threading.Thread(target=kill, daemon=True).start()
    counts = write_predictions(model, paths, "far.csv", wanted, on="ray")
    assert killed, "no worker was at work when the first shard was there"
    assert Path("far.csv").read_bytes() == Path("alone.csv").read_bytes() and counts.photos == len(paths)
    assert not Path("far.csv.shards").exists()
