"""What GPU torch can use here, and what keeps it from doing so, found without loading torch, which takes seconds."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

__all__ = ["describe_gpu", "find_gpu_cautions", "find_gpu_problems", "torch_backend"]

CUDA_NEEDS = {11: (450, 5.0), 12: (525, 5.0), 13: (580, 7.5)}
"""By major version of CUDA: the first driver, and the lowest compute capability of a GPU, that torch's builds support.

Some builds for CUDA 12 leave out more GPUs. The drivers are those of NVIDIA's table of minor version compatibility.
"""


def describe_gpu() -> str:
    """Return the first GPU that torch can use, its memory and how many there are; empty without one."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "mps, the GPU of this Mac"
    if version := torch_backend("hip"):
        return f"torch was built for ROCm {version}; rocm-smi lists its GPUs"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch_backend("cuda") or visible in ("", "-1") or not (gpus := query_nvidia("name,memory.total")):
        return ""
    name, _, mebibytes = gpus[0].rpartition(", ")
    memory = f", {int(mebibytes) / 1024:.0f} GiB" if mebibytes.isdigit() else ""
    limit = "" if visible is None else f", limited by CUDA_VISIBLE_DEVICES={visible}"
    return f"cuda: {name}{memory}; {len(gpus)} in all{limit}"


def find_gpu_problems() -> Iterator[str]:
    """Yield that torch has no code for the GPU, which ends a run with an error."""
    cuda, needs = _cuda_needs()
    capabilities = [float(text) for text in query_nvidia("compute_cap") if re.fullmatch(r"\d+\.\d+", text)]
    if needs and capabilities and max(capabilities) < needs[1] and describe_gpu():
        gpu = f"the GPU has compute capability {max(capabilities)}, and torch for CUDA {cuda} needs {needs[1]}"
        yield f"{gpu}; install a build for an older CUDA, or set CUDA_VISIBLE_DEVICES=-1 to use the CPU"


def find_gpu_cautions() -> Iterator[str]:
    """Yield that a GPU is left unused, which makes runs slow, each with what to do."""
    if shutil.which("nvidia-smi") and not torch_backend("cuda") and not torch_backend("hip"):
        yield "this build of torch cannot use the NVIDIA GPU; install the one that pytorch.org shows for it"
    cuda, needs = _cuda_needs()
    driver = next(iter(query_nvidia("driver_version")), "")
    if needs and (number := re.match(r"\d+", driver)) and int(number[0]) < needs[0] and describe_gpu():
        lack = f"torch for CUDA {cuda} needs the NVIDIA driver {needs[0]} or newer, and this is {driver}"
        yield f"{lack}, so runs will use the CPU; update the driver, or install a build for an older CUDA"


def _cuda_needs() -> tuple[int, tuple[int, float] | None]:
    """Return the major version of CUDA that torch was built for, and what it needs; 0 and None without CUDA."""
    major = int(torch_backend("cuda").partition(".")[0] or 0)
    return major, CUDA_NEEDS.get(major)


def query_nvidia(fields: str) -> list[str]:
    """Return a line for each GPU with what nvidia-smi knows about it; none where it is missing or fails.

    Args:
        fields: of `nvidia-smi --help-query-gpu`, separated by commas.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    ended = subprocess.run(query, capture_output=True, text=True, check=False)
    return ended.stdout.splitlines() if ended.returncode == 0 else []


def torch_backend(name: str) -> str:
    """Return the version of CUDA (`cuda`) or ROCm (`hip`) that torch was built for; empty if it was built without.

    It is read from the file `torch/version.py`.
    """
    spec = find_spec("torch")
    file = Path(spec.origin or "").with_name("version.py") if spec else Path()
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    match = re.search(rf"^{name}\b[^=]*= '([^']+)'", text, re.MULTILINE)
    return match.group(1) if match else ""
