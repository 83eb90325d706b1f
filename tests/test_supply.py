"""What comes with an installation, where it connects to, and what it tells: licences, no telemetry, no secrets.

`SECURITY.md` names what is promised, with the test of each promise.
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

import pytest

import baseline

ROOT = Path(__file__).parents[1]

SECRETS = {
    name: f"s3cret-{number}-{name[::-1].lower()}"
    for number, name in enumerate(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD",
                                   "KAGGLE_KEY", "AWS_SECRET_ACCESS_KEY"))
}  # fmt: skip

WATCHED = """
import json, os, socket, sys
seen = []
def watch(event, arguments):
    if not event.startswith("socket.") or event in ("socket.__new__", "socket.gethostname"):
        return
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"):
        if arguments[0].family == socket.AF_UNIX:
            return
        if event == "socket.bind" and arguments[1][0] in ("::1", "127.0.0.1"):  # urllib3 asks what IPv6 there is
            return
    seen.append(f"{event} {arguments}")
    raise OSError("no connection is allowed here")
sys.addaudithook(watch)
import baseline
from baseline import Augment, Stage
from baseline.cli.app import main
images, out = sys.argv[1:3]
def command(*words):
    sys.argv = ["baseline", *words]
    try:
        main()
    except SystemExit as ended:
        return ended.code
if os.environ.get("CALLS_HOME"):
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    except OSError:
        pass
recipe = baseline.load_recipe("default").changed(
    image_size=48, augment=Augment(), presets={}, stages=(Stage("head", 1, 1e-3),), tta=(), log=("csv", "tensorboard"))
if not os.environ.get("CALLS_HOME"):
    command("doctor")
    for words in (["run", "nothing-of-the-kind"], ["predict", "nowhere", images], ["push", "nowhere", "some/one"]):
        assert command(*words) == 2, words
    done = baseline.make_baseline(images, recipe, out=out)
    for words in (["predict", out, images, "--out", out + "/more.csv"], ["report", out], ["audit", images],
                  ["check", out]):
        assert not command(*words), words
print("SEEN " + json.dumps(seen))
"""


class Watched(NamedTuple):
    folder: Path
    printed: str
    seen: list[str]


def watched(images: Path, folder: Path, **more: str) -> Watched:
    """A run, its prediction, report and audit, and commands that fail, with secrets in the environment."""
    environment = {**os.environ, **SECRETS, "HF_HUB_OFFLINE": "0", "BASELINE_HOME": str(folder / "home"), **more}
    environment["PYTHONPATH"] = str(Path(baseline.__file__).parents[1])
    command = [sys.executable, "-c", WATCHED, images, folder / "run"]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (line,) = re.findall("^SEEN (.*)$", ran.stdout, re.MULTILINE)
    return Watched(folder, ran.stdout + ran.stderr, json.loads(line))


@pytest.fixture(scope="module")
def ran(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return watched(images, tmp_path_factory.mktemp("watched"))


def test_a_run_predict_report_audit_and_check_ask_nothing_of_any_network(ran: Watched) -> None:
    assert ran.seen == []
    assert (ran.folder / "run" / "report.html").exists() and (ran.folder / "run" / "more.csv").exists()


def test_a_connection_would_have_been_seen(images: Path, tmp_path: Path) -> None:
    assert any("192.0.2.1" in event for event in watched(images, tmp_path, CALLS_HOME="1").seen)


def test_no_secret_of_the_environment_is_written_or_said(ran: Watched) -> None:
    assert "There is no recipe" in ran.printed, "the commands that fail did"
    files = [file for file in ran.folder.rglob("*") if file.is_file()]
    assert {"manifest.json", "report.html", "log.csv", "README.md", "model.json"} <= {file.name for file in files}
    for name, secret in SECRETS.items():
        assert secret not in ran.printed, name
        assert not [file for file in files if secret.encode() in file.read_bytes()], name


# ---- licences -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def licences() -> ModuleType:
    pytest.importorskip("packaging")
    spec = importlib.util.spec_from_file_location("licences", ROOT / "docs" / "licences.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["licences"] = module
    spec.loader.exec_module(module)
    return module


def test_every_package_that_is_needed_has_a_known_licence(licences: ModuleType) -> None:
    found = licences.packages()
    assert len(found) > 40 and {"fastai", "torch", "pillow", "numpy"} <= {each.name for each in found}
    assert [each.fault for each in found if each.fault] == []


@pytest.mark.parametrize("licence", ["GPL-3.0-only", "MIT AND AGPL-3.0", "GNU Lesser General Public License", ""])
def test_a_forbidden_or_unknown_licence_is_a_fault(licences: ModuleType, licence: str) -> None:
    assert licences.Package("thing", "1", licence, True).fault.startswith("thing 1: ")


def test_the_table_has_every_package_that_this_one_names() -> None:
    table = (ROOT / "docs" / "licences.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split("[>=<]", each)[0].replace("_", "-") for each in project["dependencies"]}
    assert {name for name in names if f"| {name} | yes |" not in table} == set()


def test_every_dependency_has_a_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for each in chain(project["dependencies"], *project["optional-dependencies"].values()):
        assert re.fullmatch(r"[\w-]+(\[\w+\])?>=\d[\w.]*(,<\d[\w.]*)?", each), each


def test_the_tests_that_security_md_names_are_there() -> None:
    named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 15
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(), test
