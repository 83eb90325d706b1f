"""Disk space that an install takes: the packages without extras, then what each extra adds, in megabytes.

Counts the files of what is installed here: `python benchmarks/install_size.py` in an environment with the extras.
"""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "fastai-baseline"
GPU_PREFIXES = ("nvidia-", "cuda-", "triton")


def closure(
    name: str, extras: tuple[str, ...] = (), seen: dict[str, Distribution] | None = None
) -> dict[str, Distribution]:
    """Return the installed distributions that a requirement brings, by name."""
    found = {} if seen is None else seen
    try:
        dist = distribution(name)
    except PackageNotFoundError:
        return found
    known = canonicalize_name(name) in found
    found[canonicalize_name(name)] = dist
    for line in dist.requires or ():
        need = Requirement(line)
        active = [extra for extra in ("", *extras) if need.marker is None or need.marker.evaluate({"extra": extra})]
        of_extra = need.marker is not None and "extra" in str(need.marker)
        if active and (of_extra or not known) and (canonicalize_name(need.name) not in found or need.extras):
            closure(need.name, tuple(need.extras), found)
    return found


def megabytes(names: set[str], dists: dict[str, Distribution]) -> float:
    files = {Path(str(file.locate())) for name in names for file in dists[name].files or ()}
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def main() -> None:
    base = closure(PROJECT)
    gpu = {name for name in base if name.startswith(GPU_PREFIXES)}
    print(f"{'default':22} {len(base):4} packages {megabytes(set(base), base):8,.0f} MB")
    print(f"{'of which for GPUs':22} {len(gpu):4} packages {megabytes(gpu, base):8,.0f} MB")
    extras = sorted(set(distribution(PROJECT).metadata.get_all("Provides-Extra") or ()))
    for extra in extras:
        more = closure(PROJECT, (extra,))
        added = set(more) - set(base)
        missing = [line for line in distribution(PROJECT).requires or () if f"'{extra}'" in line.replace('"', "'")
                   and not _is_installed(Requirement(line).name)]  # fmt: skip
        note = f"  (not installed here: {len(missing)})" if missing else ""
        print(f"{extra:22} {len(added):4} packages {megabytes(added, more):8,.0f} MB{note}")
    largest = sorted(base, key=lambda name: -megabytes({name}, base))[:12]
    print("largest:", ", ".join(f"{name} {megabytes({name}, base):,.0f} MB" for name in largest))


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
