"""What scripts rely on: one documented JSON object per command, lines of progress in a log, the promise on formats."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from typer.main import get_command

import baseline
from baseline import progress
from baseline.cli.app import app
from baseline.cli.json_output import fixes_object, print_object
from baseline.experiments.before_after import FixComparison
from baseline.runs.folder import FORMAT as RUN_FORMAT
from baseline.vision.model_folder import FORMAT as MODEL_FORMAT

GUIDE = (ROOT / "docs" / "automation.md").read_text()
TABLE = dict(re.findall(r"^\| (`.*?) \| (`.*) \|$", GUIDE, re.MULTILINE))


def documented_keys(command: str) -> tuple[list[str], dict[str, list[str]]]:
    """The keys that the guide names for a command, and those of the objects in them."""
    text = TABLE[command]
    inner = {key: re.findall(r"`(\w+)`", names) for key, names in re.findall(r"`(\w+)` \(([^)]*)\)", text)}
    return re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", text)), {key: names for key, names in inner.items() if names}


def check_keys(command: str, printed: dict[str, Any], documented: str = "") -> None:
    keys, inner = documented_keys(documented or f"`{command}`")
    assert printed.pop("format") == 1 and printed.pop("command") == command
    assert list(printed) == keys
    for key, names in inner.items():
        value = printed[key]
        items = value if isinstance(value, list) else list(value.values()) if key == "splits" else [value]
        assert items and all(list(item) == names for item in items), key


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs a command in this process, and returns the object that it prints, of standard JSON only."""

    def run(*words: Any) -> dict[str, Any]:
        app([*map(str, words), "--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out, parse_constant=lambda text: pytest.fail(f"not JSON: {text}"))

    return run


def test_run_prints_one_object(
    images: Path, body: dict[str, str], command: Callable[..., dict[str, Any]], no_page: None
) -> None:
    network = [word for name, value in body.items() for word in (f"--{name}", value)]
    words = ("run", images, "--preset", "instant", "--image-size", 48, *network, "--out")
    one = command(*words, "one")
    manifest = json.loads(Path("one/manifest.json").read_text())
    headline, accuracy = one["headline"], manifest["metrics"]["test"]["tta" if one["headline"]["tta"] else "plain"]
    assert headline["value"] == accuracy["accuracy"] and headline["interval"] == accuracy["interval"]
    assert one["splits"]["test"]["images"] == manifest["metrics"]["test"]["images"]
    assert Path(one["model"], "model.json").exists() and one["folder"] == "one" and len(one["next"]) == 2
    check_keys("run", one)
    seeds = command(*words, "seeds", "--seeds", 1)
    assert {key: seeds[key] for key in ("runs", "mean", "sd")} == {
        key: json.loads(Path("seeds/seeds.json").read_text())[key] for key in ("runs", "mean", "sd")
    }
    assert seeds["next"] == [
        "baseline compare 'seeds/seed-*' 'OTHER_RECIPE/seed-*'", "baseline predict seeds NEW_IMAGES"
    ]  # fmt: skip
    check_keys("run", seeds, "`run` with `--seeds`")
    folds = command(*words, "folds", "--split", "kfold:2")
    assert folds["metrics"]["oof"]["images"] == 48
    check_keys("run", folds, "`run` with `--split kfold:K`")
    check_keys("run", command(*words, "never", "--dry-run"), "`run` with `--dry-run`")
    assert not Path("never").exists()


def test_fixes_print_the_comparison(
    done: baseline.Baseline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(done.folder, tmp_path / "copy"))
    print_object("run", fixes_object(FixComparison(done.folder, done, baseline.compare_runs([done.folder, copy]))))
    printed = json.loads(capsys.readouterr().out)
    assert printed["kind"] == "fixes" and printed["before"] == str(done.folder)
    keys = [*documented_keys("`run`")[0], "before", "comparison"]
    assert set(printed) == {"format", "command", *keys}
    assert ["kind", *printed["comparison"]] == documented_keys("`compare`")[0]


def test_commands_about_runs_print_one_object(
    done: baseline.Baseline, tmp_path: Path, command: Callable[..., dict[str, Any]]
) -> None:
    copy = Path(shutil.copytree(done.folder, tmp_path / "runs" / "copy"))
    compared = command("compare", done.folder, copy)
    assert [row["difference"] for row in compared["rows"]] == [None, 0] and len(compared["sentences"]) == 1
    check_keys("compare", compared)
    Path(tmp_path / "runs" / "broken").mkdir()
    Path(tmp_path / "runs" / "broken" / "manifest.json").write_text("{}")
    listed = command("runs", copy.parent)
    (run,) = (run for run in listed["runs"] if run["state"] == "finished")
    assert run["accuracy"] == done.metrics["test"]["tta"]["accuracy"] and len(listed["runs"]) == 2
    check_keys("runs", listed)
    checks = command("doctor")
    assert "torch" in checks["checks"]
    check_keys("doctor", checks)


def test_commands_about_a_model_print_one_object(
    tiny: Path, images: Path, command: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    (Path("mixed") / "test").mkdir(parents=True)
    for name in ("00.jpg", "01.jpg"):
        shutil.copy(images / "ants" / name, Path("mixed/test") / name)
    Path("mixed/test/damaged.jpg").write_text("words")
    predicted = command("predict", tiny, "mixed/test", "--out", "out.csv")
    assert (predicted["images"], predicted["unreadable"], predicted["tta"]) == (3, 1, True)
    assert predicted["out"] == "out.csv" and predicted["models"] == [str(tiny)]
    check_keys("predict", predicted)
    with pytest.raises(baseline.BaselineError, match="Pass --out FILE"):
        app(["predict", str(tiny), "mixed/test", "--json"], standalone_mode=False)
    assert capsys.readouterr().out == ""
    checked = command("check", tiny)
    assert checked["models"][0]["difference"] <= checked["models"][0]["tolerance"] == 1e-4
    check_keys("check", checked)
    Path("mixed/test/damaged.jpg").unlink()
    Path("mixed/sample.csv").write_text("file,label\n00.jpg,ants\n01.jpg,bees\n")
    submitted = command("submit", tiny, "--sample", "mixed/sample.csv", "--out", "submission.csv")
    assert submitted["kind"] == "names" and Path(submitted["path"]).read_text().startswith("file,label\n00.jpg,")
    check_keys("submit", submitted)


def test_every_command_with_json_is_in_the_guide() -> None:
    commands = get_command(app).commands
    shown = {name: command for name, command in commands.items() if not command.hidden}
    with_json = {name for name, made in shown.items() if any("--json" in option.opts for option in made.params)}
    assert with_json == {key.split("`")[1] for key in TABLE} | {"evaluate", "audit"}
    assert all(f"`baseline {name} --json`" in GUIDE for name in ("evaluate", "audit"))


# ---- the log --------------------------------------------------------------------------------------------------------


def test_a_long_step_writes_a_line_every_thirty_seconds_into_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter(range(0, 1000, 7))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with baseline.ConsoleProgress().bar("stage 1", 10, "batches") as bar:
        for _ in range(10):
            bar.step()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "stage 1: 5 of 10 batches, 35 s, about 35 s left",
        "stage 1: 10 of 10 batches, 70 s",
    ]  # fmt: skip


# ---- formats --------------------------------------------------------------------------------------------------------


def test_the_guide_says_which_formats_are_read() -> None:
    model, run = (
        re.findall(rf"`{name}`, .*? \| (.*?) \| (.*?) \|", GUIDE)[0] for name in ("model.json", "manifest.json")
    )
    assert model == (", ".join(map(str, range(1, MODEL_FORMAT + 1))), f"1 to {MODEL_FORMAT}")
    assert run == (", ".join(map(str, range(1, RUN_FORMAT + 1))), f"1 and {RUN_FORMAT}")
