"""Make pip believe that packages are installed, by their metadata alone; then say which an install would change.

Usage: claim_installed.py IMAGE.json VENV [CHANGES.json], where both files are reports of `pip install --report`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

UNTOUCHED = {"torch", "torchvision", "numpy", "pandas", "pillow"}
"""Packages of an image that an install must not change: they are large, and everything else there is built on them."""


def packages(report: str) -> dict[str, dict[str, object]]:
    """Return the metadata of the packages in a report, by name."""
    entries = json.loads(Path(report).read_text())["install"]
    return {entry["metadata"]["name"].lower().replace("_", "-"): entry["metadata"] for entry in entries}


def claim(image: dict[str, dict[str, object]], venv: Path) -> None:
    """Write a `METADATA` file for each package, with its version and what it requires."""
    (site_packages,) = venv.glob("lib/python*/site-packages")
    for name, metadata in image.items():
        folder = site_packages / f"{name.replace('-', '_')}-{metadata['version']}.dist-info"
        folder.mkdir()
        needs = [f"Requires-Dist: {need}" for need in metadata.get("requires_dist", ())]
        extras = [f"Provides-Extra: {extra}" for extra in metadata.get("provides_extra", ())]
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {metadata['version']}", *extras, *needs]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        (folder / "INSTALLER").write_text("pip\n")
        (folder / "RECORD").write_text("")


def main() -> int:
    image = packages(sys.argv[1])
    if len(sys.argv) == 3:
        claim(image, Path(sys.argv[2]))
        return 0
    changes = packages(sys.argv[3])
    changed = sorted(name for name in changes if name in image)
    print(f"\n{Path(sys.argv[2]).name}: {len(image)} packages, of which {len(changed)} would change")
    for name in sorted(UNTOUCHED | set(changed)):
        after = changes.get(name, image[name])["version"]
        print(f"  {name:18} {image[name]['version']:12} {'-> ' + str(after) if name in changes else 'unchanged'}")
    print(f"  {len(changes) - len(changed)} packages that the list of the image leaves out, or that are new there")
    return int(bool(UNTOUCHED & set(changed)))


if __name__ == "__main__":
    raise SystemExit(main())
