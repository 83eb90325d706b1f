"""What Apple's GPUs and Windows lack is not used, or only where its absence is expected. Read here, not run there."""

from __future__ import annotations

import ast
import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from test_layers import MODULES, PACKAGE
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import baseline
from baseline import system
from baseline.data.sources.match_images import match_rows
from baseline.data.sources.place import Columns
from baseline.errors import BaselineError
from baseline.evaluation.predict import predict_probabilities
from baseline.parallel.distributed import choose_backend
from baseline.recipe.auto import resolve_precision
from baseline.runs import manifest
from baseline.vision.learner import mixed_precision
from baseline.vision.rng import get_rng_state, set_rng_state

POSIX_MODULES = {"fcntl", "grp", "pwd", "resource", "termios"}

POSIX_NAMES = """
os.fork os.forkpty os.getuid os.geteuid os.getgid os.getloadavg os.killpg os.mkfifo os.nice os.posix_fadvise
os.sched_getaffinity os.sendfile os.setsid os.statvfs os.sysconf os.uname os.wait os.waitpid os.wait4 signal.SIGALRM
signal.SIGCHLD signal.SIGHUP signal.SIGKILL signal.SIGPIPE signal.SIGQUIT signal.SIGUSR1 signal.SIGUSR2 signal.alarm
signal.pthread_sigmask signal.setitimer
"""


def uses(path: Path) -> Iterator[tuple[ast.AST, str, list[ast.AST]]]:
    """Yield each use of something that only POSIX has, its name, and what it is inside of."""

    def walk(node: ast.AST, above: list[ast.AST]) -> Iterator[tuple[ast.AST, str, list[ast.AST]]]:
        if isinstance(node, ast.Import):
            yield from ((node, alias.name, above) for alias in node.names if alias.name in POSIX_MODULES)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in POSIX_NAMES.split():
            yield node, ast.unparse(node), above
        for child in ast.iter_child_nodes(node):
            yield from walk(child, [*above, node])

    yield from walk(ast.parse(path.read_text()), [])


def is_guarded(name: str, above: list[ast.AST]) -> bool:
    """Whether an error is caught around it, or the function asks whether there is such a name."""
    if any(isinstance(node, ast.Try) for node in above):
        return True
    functions = [node for node in above if isinstance(node, ast.FunctionDef)]
    module, _, attribute = name.partition(".")
    return any(f"hasattr({module}, '{attribute}')" in ast.unparse(function) for function in functions)


def test_what_only_posix_has_is_guarded() -> None:
    found = [(path, name, is_guarded(name, above)) for path in MODULES for _, name, above in uses(path)]
    assert {"fcntl", "os.sysconf", "os.getloadavg"} <= {name for _, name, _ in found}
    assert not [f"{path.relative_to(PACKAGE)}: {name}" for path, name, guarded in found if not guarded]


def test_processes_are_never_forked() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and "get_context" in ast.unparse(node.func):
                assert ast.unparse(node.args[0]) == "'spawn'", path
            assert not (isinstance(node, ast.Attribute) and node.attr in ("fork", "set_start_method")), path


def test_text_files_are_read_and_written_in_utf_8() -> None:
    """Windows has another default."""
    needed, calls = {"read_text": 1, "write_text": 2}, 0
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in needed:
                calls += 1
                named = any(keyword.arg == "encoding" for keyword in node.keywords)
                assert named or len(node.args) >= needed[node.func.attr], f"{path}: {ast.unparse(node)}"
    assert calls > 10


FLOAT64_ON_CPU = {"deploy/export_module.py", "deploy/export_timm.py", "runs/probe_reference.py"}
"""Where tensors are on the CPU without saying so: an exported graph, and features in memory."""


def test_float64_is_only_used_on_the_cpu() -> None:
    for path in MODULES:
        if str(path.relative_to(PACKAGE)) in FLOAT64_ON_CPU:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "double":
                assert ast.unparse(node.func.value).endswith(".cpu()"), f"{path}: {ast.unparse(node)}"


class NoFloat64(TorchDispatchMode):
    """Raises an error for float64 on a device other than the CPU, as Apple's GPUs do."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.device.type != "cpu" and value.dtype == torch.float64:
                raise TypeError("float64 is not supported on this device")
        return result


@pytest.mark.parametrize("many", [False, True])
def test_prediction_works_on_a_device_without_float64(many: bool) -> None:
    with FakeTensorMode(), NoFloat64():  # "meta": torch 2.4 asks the driver about tensors of "cuda", even fake ones
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3, device="meta"))
        images = torch.empty(2, 3, 4, 4, device="meta")
        with pytest.raises(TypeError, match="not supported"):
            model(images).double()
        result = predict_probabilities(model, images, ("flip",), many=many, numbers=mixed_precision("float32", "mps"))
        assert result.device.type == "cpu" and result.dtype == torch.float64 and result.shape == (2, 2, 3)


def test_training_and_evaluation_have_the_same_precision_on_apples_gpus() -> None:
    assert resolve_precision("auto", "mps") == ("float32", "mixed precision needs CUDA")
    assert resolve_precision("auto", "cuda")[0] == "float16"
    for name in ("float16", "bfloat16"):
        with pytest.raises(BaselineError, match=f"precision {name} needs a GPU with CUDA; this run is on mps"):
            resolve_precision(name, "mps")
    for name in ("float32", "float16", "bfloat16"):
        with mixed_precision(name, "mps"):
            assert not torch.is_autocast_enabled("cpu")
    with mixed_precision("bfloat16", "cpu"):
        assert torch.is_autocast_enabled("cpu")


def test_the_device_of_a_run_has_a_name_on_apples_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CPU, " in manifest.describe_device()
    monkeypatch.setattr(manifest, "device_type", lambda: "mps")
    monkeypatch.setattr(manifest.platform, "processor", lambda: "arm")
    assert manifest.describe_device() == "arm GPU (mps)"


def test_memory_is_known_without_sysconf(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(status: object) -> None:
        values = ctypes.cast(status, ctypes.POINTER(ctypes.c_ulonglong))  # type: ignore[arg-type]
        assert values[0] & 0xFFFFFFFF == 64, "the size of the structure"
        values[1] = 8 * 2**30

    assert system.total_memory_bytes() > 2**28
    monkeypatch.delattr(os, "sysconf")
    kernel = SimpleNamespace(GlobalMemoryStatusEx=fill)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    assert system.total_memory_bytes() == 8 * 2**30


def test_a_split_file_of_windows_restores_its_splits(images: Path) -> None:
    paths = pd.Series([str(path) for path in sorted(images.rglob("*.jpg"))])
    listed = [str(PureWindowsPath("C:/old images", *Path(path).parts[-2:])) for path in paths]
    assert "\\" in listed[0]
    order = list(reversed(range(len(listed))))
    rows = match_rows(paths, pd.Series([listed[row] for row in order]), "split.csv")
    assert rows.tolist() == order


WITH_SLASHES = ("path.name", "name", "folders.pop()")
"""What a path that has slashes on every system comes from."""


def test_a_folder_that_paths_begin_with_ends_in_the_separator_of_the_system() -> None:
    """Paths of images have backslashes on Windows: their prefix is `f"{folder}{os.sep}"`."""
    prefixes = [(path, name) for path in MODULES for name in re.findall(r'f"\{([^{}"]*)\}/"', path.read_text())]
    assert len(prefixes) >= 4
    assert not [f"{path.relative_to(PACKAGE)}: {name}" for path, name in prefixes
                if "relative" not in name and name not in WITH_SLASHES]  # fmt: skip


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_a_table_may_separate_folders_as_windows_does(images: Path, tmp_path: Path, separator: str) -> None:
    names = [path.relative_to(images) for path in sorted(images.rglob("*.jpg"))]
    lines = [f"{separator.join(name.parts)},{name.parent.name}" for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *lines]) + "\n")
    table = baseline.image_table(tmp_path / "labels.csv", columns=Columns(image_dir=str(images)))
    assert sorted(table["path"]) == sorted(str(images / name) for name in names)


def test_random_states_of_more_gpus_than_there_are_can_be_restored() -> None:
    state = get_rng_state()
    numbers = torch.rand(3)
    set_rng_state({**state, "cuda": [[1, 2, 3]] * 8})
    assert torch.equal(torch.rand(3), numbers)


def test_processes_that_share_a_gpu_do_not_use_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert choose_backend(1) == choose_backend(0) == "gloo" and "nccl" in choose_backend(4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "nccl" in choose_backend(2)


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    script = PACKAGE.parent / "benchmarks" / "gpu.py"
    command = [sys.executable, "-W", "ignore", str(script), "--smoke", "--out", str(tmp_path / "gpu.json")]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["resume"]["resumed"] and parts["resume"]["largest_difference"] == 0
    assert parts["fastai tf_efficientnet_lite0"]["images_per_s"] and parts["saved model"]["largest_difference"] < 1e-6
    assert parts["two processes on one device"]["device"].startswith("2 x ")
