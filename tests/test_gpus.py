"""GPUs, with stand-ins for them, as the machines that run the tests have none."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from baseline.cli import gpus
from baseline.cli.app import describe_device_error
from baseline.cli.doctor import check_environment, find_cautions, find_problems
from baseline.parallel import distributed
from baseline.parallel.memory import named_memory_errors, release_batch
from baseline.training import step_timer

SMI = """#!/bin/sh
case "$1" in
*name*) echo "Tesla T4, 15360"; echo "Tesla T4, 15360" ;;
*driver_version*) echo "{driver}" ;;
*compute_cap*) echo "{capability}" ;;
esac
exit {code}
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Returns what doctor says of a machine with GPUs."""

    def examine(cuda: str, driver: str, capability: str, visible: str | None = None, code: int = 0) -> dict[str, Any]:
        program = tmp_path / "nvidia-smi"
        program.write_text(SMI.format(driver=driver, capability=capability, code=code))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr(gpus, "torch_backend", lambda name: cuda if name == "cuda" else "")
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        names = ("CUDA", "GPU", "driver")
        problems, cautions = [
            [line for line in lines if any(name in line for name in names)]
            for lines in (find_problems(), find_cautions())
        ]
        return {"device": dict(check_environment())["device"], "problems": problems, "cautions": cautions}

    return examine


NEW, CARDS = "580.65.06", "cuda: Tesla T4, 15 GiB; 2 in all"


@pytest.mark.skipif(os.name != "posix", reason="the program that stands in is a shell script")
@pytest.mark.parametrize(
    "cuda, driver, capability, visible, device, problem, caution",
    [
        ("13.2", NEW, "7.5", None, CARDS, "", ""),
        ("12.1", "525.60", "6.0", None, CARDS, "", ""),
        ("13.2", NEW, "7.5", "1", f"{CARDS}, limited by CUDA_VISIBLE_DEVICES=1", "", ""),
        ("13.2", "535.104", "6.0", "", "cpu", "", ""),
        ("13.2", NEW, "6.0", None, CARDS, "the GPU has compute capability 6.0, and torch for CUDA 13 needs 7.5; ", ""),
        ("13.2", "535.104", "7.5", None, CARDS, "", "torch for CUDA 13 needs the NVIDIA driver 580 or newer, and this"),
        ("", NEW, "7.5", None, "cpu", "", "this build of torch cannot use the NVIDIA GPU"),
    ],
)  # fmt: skip
def test_doctor_knows_what_keeps_torch_from_a_gpu(
    machine: Callable[..., dict[str, Any]], cuda: str, driver: str, capability: str, visible: str | None, device: str,
    problem: str, caution: str,
) -> None:  # fmt: skip
    state = machine(cuda, driver, capability, visible)
    assert state["device"] == device
    for lines, expected in ((state["problems"], problem), (state["cautions"], caution)):
        assert len(lines) == bool(expected) and all(line.startswith(expected) for line in lines), lines


@pytest.mark.skipif(os.name != "posix", reason="the program that stands in is a shell script")
def test_a_driver_that_does_not_answer_is_no_gpu(machine: Callable[..., dict[str, Any]]) -> None:
    assert machine("13.2", NEW, "7.5", code=9) == {"device": "cpu", "problems": [], "cautions": []}


MEMORY = [
    "MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB).", "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
]  # fmt: skip


@pytest.mark.parametrize("message", MEMORY)
def test_every_error_about_the_memory_of_a_device_is_one(message: str) -> None:
    with pytest.raises(torch.OutOfMemoryError), named_memory_errors():
        raise RuntimeError(message)


def test_other_errors_of_a_device_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="device-side assert") as caught, named_memory_errors():
        raise RuntimeError("CUDA error: device-side assert triggered")
    assert not isinstance(caught.value, torch.OutOfMemoryError)
    assert describe_device_error(caught.value) == describe_device_error(ValueError(MEMORY[0])) == ""


def test_errors_of_a_gpu_end_a_command_with_one_line() -> None:
    message = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.74 GiB of which 9 MiB is"
    )
    for error in (torch.OutOfMemoryError(message), *map(RuntimeError, MEMORY[:2])):
        assert describe_device_error(error).startswith("The GPU has too little memory. Pass a smaller --batch-size")
    error = RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors")
    assert describe_device_error(error).startswith("This build of torch has no code for this GPU.")


def test_memory_of_apples_gpus_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[bool] = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: released.append(True))
    release_batch(SimpleNamespace(model=torch.nn.Linear(1, 1)))
    assert released == [True]


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_what_a_gpu_still_computes_counts_as_the_step(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(0.0)  # only the GPU takes time
    seconds = [next(clock)]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[-1])
    monkeypatch.setattr(getattr(torch, device), "synchronize", lambda: seconds.append(next(clock)))
    monkeypatch.setattr(step_timer, "device_of", lambda model: torch.device(device))
    timer = step_timer.StepTimer({})
    timer.learn = SimpleNamespace(model=None, training=True)
    timer.before_fit()
    for _ in range(2):
        timer.before_batch()
        timer.after_loss()
        timer.after_backward()
        timer.after_batch()
    assert timer.seconds["step"] == sum(timer.seconds.values()) == 2


def test_processes_do_not_use_nccl_where_torch_lacks_it() -> None:
    assert distributed.choose_backend(4) == "cpu:gloo,cuda:nccl"
    assert distributed.choose_backend(4, has_nccl=False) == "gloo"


def test_gradients_of_a_device_that_gloo_does_not_know_are_averaged_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: devices.append(tensor.device.type))
    with FakeTensorMode():
        distributed.all_reduce_mean([torch.empty(2, 3, device="meta"), torch.empty(4, device="meta")])
    distributed.all_reduce_mean([ones := torch.ones(2)])
    assert devices == ["cpu", "cpu"] and ones.tolist() == [0.5, 0.5]  # half of the sum, which stays that of one process
