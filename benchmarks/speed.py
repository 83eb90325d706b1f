"""Measures the hardware efficiency of each component. Each command prints one line of JSON.

python benchmarks/speed.py passes cifar10          # features, compared with the bare backbone
python benchmarks/speed.py step                    # a training step, with and without `optimize_for_cpu`
python benchmarks/speed.py stage cifar10           # a step of a stage in parts, compared with its layers alone
python benchmarks/speed.py compile                 # `optimize_for_cpu`, compared with `torch.compile`
python benchmarks/speed.py overhead cifar10        # a stage, compared with a fastai Learner on the same loaders
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
FLIP_ONLY = {"flip": True, "rotate": 0.0, "zoom": 1.0, "lighting": 0.0, "warp": 0.0}


def time_alternating(functions: dict[str, Callable[[], Any]], turns: int = 5) -> dict[str, float]:
    """Return the median seconds of each function in alternating runs, after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(turns + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_json(**values: Any) -> None:
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}), flush=True)


def make_learner(data: str, image_size: int, per_class: int, **changes: Any) -> tuple[Any, Any, Any]:
    recipe, table = baseline.load_images(data, images_per_class=per_class, progress=baseline.Progress())
    recipe = recipe.changed(image_size=image_size, augment=FLIP_ONLY, cache_gb=0.0, presets={}, **changes)
    table = baseline.split(table, recipe)
    table = table[table["split"] != "test"].reset_index(drop=True)
    recipe = baseline.resolve(recipe, table)[0]
    folder = tempfile.mkdtemp()
    dls = baseline.dataloaders(table, recipe, path=folder)
    return baseline.learner(dls, recipe, path=folder), recipe, table


@app.command()
def passes(data: str, image_size: int = 128, per_class: int = 450) -> None:
    """Features in images/s, compared with the bare backbone on batches in memory."""
    from baseline.training.frozen import FrozenOutputs, frozen_precision
    from baseline.vision.dataloaders import split_loader

    learn, recipe, table = make_learner(data, image_size, per_class, stages=(Stage("head", 1, 1e-3),))
    backbone = learn.model[0].eval()
    rows = table[table["split"] == "train"]
    batches = [x.as_subclass(torch.Tensor) for x, _ in split_loader(learn.dls, rows, "train")]
    batches = [x.contiguous(memory_format=torch.channels_last) for x in batches]

    @torch.no_grad()
    def bare() -> None:
        with frozen_precision(recipe, "cpu"):
            for batch in batches:
                backbone(batch)

    def ours() -> None:
        frozen = FrozenOutputs(learn, recipe)
        shape, kind = frozen.plan.shape(frozen.plan.stages[1][0], frozen.plan.stages[1][1], len(rows))
        outputs = {frozen.plan.stages[1][0]: torch.from_numpy(np.empty(shape, kind))}
        frozen.compute("train", frozen.plan.stages[1][1], outputs)

    seconds = time_alternating({"bare": bare, "ours": ours})
    print_json(
        part="passes", image_size=image_size, precision=recipe.model.frozen_precision,
        bare=len(rows) / seconds["bare"], ours=len(rows) / seconds["ours"], ratio=seconds["bare"] / seconds["ours"],
    )  # fmt: skip


@app.command()
def step(arch: str = "tf_efficientnet_lite0", images: int = 64) -> None:
    """Training steps with frozen BatchNorm, images/s."""
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

        seconds = time_alternating({"torch": lambda steps=steps: steps(nullcontext()), "ours": ours})
        print_json(part="step", arch=arch, image_size=size, torch=4 * images / seconds["torch"],
             ours=4 * images / seconds["ours"], ratio=seconds["torch"] / seconds["ours"])  # fmt: skip


@app.command()
def stage(data: str, image_size: int = 80, per_class: int = 250) -> None:
    """A step of the last 55%, in ms of CPU time per part, compared with the same layers on one batch in memory."""
    from fastai.callback.core import Callback

    spent: dict[str, list[float]] = {}

    class StepParts(Callback):
        order, cacheable = 1000, True
        last = 0.0

        def _record(self, part: str) -> None:
            now = time.process_time()
            if self.training:
                spent.setdefault(part, []).append(1e3 * (now - self.last))
            self.last = now

        def before_batch(self) -> None:
            self._record("batch")

        def after_pred(self) -> None:
            self._record("forward")

        def before_backward(self) -> None:
            self._record("loss")

        def before_step(self) -> None:
            self._record("backward")

        def after_step(self) -> None:
            self._record("optimizer")

        def after_batch(self) -> None:
            self._record("callbacks")

        def after_train(self) -> None:
            images, labels = self.learn.xb[0], self.learn.yb[0]
            for _ in range(20):
                start = time.process_time()
                loss = self.learn.loss_func(self.learn.model(images), labels)
                middle = time.process_time()
                loss.backward()
                spent.setdefault("forward, alone", []).append(1e3 * (middle - start))
                spent.setdefault("backward, alone", []).append(1e3 * (time.process_time() - middle))
            self.learn.opt.zero_grad()

    learn, recipe, _ = make_learner(data, image_size, per_class, stages=(Stage(0.55, 1, 2e-4),), batch_size=64)
    learn.add_cb(StepParts())
    baseline.train(learn, recipe)
    for values in spent.values():
        del values[:3]
    print_json(part="stage", image_size=image_size, steps=len(spent["forward"]),
               **{name: statistics.median(values) for name, values in spent.items()})  # fmt: skip


@app.command("compile")
def compile_(arch: str = "tf_efficientnet_lite0", images: int = 64, size: int = 128, steps: int = 8) -> None:
    """Training steps with `optimize_for_cpu` and `torch.compile`, images/s, and when compiling pays."""
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

    def run_steps() -> None:
        for _ in range(steps):
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()

    def ours() -> None:
        with optimize_for_cpu(model, inputs):
            run_steps()

    def theirs() -> None:
        with compile_model(model):
            run_steps()

    start = time.perf_counter()
    with compile_model(model):
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
    first = time.perf_counter() - start
    seconds = time_alternating({"torch": run_steps, "ours": ours, "compiled": theirs})
    rates = {name: steps * images / value for name, value in seconds.items()}
    saved = 1 / rates["ours"] - 1 / rates["compiled"]
    print_json(part="compile", arch=arch, image_size=size, first_step=first, **rates,
         pays_after_images=first / saved if saved > 0 else None)  # fmt: skip


@app.command()
def overhead(data: str, image_size: int = 96, per_class: int = 100) -> None:
    """An "all" stage without caching, compared with fastai's fit_one_cycle; also without `optimize_for_cpu`."""
    from baseline.vision import cpu_speedups

    learn, recipe, _ = make_learner(data, image_size, per_class)
    recipe = recipe.changed(stages=(Stage("all", 1, 1e-4, batch_norm="train"),))

    def bare() -> None:
        learn.create_opt()
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(1, 1e-4)

    def plain() -> None:
        original, cpu_speedups.optimize_for_cpu = cpu_speedups.optimize_for_cpu, lambda *_, **__: nullcontext()
        try:
            baseline.train(learn, recipe)
        finally:
            cpu_speedups.optimize_for_cpu = original

    functions = {"fastai": bare, "not optimized": plain, "ours": lambda: baseline.train(learn, recipe)}
    seconds = time_alternating(functions, turns=7)
    print_json(part="overhead", image_size=image_size, images=len(learn.dls.train_ds), seconds=seconds["fastai"],
         not_optimized=seconds["not optimized"] / seconds["fastai"] - 1,
         ours=seconds["ours"] / seconds["fastai"] - 1)  # fmt: skip


@app.command()
def decoders(data: str, image_size: int = 128, images: int = 500) -> None:
    """Decoding and resizing JPEGs to uint8, images/s on one thread, per installed library."""
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

    functions: dict[str, Callable[[str], Any]] = {
        "pillow, reduced scale (ours)": lambda path: resize_image(load_image(path, image_size), image_size, "squish"),
        "pillow": lambda path: resize_image(load_image(path), image_size, "squish"),
        "torchvision": with_torchvision,
        "opencv": with_opencv,
        "simplejpeg": with_simplejpeg,
    }
    installed = {}
    for name, function in functions.items():
        try:
            function(paths[0])
        except ImportError:
            continue
        installed[name] = lambda function=function: [function(path) for path in paths]
    seconds = time_alternating(installed, turns=3)
    print_json(part="decoders", image_size=image_size, **{name: len(paths) / value for name, value in seconds.items()})


@app.command()
def rows(count: int, image_size: int = 64, batches: int = 200) -> None:
    """Anonymous memory of this process in GB: before, with loaders of this many rows, and after some batches."""
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

    decoded.MEMORY_FRACTION = 0.0  # as for a million files
    start = anonymous()
    dls = baseline.dataloaders(table, recipe, path=folder)
    learn = baseline.learner(dls, recipe, path=folder)
    loaded = anonymous()
    memory = []
    for number, _ in enumerate(learn.dls.train):
        if number % 50 == 0:
            memory.append(round(anonymous() - start, 3))
        if number == batches:
            break
    print_json(part="rows", rows=count, before=start, loaders=loaded - start, batches=memory)


if __name__ == "__main__":
    app()
