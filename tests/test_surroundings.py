"""What a machine does to a process: threads, clocks, users' rights, full disks, forks and others beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import RecordingProgress, interrupted_in

import baseline
from baseline import Recipe, Stage, make_baseline, write_predictions
from baseline.inference.output import PredictOptions
from baseline.training.callbacks import ProgressCallback

pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture
def two_threads() -> Any:
    """Return a function that makes torch compute with two threads until the test ends."""
    before = torch.get_num_threads()
    yield lambda: torch.set_num_threads(2)
    torch.set_num_threads(before)


def thread_notes(progress: RecordingProgress) -> list[str]:
    return [line for line in progress.lines if "1 thread" in line and ("2 threads" in line or "with 2" in line)]


def test_a_run_resumed_with_another_number_of_threads_says_so(
    images: Path, small: Recipe, two_threads: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small.changed(stages=(Stage("head", 2, 1e-3, augment=False),))
    with monkeypatch.context() as patch:
        patch.setattr(ProgressCallback, "before_train", interrupted_in(2), raising=False)
        with pytest.raises(KeyboardInterrupt):
            make_baseline(images, plan, out=tmp_path / "run", progress=baseline.Progress())
    two_threads()
    progress = RecordingProgress()
    result = baseline.resume(tmp_path / "run", progress=progress)
    assert len(thread_notes(progress)) == 1
    assert result.manifest["threads"] == json.loads((tmp_path / "run/manifest.json").read_text())["threads"] == 2


def test_predictions_continued_with_another_number_of_threads_say_so(
    tiny: Path, images: Path, two_threads: Any, tmp_path: Path
) -> None:
    model, paths, out = baseline.load(tiny), sorted(images.rglob("*.jpg")), tmp_path / "out.csv"
    write_predictions(model, paths, out, PredictOptions(batch_size=8))
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:20]))
    for start in (lambda: None, two_threads):
        start()
        progress = RecordingProgress()
        write_predictions(model, paths, out, PredictOptions(batch_size=8), resume=True, progress=progress)
        assert len(thread_notes(progress)) == (start is two_threads)
