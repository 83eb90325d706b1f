"""The command line: results on standard output, one line and exit code 2 for bad input, help with examples."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import typer
from commands import call

import baseline
from baseline.cli.app import app_for
from baseline.cli.doctor import find_cautions
from baseline.cli.options import parse_target
from baseline.cli.stage_options import StageOptions
from baseline.data.sources.image_list import images_of_source
from baseline.errors import similar_path
from baseline.files import resolve_path
from baseline.recipe.choose import scratch_stages
from baseline.recipe.load import recipe_names
from baseline.recipe.schema import NO_AUGMENT, Augment


def test_a_run_prints_its_number_and_its_folder(images: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "short.toml"
    recipe.write_text('image_size = 48\n[[stage]]\ntrains = "head"\nepochs = 9\n')
    options = ["--epochs", "2", "--lr", "0.02", "--no-augment"]
    ended = call("train", str(recipe), "--data", str(images), "--out", str(tmp_path / "[b]run"), *options)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(("test accuracy:", "test accuracy with TTA:"))
    assert "95% confidence interval" in ended.stdout
    assert str(tmp_path / "[b]run") in ended.stdout
    assert "will take about" in ended.stderr and "epoch 2/2" in ended.stderr and "\x1b" not in ended.stderr
    assert "learning rate 2.0e-02 (as given)" in ended.stderr
    again = ["run", str(tmp_path / "[b]run/manifest.json"), "--out", str(tmp_path / "again"), "--quiet"]
    quiet = subprocess.run([sys.executable, "-m", "baseline", *again], capture_output=True, text=True)
    assert quiet.stderr == "" and quiet.stdout.splitlines()[0] == ended.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "cifra10"], "Did you mean 'cifar10'"),
        (["run", "./nowhere"], "There is no folder"),
        (["run", "nowhere/"], "There is no folder"),
        (["run", "default"], "Pass a folder of images"),
        (["run", "IMAGES", "--arch", "resnet5O"], "Did you mean 'resnet50'"),
        (["run", "IMAGES", "--preset", "quik"], "Did you mean 'quick'"),
        (
            ["run", "IMAGES", "--set", "augment.rotat=3"],
            "Did you mean 'augment.rotate'? Known: augment.crop, augment.dihedral",
        ),
        (["run", "IMAGES", "--image-size", "4"], "image_size is 4, needed: pixels"),
        (["run", "IMAGES", "--batch-size", "many"], "batch_size is 'many'"),
        (["run", "IMAGES", "--resize", "stretch"], "one of squish, crop, pad"),
        (["run", "IMAGES", "--loggers", "csv,wand"], "needed: a list from csv, mlflow, tensorboard, wandb, or none"),
        (["run", "IMAGES", "--precision", "bfloat16"], "needs a GPU"),
        (["run", "IMAGES", "--weights", "none.pth"], "There is no weights file"),
        (["run", "IMAGES", "--out", "/proc/run"], "cannot be written"),
        (["run", "IMAGES", "--image-size", "a"], "Invalid value for '--image-size': "),
        (["run", "IMAGES", "--epochs", "0"], "epochs is 0, needed: a whole number from 1"),
        (["run", "IMAGES", "--epochs", "3", "--budget", "9m"], "--epochs and a budget cannot be combined"),
        (["run", "IMAGES", "--lr", "fast"], "--lr is 'fast', needed: a number such as 3e-4"),
        (["run", "IMAGES", "--lr", "0"], "stage 2: lr is 0.0"),
        (["run", "IMAGES", "--no-augment", "--set", "augment.rotate=9"], "cannot be combined"),
        (["run", "IMAGES", "--preset", "instant", "--lr", "1e-3"], "preset instant trains no stage by epochs"),
        (["run", "IMAGE"], "There is no folder or file IMAGE"),
        (["run"], "Missing argument 'IMAGES_OR_RECIPE', as in baseline run images/. See baseline run --help."),
        (["train"], "Missing argument 'IMAGES_OR_RECIPE', as in baseline train images/. See"),
        (["run", "C:\\me\\images"], "Pass a folder with one folder of images per class"),
        (["run", "https://a.org/images.zip"], "https://a.org/images.zip is a URL, and a path is needed. Download it"),
        (["run", "My", "Images"], "(Images). Put a path with spaces in quotes"),
        (["IMAGES"], ". To train on it: baseline run "),
        (["cifar10"], "No such command 'cifar10'. To train on it: baseline run cifar10. See baseline --help."),
        (["run", "IMAGES", "--epochs", "two"], "Invalid value for '--epochs': needed: a whole number. See"),
        (["run", "IMAGES", "--learning-rate", "1"], "No such option: --learning-rate. Did you mean --lr? See"),
        (["run", "IMAGES", "--model", "resnet18"], "No such option: --model. Did you mean --arch? See"),
        (["check", "IMAGES", "--model", "resnet18"], "--model"),
        ([300 * "x"], "No such command 'xxx"),
        (["rnu"], "No such command 'rnu'. Did you mean 'run'? See baseline --help."),
        (["serve", "nowhere", "--port", "0"], "cannot be read"),
        (["submit", "nowhere", "--sample", "none.csv"], "There is no file"),
        (["submit", "nowhere", "--sample", "IMAGES"], "There is no file"),
        (["run", "nothing.toml"], "cannot be read"),
        (["run", "cifar10", "--data", "nowhere"], "does not exist"),
        (["copy", "nothing"], "There is no recipe 'nothing'"),
        (["copy", "default", "mine.txt"], "nor a .toml file name"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(images: Path, words: list[str], message: str) -> None:
    ended = call(*[str(images) if word == "IMAGES" else word for word in words])
    assert ended.returncode == 2, ended.stderr
    assert message in ended.stderr and "Traceback" not in ended.stderr
    assert not Path("runs").exists() or not list(Path("runs").iterdir())
    assert ended.stderr.splitlines()[-1].startswith("baseline: ") and ended.stderr.count("baseline: ") == 1


def test_a_misspelled_option_gets_the_options_that_may_be_meant(images: Path) -> None:
    """In the words of the installed typer or click."""
    ended = call("run", str(images), "--epoch", "3")
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2 and line.startswith("baseline: No such option") and not Path("runs").exists()
    assert re.search(r" '?--epoch'?\W+(Possible options|Did you mean one of): '?--arch'?, '?--epochs'?\??\)", line)
    assert line.endswith("). See baseline run --help.")


def test_only_the_command_that_was_asked_for_is_built() -> None:
    def built(*args: str) -> set[str]:
        return set(typer.main.get_command(app_for([*args])).commands)  # type: ignore[attr-defined]

    assert built("doctor", "--help") == {"doctor"} and built("train", "images") == {"train"}
    assert built() == built("--help") == built("rnu") == built("--version", "doctor") > {"doctor", "train", "run"}


def test_help_has_examples_everywhere() -> None:
    assert "baseline run cifar10" in call("--help").stdout
    commands = (
        "run ladder curve audit predict serve check export import bundle submit report compare runs recipes copy doctor"
    )
    for command in commands.split():
        ended = call(command, "--help")
        assert ended.returncode == 0 and f"baseline {command}" in ended.stdout and "Examples" in ended.stdout


def test_help_shows_no_value_for_flags_and_names_arguments_in_capitals() -> None:
    printed = call("run", "--help").stdout + call("--help").stdout
    assert not re.search("<bool>|BOOLEAN", printed) and "--dry-run" in printed and "IMAGES_OR_RECIPE" in printed
    assert re.search(r"--out +(<path>|PATH)", printed), "options with a value still show its type"


def test_completion_knows_recipes_and_presets() -> None:
    def completed(line: str) -> str:
        words = {"_BASELINE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()))}
        command = "from baseline.cli.app import app; app(prog_name='baseline')"
        environment = {**os.environ, **words}
        return subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, env=environment).stdout

    assert "cifar10" in completed("baseline run ")
    assert "standard" in completed("baseline run cifar10 --preset ")


def test_recipes_lists_every_recipe() -> None:
    printed = call("recipes").stdout
    assert all(name in printed for name in recipe_names()) and "60,000" in printed


def test_copy_hands_over_a_recipe_that_loads_and_overwrites_nothing() -> None:
    assert call("copy", "cifar10").stdout == "cifar10.toml\n"
    assert baseline.load_recipe("cifar10.toml").data.dataset == "cifar10"
    again = call("copy", "cifar10")
    assert again.returncode == 2 and "already exists" in again.stderr


def test_doctor_tells_versions_device_data_and_weights() -> None:
    printed = call("doctor").stdout
    names = ("torch", "cpu", "device", "bfloat16", "AMX", "free", "dataset cifar10", "weights of tf_efficientnet_lite0")
    for word in names:
        assert word in printed
    assert printed.splitlines()[-1].startswith("Ready: baseline run images/")
    assert not list(Path(os.environ["BASELINE_HOME"]).iterdir())


def write_distribution(folder: Path, name: str, metadata: str = "", **files: str) -> None:
    """Write what pip writes of an installed distribution."""
    info = folder / f"{name}-9.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n{metadata}")
    for file, text in files.items():
        (info / f"{file}.txt").write_text(text)


def test_doctor_names_what_clashes_and_says_what_to_do(tmp_path: Path) -> None:
    write_distribution(tmp_path / "site", "baseline", top_level="baseline\n")
    write_distribution(tmp_path / "site", "torchvision", "Requires-Dist: torch==1.0\nRequires-Dist: no-such-one>=2\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{Path(baseline.__file__).parents[1]}"}
    command = [sys.executable, "-m", "baseline", "doctor"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    verdict = ended.stdout.splitlines()[-1]
    assert ended.returncode == 1 and verdict.startswith("Not ready: baseline also installs a package named baseline")
    assert "pip uninstall baseline, then install fastai-baseline again" in verdict
    version = metadata.version("torch")
    assert f"torchvision needs 'torch==1.0', and torch {version} is installed; pip install 'torch==1.0'" in verdict
    assert "torchvision needs 'no-such-one>=2', and none is installed" in verdict
    assert ". Also, torchvision needs" in verdict


def test_doctor_warns_of_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (999.0, 1.0, 1.0), raising=False)
    assert any(caution.startswith("the load is 999.0 on") for caution in find_cautions())
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 999.0, 999.0))
    assert not any("load" in caution for caution in find_cautions())
    monkeypatch.delattr(os, "getloadavg")
    assert not any("load" in caution for caution in find_cautions())


def test_a_mistyped_path_gets_the_one_that_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("flowers3/train").mkdir(parents=True)
    Path("Labels.csv").touch()
    Path("runs/mine/model").mkdir(parents=True)
    meant = {
        "flower3": "flowers3", "labels.csv": "Labels.csv", "lables.csv": "Labels.csv", "runs/mien": "runs/mine",
        "flower3/train": "flowers3/train", "flower3/valid": "flowers3", "rnus/mine/model": "runs/mine/model",
    }  # fmt: skip
    for typed, path in meant.items():
        assert similar_path(typed) == f" Did you mean {Path(path)}?"
    assert similar_path("zzz/yyy") == similar_path("xyz") == similar_path("") == similar_path("/") == ""
    with pytest.raises(baseline.BaselineError, match=r"no folder or file flower3\. Did you mean flowers3\?"):
        parse_target("flower3")
    with pytest.raises(baseline.BaselineError, match=r"Did you mean .*flowers3\?"):
        baseline.image_table("./flower3")
    with pytest.raises(baseline.BaselineError, match=r"Did you mean runs/mine/model\?"):
        baseline.load("runs/mien")
    with pytest.raises(baseline.BaselineError, match=r"Did you mean runs/mine\?"):
        baseline.compare_runs(["runs/mien", "runs/mine"])


def test_a_url_is_no_path() -> None:
    for read in (baseline.image_table, resolve_path, lambda url: images_of_source(url, "", baseline.Progress())):
        with pytest.raises(baseline.BaselineError, match=r"^https://a\.org/1\.jpg is a URL, .* Download it first"):
            read("https://a.org/1.jpg")


def test_a_mistyped_folder_gets_no_list_of_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("flowers3").mkdir()
    with pytest.raises(baseline.BaselineError, match=r"Did you mean flowers3\? There is no recipe 'flower3'\.$"):
        parse_target("flower3")


def test_files_that_a_shell_made_of_a_pattern_are_not_all_listed() -> None:
    files = [f"images/{number:05}.jpg" for number in range(500)]
    (line,) = call("run", *files).stderr.splitlines()
    assert "images/00001.jpg" in line and "images/*. See baseline run --help." in line and len(line) < 300


def test_stage_options_change_the_last_stage_of_every_preset() -> None:
    default = baseline.load_recipe("default")
    recipe, changes = StageOptions(5, "1e-3", augment=True).apply("default", {"seed": 1})
    assert isinstance(recipe, baseline.Recipe) and changes == {"seed": 1}
    for preset in ("quick", "standard", "best"):
        before, after = default.with_preset(preset), recipe.with_preset(preset)
        assert after.stages[:-1] == before.stages[:-1]
        assert (after.stages[-1].epochs, after.stages[-1].steps, after.stages[-1].lr) == (5, 0, 1e-3)
        assert after.stages[-1].trains == before.stages[-1].trains
        assert after.augment == Augment() and after.model == before.model
    plain = StageOptions(augment=False).apply("default", {})[0].with_preset("best")
    assert plain.augment == NO_AUGMENT and plain.stages == default.with_preset("best").stages
    (stage,) = StageOptions(4, "1e-5,1e-3").apply("default", {"pretrained": False})[0].stages
    assert (stage.trains, stage.epochs, stage.steps, stage.lr) == ("all", 4, 0, (1e-5, 1e-3))
    assert scratch_stages(baseline.Recipe(stages=[stage]))[0].stages == (stage,)
    assert StageOptions().apply("default", {"seed": 1}) == ("default", {"seed": 1})


def test_augment_keeps_what_the_recipe_has_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("augment = { flip = false, rotate = 30.0, zoom = 1.0, crop = 0.5, warp = 0.0 }\n")
    augment = StageOptions(augment=True).apply(str(path), {})[0].augment
    assert augment == dataclasses.replace(Augment(), rotate=30.0, crop=0.5)


def test_stage_options_change_the_recipe_of_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    recipe = baseline.load_recipe("default").with_preset("quick")
    path.write_text(json.dumps({"recipe": recipe.as_dict(), "metrics": {}, "images": "images/"}))
    target, changes = StageOptions(3).apply(str(path), {"augment.rotate": 5.0})
    changed = baseline.load_recipe(path).changed(**changes)
    assert target == str(path) and changed.augment.rotate == 5
    assert changed.stages[-1].epochs == 3 and changed.stages[:-1] == recipe.stages[:-1]


def test_the_version_is_the_packages() -> None:
    assert call("--version").stdout.strip() == baseline.__version__


def test_a_dry_run_says_five_lines_and_writes_nothing(images: Path) -> None:
    ended = call("run", str(images), "--dry-run")
    assert [line.split(":")[0] for line in ended.stdout.splitlines()] == [
        "read as", "columns", "classes", "splits", "notes",
    ]  # fmt: skip
    assert ended.returncode == 0 and not list(Path().iterdir())


def test_audit_prints_findings_and_strict_is_exit_code_3(images: Path, tmp_path: Path) -> None:
    for part, numbers in (("train", range(12)), ("test", range(11, 16))):  # number 11 in both
        for name in ("ants", "bees"):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for number in numbers:
                shutil.copy(images / name / f"{number:02}.jpg", tmp_path / "set" / part / name / f"{number:02}.jpg")
    ended = call("audit", str(tmp_path / "set"), "--out", "found", "--strict", "--json")
    assert ended.returncode == 3 and "2 duplicate pairs across splits, first" in ended.stderr.splitlines()[-1]
    findings = json.loads(ended.stdout)["findings"]
    assert findings[0]["finding"] == "leak" and findings[0]["images"] == 2
    assert sorted(path.name for path in Path("found").iterdir()) == ["findings.json", "leaks.png", "pairs.csv"]
    assert "leak" in call("audit", str(tmp_path / "set")).stdout
    refused = call("run", str(tmp_path / "set"), "--strict")
    assert refused.returncode == 3 and not list(Path("runs").iterdir())


def test_only_commands_that_read_images_collect_garbage_less_often(images: Path, tiny: Path) -> None:
    code = (
        "import atexit, gc; atexit.register(lambda: print('threshold', gc.get_threshold()[0]));"
        "from baseline.cli.app import main; main()"
    )
    commands = {"run IMAGES --dry-run": 50_000, "audit IMAGES --quiet": 50_000, "predict MODEL IMAGES --quiet": 700}
    for command, threshold in commands.items():
        words = [{"IMAGES": str(images), "MODEL": str(tiny)}.get(word, word) for word in command.split()]
        ended = call(*words, code=code)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines()[-1] == f"threshold {threshold}"


@pytest.mark.parametrize(("loads", "end"), [("torch", "exit function\n"), ("nothing", "exit function\nteardown\n")])
def test_a_command_that_has_loaded_torch_ends_without_taking_it_down(loads: str, end: str) -> None:
    code = (
        "import atexit, os, sys\n"
        "from baseline.cli import app\n"
        "class Part:\n"
        "    def __del__(self): os.write(1, b'teardown\\n')\n"
        "def command():\n"
        f"    sys.modules[{loads!r}] = sys\n"
        "    command.part = Part()\n"
        "    atexit.register(lambda: print('exit function'))\n"
        "    raise SystemExit(3)\n"
        "app.main = command\n"
        "app.run_process()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, end, "")
