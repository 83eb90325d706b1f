"""Installing the package: extras that are not installed, and bounds that leave other packages as they are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from baseline.errors import install_command
from baseline.vision.weights import PACKAGES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_a_clone_is_named_in_the_command_that_installs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(rf"pip install (-e )?'{re.escape(str(ROOT))}\[serve\]'", install_command("serve"))
    monkeypatch.chdir(ROOT)
    assert re.fullmatch(r"pip install (-e )?'\.\[serve\]'", install_command("serve"))


def copy_of_package(folder: Path, direct_url: dict[str, object] | None) -> None:
    """Lay the package and its metadata into a folder, as pip does."""
    metadata = folder / "fastai_baseline-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "baseline").symlink_to(ROOT / "baseline")
    extras = [f"Requires-Dist: {need}; extra == '{name}'"
              for name, needs in PROJECT["optional-dependencies"].items() for need in needs]  # fmt: skip
    lines = ["Metadata-Version: 2.3", "Name: fastai-baseline", "Version: 0.1.0", *extras]
    (metadata / "METADATA").write_text("\n".join(lines) + "\n")
    if direct_url is not None:
        (metadata / "direct_url.json").write_text(json.dumps(direct_url))


def command_in(folder: Path, extra: str, cwd: Path) -> str:
    code = f"from baseline.errors import install_command; print(install_command({extra!r}))"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=cwd).stdout.strip()


def test_an_installed_copy_names_its_clone_or_the_packages_themselves(tmp_path: Path) -> None:
    clone = tmp_path / "my clone"
    clone.mkdir()
    (clone / "pyproject.toml").write_text("")
    place = {"url": clone.as_uri(), "dir_info": {}}
    copy_of_package(tmp_path / "installed", place)
    assert command_in(tmp_path / "installed", "serve", tmp_path) == f"pip install '{clone}[serve]'"
    assert command_in(tmp_path / "installed", "serve", clone) == "pip install '.[serve]'"
    copy_of_package(tmp_path / "editable", {**place, "dir_info": {"editable": True}})
    assert command_in(tmp_path / "editable", "heif", clone) == "pip install -e '.[heif]'"
    copy_of_package(tmp_path / "from_index", None)
    (clone / "pyproject.toml").unlink()
    for name in ("from_index", "installed"):
        assert command_in(tmp_path / name, "parquet", tmp_path) == "pip install 'pyarrow>=18.1'"
        assert command_in(tmp_path / name, "dicom", tmp_path) == "pip install 'pydicom>=3.0.2' 'python-gdcm>=3.2.6'"


def test_a_server_without_its_packages_is_one_line(tmp_path: Path) -> None:
    code = (
        "import sys; from importlib.machinery import PathFinder\n"
        "class Hide(PathFinder):\n"
        "    find_spec = classmethod(lambda cls, name, *rest: None if name in ('uvicorn', 'starlette') else "
        "PathFinder.find_spec(name, *rest))\n"
        "sys.meta_path[sys.meta_path.index(PathFinder)] = Hide\n"
        "from baseline.cli.app import main\n"
        "sys.argv = ['baseline', 'serve', 'run']; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert f"The server needs starlette, uvicorn: {install_command('serve')}." in ended.stderr


@pytest.mark.parametrize("name", sorted(PROJECT["optional-dependencies"]))
def test_no_message_names_the_package_as_if_an_index_had_it(name: str) -> None:
    for path in (ROOT / "baseline").rglob("*.py"):
        assert f"fastai-baseline[{name}]" not in path.read_text(), path


def test_every_package_of_weights_is_a_dependency_or_in_the_extra() -> None:
    needs = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["bodies"]]
    assert {package for package, _ in PACKAGES.values()} <= {need.partition(">=")[0] for need in needs}
