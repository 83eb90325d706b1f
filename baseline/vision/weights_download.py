"""Download pretrained weights that are not on this machine."""

from __future__ import annotations

from pathlib import Path
from urllib.request import urlopen

from baseline.progress import Progress
from baseline.system import all_or_none, lock_file
from baseline.vision.weights import (
    SOURCE_HUB,
    check_hash,
    hash_in_name,
    is_torchvision,
    timm_config,
    weight_urls,
)

__all__ = ["download_from_hub", "fetch"]


def download_from_hub(arch: str, folder: Path, progress: Progress) -> tuple[Path, str]:
    """Download from the Hugging Face hub, or from where torchvision publishes them, and return the file and its origin.

    Raises:
        LookupError: if no weights are published for the architecture.
    """
    hub_id = None if is_torchvision(arch) else timm_config(arch).get("hf_hub_id")
    if hub_id:
        from huggingface_hub import hf_hub_download

        progress.log(f"weights: {arch} from the Hugging Face hub ({hub_id})")
        return Path(hf_hub_download(hub_id, "model.safetensors", cache_dir=folder)), f"{SOURCE_HUB}{hub_id}"
    if not (urls := weight_urls(arch)):
        raise LookupError("no weights are published for it")
    progress.log(f"weights: {arch} from {urls[0]}")
    return fetch(urls[0], folder, progress), urls[0]


def fetch(url: str, folder: Path, progress: Progress) -> Path:
    """Download to a temporary file, verify its size and the hash in the name, and rename it; one process at a time."""
    target = folder / url.rsplit("/", 1)[-1]
    part = target.with_name(f".{target.name}.part")  # one of a process that was killed is written again
    with lock_file(part.with_suffix(".lock"), wait=lambda: None), all_or_none(part):
        if target.exists():  # of another process, meanwhile
            return target
        with urlopen(url, timeout=15) as response, part.open("wb") as file:
            total = int(response.headers.get("Content-Length") or 0)
            with progress.bar(target.name, total, "bytes") as bar:
                while block := response.read(1 << 20):
                    file.write(block)
                    bar.step(len(block))
        if 0 < total != part.stat().st_size:
            raise ConnectionError(f"the connection was lost after {part.stat().st_size:,} of {total:,} bytes")
        check_hash(part, hash_in_name(target))
        part.replace(target)
    return target
