"""Images and one finished run that many tests share.

The suite draws its own images. Where BASELINE_TEST_PHOTOS names a folder with real ones, it uses these instead, and
runs a few tests that need them. The header of the test run says which.
"""

from __future__ import annotations

import atexit
import dataclasses
import gc
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import baseline

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("BASELINE_TEST_PHOTOS") or ROOT / "no-real-images")
REAL_WEIGHTS = REAL.parent / "weights"


IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ


def pytest_configure(config: pytest.Config) -> None:
    """Lets torch have one thread; the process that only hands out tests and prints does not import it."""
    if IS_WORKER:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # what a test runs shares the processors with the others' tests
        atexit.register(_exit_at_once, os.getpid())
    if IS_WORKER or not config.getoption("numprocesses", None):
        import torch

        torch.set_num_threads(1)


def _exit_at_once(worker: int) -> None:
    """Spares a worker, though not what it forks, the seconds in which Python takes down all libraries."""
    if os.getpid() == worker:
        os._exit(0)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Looks for no garbage among what is imported, neither meanwhile nor in the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or nanobind reports what is left at the end as leaked


def pytest_report_header() -> str:
    real = (REAL / "hymenoptera_256").is_dir()
    return f"baseline from {Path(baseline.__file__).parent}; images: {REAL if real else 'drawn by the suite'}"


_spent: Counter[str] = Counter()
_counted: Counter[str] = Counter()
_planned: Counter[str] = Counter()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    global _terminal
    _terminal = node.config.pluginmanager.get_plugin("terminalreporter")
    _planned.clear()  # each process has collected the same
    _planned.update(node_id.split("::")[0] for node_id in ids)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Adds up the seconds of each file; where several processes run them, a line tells that a file has ended."""
    file = report.nodeid.split("::")[0]
    _spent[file] += report.duration
    if report.when == "teardown":
        _counted[file] += 1
        if _counted[file] == _planned[file]:
            done, total = _counted.total(), _planned.total()
            _terminal.write_line(f"\n[{done / total:4.0%}] {file}: {_counted[file]} tests, {_spent[file]:.1f} s")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names the files that took longest, with their fixtures."""
    if len(_spent) > 1:
        terminalreporter.section("slowest test files")
        for file, seconds in _spent.most_common(12):
            terminalreporter.line(f"{seconds:7.1f} s  {_counted[file]:4} tests  {file}")
        terminalreporter.line(f"{_spent.total():7.1f} s  {_counted.total():4} tests  in {len(_spent)} files")


@pytest.fixture(scope="session")
def _new_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Numbered folders; `mktemp` would list those of all earlier tests to find the next number."""
    folder = tmp_path_factory.mktemp("places")
    return (folder / str(number) for number in count())


@pytest.fixture(autouse=True)
def _own_places(_new_places: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test has a cache and a working folder of its own, which are removed after it."""
    folder = next(_new_places)
    for name in ("home", "here"):
        (folder / name).mkdir(mode=0o700, parents=True)
    monkeypatch.setenv("BASELINE_HOME", str(folder / "home"))
    monkeypatch.chdir(folder / "here")
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def open_files_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses to rename, replace or remove what this process has open or mapped, or a folder of it, as Windows does."""

    def opened() -> Iterator[str]:
        for descriptor in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                yield str(descriptor.readlink())
        for line in Path("/proc/self/maps").read_text().splitlines():
            yield line[73:]

    def refuse(function: Any, *paths: Any, **options: Any) -> Any:
        targets = [os.path.realpath(path) for path in paths]
        files = [file for file in opened() if os.path.isfile(file)]
        if any(file == target or file.startswith(f"{target}/") for file in files for target in targets):
            raise PermissionError(13, "The process cannot access the file", str(paths[0]))
        return function(*paths, **options)

    if not Path("/proc/self/maps").exists():
        pytest.skip("the system does not list open files")
    for name in ("rename", "replace", "unlink", "remove"):
        monkeypatch.setattr(os, name, partial(refuse, getattr(os, name)))
    monkeypatch.setattr(shutil, "_use_fd_functions", False)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes, 24 images each: real ants and bees where they are at hand."""
    from insects import draw

    folder = tmp_path_factory.mktemp("images")
    for name in ("ants", "bees"):
        (folder / name).mkdir()
        real = sorted((REAL / "hymenoptera_256" / "train" / name).glob("*.jpg"))[:24]
        for number in range(24):
            if real:
                shutil.copy(real[number], folder / name / f"{number:02}.jpg")
            else:
                draw(name, number).save(folder / name / f"{number:02}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def drawn_images(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder with images that are drawn in any case."""
    if not (REAL / "hymenoptera_256").is_dir():
        return images
    from insects import draw

    folder = tmp_path_factory.mktemp("drawn")
    for name in ("ants", "bees"):
        (folder / name).mkdir()
        for number in range(24):
            draw(name, number).save(folder / name / f"{number:02}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def rubbish(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 16 images, one of them plastic: real rubbish where it is at hand."""
    folder = tmp_path_factory.mktemp("rubbish")
    for name, other in (("glass", "ants"), ("paper", "bees"), ("plastic", "ants")):
        (folder / name).mkdir()
        real = sorted((REAL / "trashnet_256" / name).glob("*.jpg")) or sorted((images / other).iterdir())
        for file in real[:16]:
            shutil.copy(file, folder / name / file.name)
    return folder


@pytest.fixture(scope="session")
def grouped(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the shared images, three to a photographer."""
    table = tmp_path_factory.mktemp("grouped") / "images.csv"
    rows = [
        f"{path},{path.parent.name},{path.parent.name}-{int(path.stem) // 3}" for path in sorted(images.rglob("*.jpg"))
    ]
    table.write_text("\n".join(["path,label,photographer", *rows]) + "\n")
    return table


@contextmanager
def mounted_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk in memory of this size, such as 6m, on a new folder; skip the test where that is not possible."""
    folder.mkdir()
    mount = shutil.which("mount") or "mount"
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def shortened(name: str) -> dict[str, Any]:
    """What to change so that a named recipe ends in seconds: 48 px, the embedded body, an epoch a stage, no search
    over layers that are slow."""
    from baseline.recipe.auto import EMBEDDED_ARCH

    recipe = baseline.load_recipe(name)
    preset = "quick" if "quick" in recipe.presets else "standard"
    stages = tuple(
        dataclasses.replace(stage, epochs=1, steps=0, lr=stage.lr if stage.is_head else 1e-3)
        for stage in recipe.with_preset(preset).stages
    )
    return {"preset": preset, "stages": stages, "image_size": 48, "arch": EMBEDDED_ARCH}


def two_stage_plan(head: dict[str, Any], groups: dict[str, Any], **settings: Any) -> str:
    """A recipe file of 48 pixels that trains the head, then the last layer groups."""
    lines = {"image_size": 48, **settings}, {"trains": "head", **head}, groups
    tables = ["".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items()) for table in lines]
    return "[[stage]]\n".join(tables)


@pytest.fixture(scope="session")
def pretrained() -> baseline.Recipe:
    """A recipe that ends in seconds: a head stage and a stage over the last groups of the embedded body, at 48 px."""
    return baseline.load_recipe("default").changed(
        image_size=48,
        tta_choice="always",
        augment=baseline.Augment(),
        presets={},
        stages=(baseline.Stage("head", 4, "find", views=("flip",), augment=False), baseline.Stage(3, 1, (1e-4, 1e-3))),
    )


@pytest.fixture(scope="session")
def body(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The settings of a body of 0.1 million parameters, whose weights are random, for tests that do not depend on the
    body: it trains in half the time of the embedded one."""
    import timm  # after baseline, without which it cannot be imported beside torch 2.4
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "test_efficientnet.safetensors"
    save_file(timm.create_model("test_efficientnet", num_classes=0).state_dict(), weights)
    return {"arch": "test_efficientnet", "weights": str(weights)}


@pytest.fixture(scope="session")
def small(pretrained: baseline.Recipe, body: dict[str, str]) -> baseline.Recipe:
    """The same with the small body."""
    return pretrained.changed(**body)


@pytest.fixture(scope="session")
def deterministic(small: baseline.Recipe) -> baseline.Recipe:
    """A recipe whose results repeat, because no number format is chosen by timing, and whose stages are all trained on
    cached features, because images are only flipped."""
    return small.changed(
        frozen_precision="float32",
        augment={"flip": True, "rotate": 0.0, "zoom": 1.0, "lighting": 0.0, "warp": 0.0},
        stages=(baseline.Stage("head", 2, 1e-2, augment=False), small.stages[1]),
    )


def leave_out_pages(patch: pytest.MonkeyPatch) -> None:
    """Lets runs end without a page, whose pictures take longer than a short training."""
    from baseline.report import page

    patch.setattr(page, "write_report", lambda folder, progress=None: Path(folder) / "report.html")


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_pages(monkeypatch)


@pytest.fixture(scope="session")
def done(images: Path, pretrained: baseline.Recipe, tmp_path_factory: pytest.TempPathFactory) -> baseline.Baseline:
    """One finished run."""
    return baseline.make_baseline(
        images, pretrained, out=tmp_path_factory.mktemp("runs") / "done", progress=baseline.Progress()
    )


@pytest.fixture(scope="session")
def drawn_run(
    done: baseline.Baseline,
    images: Path,
    drawn_images: Path,
    pretrained: baseline.Recipe,
    tmp_path_factory: pytest.TempPathFactory,
) -> baseline.Baseline:
    """One finished run on drawn images."""
    if drawn_images == images:
        return done
    out = tmp_path_factory.mktemp("runs") / "drawn"
    return baseline.make_baseline(drawn_images, pretrained, out=out, progress=baseline.Progress())


@pytest.fixture(scope="session")
def tiny(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of 0.5 MB that predicts at once: an untrained network of three classes at 48 pixels."""
    import numpy as np
    import torch

    from baseline.data.image import load_square
    from baseline.evaluation.golden import golden_outputs
    from baseline.vision.model_folder import save_network
    from baseline.vision.network import build_network

    facts = {
        "arch": "test_efficientnet", "head": "linear", "classes": ["ants", "bees", "wasps"], "image_size": 48,
        "resize": "squish", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "tta": ("flip",), "task": "single",
        "threshold": 0.5, "temperature": 1.7, "crop": 1.0, "precision": "float32",
    }  # fmt: skip
    torch.manual_seed(1)
    model = build_network(facts["arch"], 3, None)[0]
    kept = np.stack([load_square(path, 48, "squish") for path in sorted(images.rglob("*.jpg"))])
    for module in model.modules():
        module.momentum = 1.0
    with torch.no_grad():  # BatchNorm takes the images' own statistics, so that they differ in what is predicted
        model.train()(torch.from_numpy(kept).permute(0, 3, 1, 2) / 128 - 1)
        model[1][-1].weight.mul_(0.1)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_network(model.eval(), facts, folder, golden_outputs(model, facts, kept[:4]))
    return folder


@pytest.fixture(scope="session")
def settled(images: Path, small: baseline.Recipe) -> tuple[baseline.Recipe, object]:
    """The small recipe settled on the shared images, and the image table with its splits."""
    table = baseline.split(baseline.image_table(images), small)
    return baseline.resolve(small, table)[0], table


@pytest.fixture
def learn(settled: tuple[baseline.Recipe, object], tmp_path: Path) -> object:
    """A fresh Learner on the shared images."""
    import torch

    recipe, table = settled
    torch.manual_seed(0)
    return baseline.learner(baseline.dataloaders(table, recipe, path=tmp_path), recipe, path=tmp_path)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; tests that want it are skipped where it is not installed."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as playwright:
        options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=chromium, args=options)
        yield opened
        opened.close()
