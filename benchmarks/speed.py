"""How near this comes to what the machine can do, part by part. Each part prints one line of JSON.

python benchmarks/speed.py passes cifar10          # outputs of frozen layers against the bare body's forward
python benchmarks/speed.py step                    # a training step: torch's own, and with `quick`
python benchmarks/speed.py compile                 # `quick` against `torch.compile`
python benchmarks/speed.py overhead cifar10        # our stage against a bare fastai Learner on the same loaders
python benchmarks/speed.py decoders trashnet_256   # libraries that decode and resize JPEGs
python benchmarks/speed.py rows 1000000            # memory with that many generated rows
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

import baseline
from baseline import Stage

app = typer.Typer(add_completion=False)
STILL = {"flip": True, "rotate": 0.0, "zoom": 1.0, "lighting": 0.0, "warp": 0.0}


def alternating(ways: dict[str, Callable[[], Any]], turns: int = 5) -> dict[str, float]:
    """Median seconds of each, taken in turn, after one turn that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if turn:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in taken.items()}


def said(**facts: Any) -> None:
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}), flush=True)


def learner_of(data: str, image_size: int, per_class: int, **changes: Any) -> tuple[Any, Any, Any]:
    recipe, table = baseline.load_images(data, images_per_class=per_class, progress=baseline.Progress())
    recipe = recipe.changed(image_size=image_size, augment=STILL, cache_gb=0.0, presets={}, **changes)
    table = baseline.split(table, recipe)
    table = table[table["split"] != "test"].reset_index(drop=True)
    recipe = baseline.resolve(recipe, table)[0]
    folder = tempfile.mkdtemp()
    dls = baseline.dataloaders(table, recipe, path=folder)
    return baseline.learner(dls, recipe, path=folder), recipe, table


@app.command()
def passes(data: str, image_size: int = 128, per_class: int = 450) -> None:
    """Outputs of the frozen body, images/s, against the bare body on batches that lie ready."""
    from baseline.training.frozen import FrozenOutputs, frozen_precision
    from baseline.vision.dataloaders import split_loader

    learn, recipe, table = learner_of(data, image_size, per_class, stages=(Stage("head", 1, 1e-3),))
    body = learn.model[0].eval()
    rows = table[table["split"] == "train"]
    batches = [x.as_subclass(torch.Tensor) for x, _ in split_loader(learn.dls, rows, "train")]
    batches = [x.contiguous(memory_format=torch.channels_last) for x in batches]

    @torch.no_grad()
    def bare() -> None:
        with frozen_precision(recipe, "cpu"):
            for batch in batches:
                body(batch)

    def ours() -> None:
        frozen = FrozenOutputs(learn, recipe)
        shape, kind = frozen.plan.shape(frozen.plan.stages[1][0], frozen.plan.stages[1][1], len(rows))
        outputs = {frozen.plan.stages[1][0]: torch.from_numpy(np.empty(shape, kind))}
        frozen.compute("train", frozen.plan.stages[1][1], outputs)

    seconds = alternating({"bare": bare, "ours": ours})
    said(part="passes", image_size=image_size, format=recipe.model.frozen_precision, bare=len(rows) / seconds["bare"],
         ours=len(rows) / seconds["ours"], share=seconds["bare"] / seconds["ours"])  # fmt: skip


@app.command()
def step(arch: str = "tf_efficientnet_lite0", images: int = 64) -> None:
    """Training steps with still BatchNorm, images/s."""
    from baseline.vision.cpu_speedups import optimize_for_cpu
    from baseline.vision.network import build_network

    model = build_network(arch, 10, None)[0].to(memory_format=torch.channels_last).eval()
    for size in (64, 96, 128, 160):
        inputs = torch.rand(images, 3, size, size).contiguous(memory_format=torch.channels_last)
        targets = torch.arange(images) % 10

        def steps(context: Any, inputs: Any = inputs, targets: Any = targets) -> None:
            with context:
                for _ in range(4):
                    torch.nn.functional.cross_entropy(model(inputs), targets).backward()

        def ours(inputs: Any = inputs, steps: Any = steps) -> None:
            steps(optimize_for_cpu(model, inputs))

        seconds = alternating({"torch": lambda steps=steps: steps(nullcontext()), "ours": ours})
        said(part="step", arch=arch, image_size=size, torch=4 * images / seconds["torch"],
             ours=4 * images / seconds["ours"], ratio=seconds["torch"] / seconds["ours"])  # fmt: skip


@app.command("compile")
def compile_(arch: str = "tf_efficientnet_lite0", images: int = 64, size: int = 128, steps: int = 8) -> None:
    """Training steps with `quick` and with `torch.compile`, images/s, and the images after which compiling has paid."""
    from baseline.vision.cpu_speedups import optimize_for_cpu
    from baseline.vision.network import build_network

    @contextmanager
    def compile_model(model: torch.nn.Module) -> Iterator[None]:
        model.compile()
        try:
            yield
        finally:
            model._compiled_call_impl = None

    model = build_network(arch, 10, None)[0].to(memory_format=torch.channels_last).eval()
    inputs = torch.rand(images, 3, size, size).contiguous(memory_format=torch.channels_last)
    targets = torch.arange(images) % 10

    def some() -> None:
        for _ in range(steps):
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()

    def ours() -> None:
        with optimize_for_cpu(model, inputs):
            some()

    def theirs() -> None:
        with compile_model(model):
            some()

    began = time.perf_counter()
    with compile_model(model):
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
    first = time.perf_counter() - began
    seconds = alternating({"torch": some, "ours": ours, "compiled": theirs})
    rates = {name: steps * images / each for name, each in seconds.items()}
    saved = 1 / rates["ours"] - 1 / rates["compiled"]
    said(part="compile", arch=arch, image_size=size, first_step=first, **rates,
         pays_after_images=first / saved if saved > 0 else None)  # fmt: skip


@app.command()
def overhead(data: str, image_size: int = 96, per_class: int = 100) -> None:
    """An "all" stage that keeps nothing against fastai's own fit_one_cycle, same loaders; and without `quick`."""
    from baseline.vision import cpu_speedups

    learn, recipe, _ = learner_of(data, image_size, per_class)
    recipe = recipe.changed(stages=(Stage("all", 1, 1e-4, batch_norm="train"),))

    def bare() -> None:
        learn.create_opt()
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(1, 1e-4)

    def plain() -> None:
        kept, cpu_speedups.optimize_for_cpu = cpu_speedups.optimize_for_cpu, lambda *_, **__: nullcontext()
        try:
            baseline.train(learn, recipe)
        finally:
            cpu_speedups.optimize_for_cpu = kept

    ways = {"fastai": bare, "ours without quick": plain, "ours": lambda: baseline.train(learn, recipe)}
    seconds = alternating(ways, turns=7)
    said(part="overhead", image_size=image_size, images=len(learn.dls.train_ds), seconds=seconds["fastai"],
         without_quick=seconds["ours without quick"] / seconds["fastai"] - 1,
         ours=seconds["ours"] / seconds["fastai"] - 1)  # fmt: skip


@app.command()
def decoders(data: str, image_size: int = 128, images: int = 500) -> None:
    """JPEG to a square of uint8, images/s on one thread, by library; those that are not installed are left out."""
    from baseline.data.image import load_image, resize_image

    table = baseline.image_table(data)
    paths = [path for path in table["path"] if path.lower().endswith((".jpg", ".jpeg"))][:images]
    torch.set_num_threads(1)

    def with_torchvision(path: str) -> Any:
        from torchvision.io import ImageReadMode, decode_image
        from torchvision.transforms.v2.functional import resize

        return resize(decode_image(path, ImageReadMode.RGB), [image_size, image_size], antialias=True)

    def with_opencv(path: str) -> Any:
        import cv2

        cv2.setNumThreads(1)
        return cv2.resize(cv2.imread(path), (image_size, image_size), interpolation=cv2.INTER_AREA)

    def with_simplejpeg(path: str) -> Any:
        import simplejpeg
        from PIL import Image

        side = 2 * image_size
        pixels = simplejpeg.decode_jpeg(Path(path).read_bytes(), min_height=side, min_width=side)
        return Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BICUBIC)

    ways: dict[str, Callable[[str], Any]] = {
        "pillow, reduced scale (ours)": lambda path: resize_image(load_image(path, image_size), image_size, "squish"),
        "pillow": lambda path: resize_image(load_image(path), image_size, "squish"),
        "torchvision": with_torchvision,
        "opencv": with_opencv,
        "simplejpeg": with_simplejpeg,
    }
    known = {}
    for name, way in ways.items():
        try:
            way(paths[0])
        except ImportError:
            continue
        known[name] = lambda way=way: [way(path) for path in paths]
    seconds = alternating(known, turns=3)
    said(part="decoders", image_size=image_size, **{name: len(paths) / each for name, each in seconds.items()})


@app.command()
def rows(count: int, image_size: int = 64, batches: int = 200) -> None:
    """Memory of this process that no file backs, GB: before, with loaders over so many rows, and after some batches."""
    import pandas as pd
    from PIL import Image

    def anonymous() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e6

    folder = Path(tempfile.mkdtemp())
    for number in range(100):
        pixels = np.random.default_rng(number).integers(0, 255, (image_size, image_size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    numbers = np.arange(count)
    table = pd.DataFrame({"path": [f"{folder}/{number % 100}.jpg" for number in numbers]})
    table["label"] = np.where(numbers % 2, "odd", "even")
    table["split"] = np.where(numbers % 10 == 0, "valid", "train")
    recipe = baseline.Recipe().changed(arch="tf_efficientnet_lite0", image_size=image_size, batch_size=64, cache_gb=0.0)
    from baseline.vision import decoded

    decoded.MEMORY_FRACTION = 0.0  # as if these were a million files
    began = anonymous()
    dls = baseline.dataloaders(table, recipe, path=folder)
    learn = baseline.learner(dls, recipe, path=folder)
    loaded = anonymous()
    seen = []
    for number, _ in enumerate(learn.dls.train):
        if number % 50 == 0:
            seen.append(round(anonymous() - began, 3))
        if number == batches:
            break
    said(part="rows", rows=count, before=began, loaders=loaded - began, batches=seen)


if __name__ == "__main__":
    app()
