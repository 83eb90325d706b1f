"""Measures training on one GPU, and checks what only a GPU can show, in at most eight minutes. It installs nothing.

python benchmarks/gpu.py IMAGES [--out gpu.json]     # a folder of classes, or an archive of CIFAR-10
python benchmarks/gpu.py --smoke                     # every part that a CPU can run, on a few drawn images

Parts: training of resnet50 and tf_efficientnet_lite0 with random weights at 128 px, in float32, float16 and bfloat16,
beside fastai's own loaders with `to_fp16` (images/s of an epoch, share of loading, peak memory); halved batches when
memory runs out, with a real limit of the allocator; a run that is interrupted and resumed; a saved model on the GPU and
on the CPU; two processes on one GPU. A part that fails is recorded with its error, and one that no time is left for is
skipped. Prints a table and writes one JSON file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from fastai.torch_core import default_device

import baseline
from baseline import Stage
from baseline.system import wait_for_gpu
from baseline.vision.rng import seed_everything

ARCHS = ("resnet50", "tf_efficientnet_lite0")

FLIP_ONLY = {"flip": True, "rotate": 0.0, "zoom": 1.0, "lighting": 0.0, "warp": 0.0}


class Lines(baseline.Progress):
    """Keeps lines, and may interrupt the run at one of them, as Ctrl-C does."""

    def __init__(self, interrupt_at: str = "") -> None:
        self.lines: list[str] = []
        self.interrupt_at = interrupt_at

    def log(self, line: str) -> None:
        self.lines.append(line)
        if self.interrupt_at and self.interrupt_at in line:
            raise KeyboardInterrupt


class Bench:
    """The images, the time that is left, and the results."""

    def __init__(self, images: str, smoke: bool, seconds: float, per_class: int) -> None:
        self.images, self.smoke, self.per_class = images, smoke, per_class
        self.end = time.monotonic() + seconds
        self.size, self.epochs, self.bs = (48, 1, 8) if smoke else (128, 2, 128)
        self.archs = ARCHS[1:] if smoke else ARCHS
        self.cuda = torch.cuda.is_available()
        self.results: dict[str, Any] = {"device": self.device(), "torch": torch.__version__, "parts": {}}

    def device(self) -> str:
        from baseline.runs.manifest import describe_device

        return describe_device()

    def part(self, name: str, seconds: float, work: Callable[[], dict[str, Any]]) -> None:
        """Run a part that may take so many seconds, and record what it returns or why it did not run."""
        start = time.monotonic()
        if not self.smoke and start + seconds > self.end:
            result: dict[str, Any] = {"skipped": f"no time: {self.end - start:.0f} s left, {seconds:.0f} s needed"}
        else:
            try:
                result = work()
            except Exception as error:
                result = {"error": f"{type(error).__name__}: {error}"[:500]}
        if self.cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()
        self.results["parts"][name] = {**result, "seconds": round(time.monotonic() - start, 1)}
        print(f"{name:34} {json.dumps(self.results['parts'][name])}", flush=True)

    def recipe(self, arch: str, precision: str = "auto", **changes: Any) -> baseline.Recipe:
        stage = Stage("all", self.epochs, 1e-3, "train")
        fields = {"image_size": self.size, "augment": FLIP_ONLY, "presets": {}, "batch_size": self.bs, "cache_gb": 0.0}
        fields |= {"pretrained": False, "stages": (stage,), "audit": "none", "precision": precision, "arch": arch}
        return baseline.load_recipe("default").changed(**fields | changes)

    def table(self, recipe: baseline.Recipe) -> Any:
        table = baseline.load_images(
            self.images, recipe, images_per_class=self.per_class, progress=baseline.Progress()
        )[1]
        return baseline.split(table, recipe)

    def peak(self) -> float | None:
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.cuda else None


def train_ours(bench: Bench, arch: str, precision: str) -> dict[str, Any]:
    recipe = bench.recipe(arch, precision)
    with seed_everything(0), tempfile.TemporaryDirectory() as folder:
        table = bench.table(recipe)
        recipe = baseline.resolve(recipe, table)[0]
        start = time.perf_counter()
        dls = baseline.dataloaders(table, recipe, path=Path(folder))
        decoding = time.perf_counter() - start
        learn = baseline.learner(dls, recipe, path=Path(folder))
        if bench.cuda:
            torch.cuda.reset_peak_memory_stats()
        history = baseline.train(learn, recipe)
    images = int((table["split"] == "train").sum())
    laps = history.stages[-1]["laps"]
    training = sum(seconds for name, seconds in laps.items() if name != "validation")
    return {
        "images_per_s": round(images * bench.epochs / training), "loading": round(laps["loading"] / training, 3),
        "decoding_s": round(decoding, 1), "peak_gib": bench.peak(), "precision": recipe.model.precision,
        "train_loss": round(float(history.epochs["train_loss"].iloc[-1]), 3),
    }  # fmt: skip


def train_fastai(bench: Bench, arch: str) -> dict[str, Any]:
    """fastai as its documentation has it: JPEG or PNG files decoded by worker processes, `to_fp16` on a GPU."""
    from fastai.callback.core import Callback
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.vision.augment import Resize, aug_transforms
    from fastai.vision.data import ImageDataLoaders

    class Clock(Callback):
        order = -100

        def before_fit(self) -> None:
            self.loading, self.training_seconds = 0.0, 0.0

        def before_train(self) -> None:
            self.began = self.last = time.perf_counter()

        def before_batch(self) -> None:
            self.loading += time.perf_counter() - self.last if self.training else 0

        def after_batch(self) -> None:
            wait_for_gpu(default_device().type)  # as fastai's Recorder does next, which would count as loading
            self.last = time.perf_counter()

        def after_train(self) -> None:
            self.training_seconds += time.perf_counter() - self.began

    recipe = bench.recipe(arch)
    table = bench.table(recipe)
    rows = table[table["split"] != "test"].assign(is_valid=lambda frame: frame["split"] == "valid")
    with seed_everything(0), tempfile.TemporaryDirectory() as folder:
        from baseline.vision.network import build_network

        dls = ImageDataLoaders.from_df(
            rows, path="/", fn_col="path", label_col="label", valid_col="is_valid", item_tfms=Resize(bench.size),
            batch_tfms=aug_transforms(max_rotate=0, max_zoom=1, max_lighting=0, max_warp=0, size=bench.size),
            bs=bench.bs, num_workers=0 if bench.smoke else min(16, os.cpu_count() or 1),
        )  # fmt: skip
        model = build_network(arch, len(dls.vocab), None, image_size=bench.size)[0].to(default_device())
        learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), path=Path(folder), cbs=[clock := Clock()])
        learn = learn.to_fp16() if bench.cuda else learn
        if bench.cuda:
            torch.cuda.reset_peak_memory_stats()
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(bench.epochs, 1e-3)
    images = int((rows["split"] == "train").sum())
    return {
        "images_per_s": round(images * bench.epochs / clock.training_seconds), "peak_gib": bench.peak(),
        "loading": round(clock.loading / clock.training_seconds, 3),
    }  # fmt: skip


def halve_batches(bench: Bench) -> dict[str, Any]:
    """Train with batches that do not fit the memory that the allocator may use."""
    if not bench.cuda:
        return {"skipped": "needs CUDA"}
    arch, size = ARCHS[0], 4 * bench.bs
    known = bench.results["parts"].get(f"ours {arch} float16", {}).get("peak_gib") or 4.0
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    recipe = bench.recipe(arch, "float16", batch_size=size, stages=(Stage("all", 1, 1e-3, "train"),))
    progress = Lines()
    with seed_everything(0), tempfile.TemporaryDirectory() as folder:
        table = bench.table(recipe)
        recipe = baseline.resolve(recipe, table)[0]
        learn = baseline.learner(baseline.dataloaders(table, recipe, path=Path(folder)), recipe, path=Path(folder))
        torch.cuda.set_per_process_memory_fraction(min(1.0, 2.2 * known / total))
        history = baseline.train(learn, recipe, progress)
    lines = [line for line in progress.lines if "out of memory" in line]
    return {"limit_gib": round(2.2 * known, 2), "batch": size, "lines": lines, "epochs": len(history.epochs)}


def resume(bench: Bench, folder: Path) -> dict[str, Any]:
    """Interrupt a run in its second epoch, resume it, and compare with the same run in one piece."""
    recipe = bench.recipe(bench.archs[-1], stages=(Stage("all", 3, 1e-3, "train"),))
    options = {"images_per_class": min(bench.per_class, 200)}
    whole = baseline.make_baseline(bench.images, recipe, out=folder / "whole", progress=Lines(), **options)
    progress = Lines()
    try:
        stopped = Lines("epoch 2/3")
        baseline.make_baseline(bench.images, recipe, out=folder / "parts", progress=stopped, **options)
        return {"error": "it was not interrupted", "lines": stopped.lines[-5:]}
    except KeyboardInterrupt:
        resumed = baseline.make_baseline(bench.images, recipe, out=folder / "parts", progress=progress, **options)
    columns = [name for name in whole.predictions.columns if name.startswith("p_")]
    difference = np.abs(whole.predictions[columns].to_numpy() - resumed.predictions[columns].to_numpy()).max()
    return {
        "resumed": any("resuming" in line for line in progress.lines), "largest_difference": float(difference),
        "accuracies": [run.metrics["test"]["plain"]["accuracy"] for run in (whole, resumed)],
    }  # fmt: skip


def compare_devices(bench: Bench, folder: Path) -> dict[str, Any]:
    """The model of the run before on this device and on the CPU, both in float32; its golden inputs, on the CPU."""

    def probabilities() -> np.ndarray:
        batches = baseline.load(folder / "whole").predict_batches(images, calibrated=False, precision="float32")
        return np.concatenate([batch.probabilities for batch in batches])

    images = sorted(path for path in Path(bench.images).rglob("*") if path.is_file())[:: 10 if bench.smoke else 500]
    here, device = probabilities(), default_device()
    try:
        default_device(use=False)
        on_cpu, check = probabilities(), max(float(m.check()) for m in baseline.load(folder / "whole").members)
    finally:
        default_device(use=None)
    difference = float(np.abs(here - on_cpu).max())
    return {"device": device.type, "images": len(images), "largest_difference": difference, "golden_inputs": check}


def two_processes(bench: Bench, folder: Path) -> dict[str, Any]:
    """`baseline run --processes 2`, both on the first GPU."""
    command = [
        sys.executable, "-m", "baseline", "run", bench.images, "--processes", "2", "--no-pretrained", "--no-audit",
        "--arch", bench.archs[-1], "--image-size", str(bench.size), "--epochs", "1", "--batch-size", str(bench.bs),
        "--images-per-class", str(min(bench.per_class, 200)), "--preset", "quick", "--out", str(folder / "two"),
    ]  # fmt: skip
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=600 if bench.smoke else 150, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "0"} if bench.cuda else None,
    )  # fmt: skip
    if ended.returncode:
        return {"error": ended.stderr[-500:]}
    manifest = json.loads((folder / "two/manifest.json").read_text())
    return {"device": manifest["device"], "accuracy": manifest["metrics"]["test"]["plain"]["accuracy"]}


def draw_images(folder: Path) -> str:
    """Draw two classes of images, noise on a dark or a bright background."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("bright", 180)):
        (folder / name).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(level - 50, level + 50, (48, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return str(folder)


def image_folder(images: str) -> str:
    """Return a folder of images; an archive is one of CIFAR-10, and goes into the cache."""
    if not images or Path(images).is_dir():
        return images
    from baseline.data.sources.datasets import dataset

    return str(dataset("cifar10", data=Path(images), progress=baseline.Progress()))


def print_table(results: dict[str, Any]) -> None:
    print(f"\n{results['device']}, torch {results['torch']}, {results['seconds']:.0f} s in all\n")
    print(f"{'training':34} {'images/s':>9} {'loading':>8} {'peak GiB':>9}")
    for name, part in results["parts"].items():
        if "images_per_s" in part:
            peak = "" if part["peak_gib"] is None else f"{part['peak_gib']:.2f}"
            print(f"{name:34} {part['images_per_s']:9,} {part['loading']:8.1%} {peak:>9}")
    for name, part in results["parts"].items():
        if "images_per_s" not in part:
            print(f"{name:34} {', '.join(f'{key} {value}' for key, value in part.items())}")


def main(
    images: Annotated[str, typer.Argument(help="A folder of classes, or an archive of CIFAR-10.")] = "",
    out: Annotated[Path, typer.Option(help="The JSON file.")] = Path("gpu.json"),
    smoke: Annotated[bool, typer.Option(help="A few drawn images, on any device.")] = False,
    minutes: Annotated[float, typer.Option(help="Time limit.")] = 8,
    per_class: Annotated[int, typer.Option(help="Images per class.")] = 1000,
) -> None:
    if not (images or smoke):
        raise typer.BadParameter("Pass a folder of classes or an archive of CIFAR-10, or --smoke.")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        source = draw_images(folder / "images") if smoke else image_folder(images)
        bench = Bench(source, smoke, 60 * minutes - (time.monotonic() - start) - 15, 30 if smoke else per_class)
        precisions = ("float16", "bfloat16", "float32") if bench.cuda else ("float32",)
        for arch in bench.archs:
            for precision in precisions:
                bench.part(f"ours {arch} {precision}", 45, lambda a=arch, p=precision: train_ours(bench, a, p))
            bench.part(f"fastai {arch}", 60, lambda a=arch: train_fastai(bench, a))
        bench.part("halved batches", 45, lambda: halve_batches(bench))
        bench.part("resume", 60, lambda: resume(bench, folder))
        bench.part("GPU and CPU" if bench.cuda else "saved model", 15, lambda: compare_devices(bench, folder))
        bench.part("two processes on one device", 60, lambda: two_processes(bench, folder))
    bench.results["seconds"] = round(time.monotonic() - start, 1)
    out.write_text(json.dumps(bench.results, indent=2) + "\n")
    print_table(bench.results)
    raise SystemExit(int(any("error" in part for part in bench.results["parts"].values())))


if __name__ == "__main__":
    typer.run(main)
