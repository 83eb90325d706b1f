"""Model folder -> a file that other programs run, compared with the model before it gets its name.

| form | file | holds |
|---|---|---|
| `onnx` | `.onnx` | preparation of images, network, views and temperature, for onnxruntime and others; no Python |
| `torch-export` | `.pt2` | the same, for torch alone |
| `learner` | `.pkl` | fastai's own export, a pickle: network and loaders, plain and uncalibrated |

Knows these files and the model; knows no training and no runs.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from baseline import __version__
from baseline.data.image import load_image, load_square, read_image_bytes
from baseline.data.sources.image_list import list_images
from baseline.deploy.export_module import ExportModule
from baseline.errors import OutputError, WeightsError, first_line, unknown_name
from baseline.evaluation.calibration import apply_temperature
from baseline.inference.model import TOLERANCE, load_model
from baseline.inference.model_folder import read_golden
from baseline.progress import Progress

if TYPE_CHECKING:
    from onnx import ModelProto

    from baseline.inference.model import Model

__all__ = ["FORMATS", "SIZES", "Exported", "export"]


FORMATS = {"onnx": ".onnx", "torch-export": ".pt2", "learner": ".pkl"}
"""Of each form the ending of its file."""

SIZES = ("any", "fixed")

MAX_BYTES = 1_900_000_000
"""Of tensors in one ONNX file, whose format ends at 2 GiB."""

MIN_AGREEMENT = 0.95
"""Share of images for which an int8 network has to predict what the float32 network predicts."""

MIN_CALIBRATION_IMAGES, MAX_CALIBRATION_IMAGES = 20, 200
"""Images that int8 needs, and the most that its ranges are measured on."""

BATCH = 32


Run = Callable[[np.ndarray], np.ndarray]
"""uint8 images, N x H x W x 3, to probabilities, N x classes."""


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how it compares with the model."""

    path: Path
    bytes: int
    images: int
    """Those that both were asked."""
    same: int
    """Of these, how many are predicted the same."""
    difference: float
    """The largest between two probabilities."""
    golden: bool
    """Whether those were the few images that the model folder keeps."""
    unreadable: int = 0

    @property
    def agreement(self) -> float:
        """The share of images that are predicted the same."""
        return self.same / self.images

    def __str__(self) -> str:
        kind = "golden inputs" if self.golden else "images"
        rest = f"; {self.unreadable:,} could not be read" if self.unreadable else ""
        return (
            f"{self.path}: {self.bytes / 1e6:.1f} MB; of {self.images:,} {kind} {self.same:,} are predicted as by the "
            f"model ({self.agreement:.2%}), largest difference of a probability {self.difference:.1e}{rest}"
        )


def export(
    model: str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    images: str | Sequence[str] = (),
    size: str = "any",
    tta: bool = True,
    int8: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Writes a model as a file of another form, and compares the two on images before the file gets its name.

    ONNX and torch-export take uint8 images, N x H x W x 3, upright RGB, and give calibrated probabilities, N x classes,
    float32: what `Model.predict` gives. N is free. An ONNX file tells its classes and facts in its metadata.

    Args:
        model: a run folder, or its `model/` alone.
        to: one of `FORMATS`.
        out: the file, or a folder for it; `NAME.onnx` in the working folder if not given.
        images: what the two are compared on, as `baseline predict` takes them; else the model folder's golden inputs.
        size: `"any"` resizes images of any size inside, as Pillow 13 does it to the last bit; `"fixed"` takes squares
            of the model's size only, and needs neither float64 nor conditions inside, but for the mean over views.
        tta: the mean over the views of the run's evaluation, which the temperature was fitted for; without, the plain
            image alone, at a fraction of the work.
        int8: weights and activations of convolutions and products in 8 bits; ranges are measured on a quarter of the
            images, at most 200, and the file is judged on the others.

    Raises:
        OutputError: if the form does not exist, the file is there, a package is lacking, or it cannot be written.
        WeightsError: if a probability differs by more than 1e-4, or with `int8` more than one prediction in 20.
        DataError: if images are named that are not there.

    >>> export("runs/mine", "onnx", images="images/").difference                   # doctest: +SKIP
    """
    progress = progress or Progress()
    _check_options(to, size, int8, bool(images), tta)
    _check_packages(to)
    loaded = load_model(model)
    loaded.network.cpu()  # where it computes in float32
    path = _output_path(loaded, to, out, int8, overwrite)
    given, golden = _comparison_images(loaded, [images] if isinstance(images, str) else images, size)
    exporter = _Exporter(loaded, size, tta and to != "learner", to != "learner", progress)
    with _partial_path(path) as part:
        if int8:
            if len(given) < MIN_CALIBRATION_IMAGES:
                raise OutputError(
                    f"int8 needs {MIN_CALIBRATION_IMAGES} images or more, not {len(given)}. Give more to --images."
                )
            step = max(4, len(given) // MAX_CALIBRATION_IMAGES)
            progress.log(f"int8: ranges from {len(given[::step])} images, judged on the others")
            exporter.onnx(part, ranges=given[::step])
            given = [image for number, image in enumerate(given) if number % step]
        else:
            {"onnx": exporter.onnx, "torch-export": exporter.torch_export, "learner": exporter.learner}[to](part)
        with RUNNERS[to](part) as run:
            found = exporter.compared(run, given, path, part.stat().st_size, golden)
        _check_agreement(found, int8)
        part.replace(path)
    return found


def _check_options(to: str, size: str, int8: bool, images: bool, tta: bool) -> None:
    if to not in FORMATS:
        raise OutputError(unknown_name("form", to, FORMATS))
    if size not in SIZES:
        raise OutputError(unknown_name("size", size, SIZES))
    if int8 and to != "onnx":
        raise OutputError(f"int8 is for onnx, not {to}. Leave out --int8, or give --to onnx.")
    if int8 and not images:
        raise OutputError("int8 needs images to measure ranges on, and others to judge it by. Give --images.")
    if to == "learner" and (size != "any" or not tta):
        raise OutputError("A learner is fastai's own, plain and for any size. Leave out --size and --no-tta.")


def _check_packages(to: str) -> None:
    lacking = [name for name in ("onnx", "onnxruntime", "onnxscript") if to == "onnx" and find_spec(name) is None]
    if lacking:
        raise OutputError(f"ONNX needs {', '.join(lacking)}: pip install 'fastai-baseline[onnx]'.")


def _output_path(model: Model, to: str, out: str | Path | None, int8: bool, overwrite: bool) -> Path:
    folder = model.folder.absolute()
    name = folder.parent.name if folder.name == "model" else folder.name
    file = f"{name or 'model'}{'-int8' if int8 else ''}{FORMATS[to]}"
    path = Path(out or ".").expanduser()
    path = path / file if path.is_dir() else path
    if path.suffix != FORMATS[to]:
        raise OutputError(f"{path} is no {FORMATS[to]} file by its name. Choose another --out.")
    if path.exists() and not (overwrite and path.is_file()):
        raise OutputError(f"{path} exists. Give --overwrite, or another --out.")
    return path


@contextmanager
def _partial_path(path: Path) -> Iterator[Path]:
    """A name beside the file, to write to and rename; nothing stays there."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        words = error.strerror or first_line(error)
        raise OutputError(f"{path} cannot be written: {words}. Make room, or choose another --out.") from None
    finally:
        part.unlink(missing_ok=True)


def _comparison_images(model: Model, words: Sequence[str], size: str) -> tuple[list[Any], bool]:
    """What to compare on, and whether that is the model folder's own."""
    if words:
        if not (paths := list(list_images(words)[0])):
            raise OutputError(f"{' '.join(words)} names no images. Give others to --images.")
        return paths, False
    try:
        squares = list(read_golden(model.folder, model.config)[0].numpy())
    except OutputError as error:
        raise OutputError(f"{error} Give --images to compare on.") from None
    if size == "fixed":
        return squares, True
    side = len(squares[0])
    sizes = ((side, side), (side * 3 // 2, side * 2 + 1), (side * 3 + 1, side), (side - 3, side * 4 // 3))
    return [np.asarray(Image.fromarray(each).resize(one)) for each in squares for one in sizes], True


class _Exporter:
    """A loaded model, written and compared."""

    def __init__(self, model: Model, size: str, tta: bool, calibrated: bool, progress: Progress) -> None:
        self.model, self.any_size, self.tta, self.calibrated, self.progress = (
            model,
            size == "any",
            tta,
            calibrated,
            progress,
        )
        self.side, self.resize = model.decoded_size, model.config["resize"]
        self.views = tuple(model.config["tta"]) if tta else ()

    @property
    def module(self) -> ExportModule:
        return ExportModule(self.model.network, self.model.config, self.side, self.views, any_size=self.any_size).eval()

    @property
    def example(self) -> tuple[torch.Tensor]:
        """Sides that differ, so that neither is taken for the other, nor for the model's."""
        high, wide = (self.side + 5, self.side + 9) if self.any_size else (self.side, self.side)
        return (torch.randint(256, (2, high, wide, 3), dtype=torch.uint8),)

    @property
    def free(self) -> dict[int, str]:
        return {0: "batch"} | ({1: "height", 2: "width"} if self.any_size else {})

    def torch_export(self, part: Path) -> None:
        free = {"images": {side: torch.export.Dim(name) for side, name in self.free.items()}}
        with self._patience("torch-export"), torch.no_grad():
            made = torch.export.export(self.module, self.example, dynamic_shapes=free)
            torch.export.save(made, part, extra_files={"baseline.json": json.dumps(self._told())})

    def onnx(self, part: Path, ranges: Sequence[Any] = ()) -> None:
        """Writes the file; with images for `ranges`, in 8 bits."""
        import onnx

        if sum(each.nbytes for each in self.model.network.state_dict().values()) > MAX_BYTES:
            raise OutputError(f"{self.model.folder} holds more than the 2 GiB of an ONNX file. Give --to torch-export.")
        names: dict[str, Any] = {"input_names": ["images"], "output_names": ["probabilities"]}
        with self._patience("onnx"), torch.no_grad():
            program = torch.onnx.export(
                self.module, self.example, dynamo=True, verbose=False, dynamic_shapes={"images": self.free}, **names
            )
            made = program.model_proto  # type: ignore[union-attr]
        if ranges:
            made = _quantize(made, [self._input(image)[None] for image in ranges], part)
        made.doc_string = "uint8 images, batch x height x width x 3, upright RGB -> probabilities, batch x classes"
        onnx.helper.set_model_props(made, {key: _to_text(value) for key, value in self._told().items()})
        onnx.save(made, part)

    def learner(self, part: Path) -> None:
        with self._patience("learner"):
            self.model.learner.export(part.absolute())

    def _told(self) -> dict[str, Any]:
        """What whoever runs the file should know. A threshold is that of the calibrated probabilities."""
        facts = self.model.config
        kept = ("classes", "labels", "arch", "image_size", "resize", "temperature")
        told = {key: facts[key] for key in kept} | {"input_size": "any" if self.any_size else self.side}
        told |= {"views": list(self.views), "model": self.model.identity, "made_by": f"fastai-baseline {__version__}"}
        return told | ({"threshold": self.threshold} if self.model.multilabel else {})

    @property
    def threshold(self) -> float:
        """From which calibrated probability on a label is predicted, with many labels an image."""
        facts, temperature = self.model.config, self.model.config["temperature"] if self.calibrated else None
        plain = np.array([[facts["threshold"]]])
        return float(plain[0, 0] if temperature is None else apply_temperature(plain, temperature, "many")[0, 0])

    @contextmanager
    def _patience(self, form: str) -> Iterator[None]:
        """Exporters raise nearly every kind, and warn of themselves."""
        self.progress.log(f"{form}: writing {self.model.config['arch']}, which takes some seconds")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except OSError:
            raise
        except Exception as error:
            words = f"{self.model.config['arch']} cannot be written as {form}: {first_line(error)}"
            raise OutputError(f"{words}. Try another form: {', '.join(FORMATS)}.") from None

    # ---- comparing --------------------------------------------------------------------------------------------------

    def compared(self, run: Run, images: list[Any], path: Path, size: int, golden: bool) -> Exported:
        """How the file's probabilities compare with the model's."""
        worst, same, count = 0.0, 0, 0
        with self.progress.bar("comparing", len(images), "images") as bar:
            for begin in range(0, len(images), BATCH):
                some = images[begin : begin + BATCH]
                (block,) = self.model.predict_batches(
                    some, batch_size=BATCH, optimize=False, tta=self.tta, calibrated=self.calibrated
                )
                read = [number for number, error in enumerate(block.errors) if not error]
                found = self._ran(run, [self._input(some[number]) for number in read])
                expected = block.probabilities[read]
                worst = float(np.maximum(worst, np.abs(found - expected).max(initial=0)))  # also where that is nan
                same += int((self._decided(found) == self._decided(expected)).all(-1).sum())
                count += len(read)
                bar.step(len(some), f"largest difference {worst:.1e}")
        if not count:
            raise OutputError("None of the images to compare on can be read. Give others to --images.")
        return Exported(path, size, count, same, worst, golden, len(images) - count)

    def _input(self, image: Any) -> np.ndarray:
        """An image as the file takes it."""
        if not self.any_size:
            return load_square(image, self.side, self.resize)
        return np.asarray(load_image(read_image_bytes(image) if isinstance(image, str) else image, self.side))

    def _ran(self, run: Run, inputs: list[np.ndarray]) -> np.ndarray:
        """Probabilities of images that may differ in size, those of one size together."""
        found = np.empty((len(inputs), len(self.model.classes)))
        for shape in {each.shape for each in inputs}:
            rows = [number for number, each in enumerate(inputs) if each.shape == shape]
            found[rows] = run(np.stack([inputs[number] for number in rows]))
        return found

    def _decided(self, found: np.ndarray) -> np.ndarray:
        return found >= self.threshold if self.model.multilabel else found.argmax(-1)[:, None]


def _check_agreement(found: Exported, int8: bool) -> None:
    if int8 and not (found.agreement >= MIN_AGREEMENT and np.isfinite(found.difference)):
        raise WeightsError(
            f"In int8 {found.images - found.same:,} of {found.images:,} images are predicted otherwise than by the "
            f"model, more than {1 - MIN_AGREEMENT:.0%}. Leave out --int8, or give images like those of the training."
        )
    if not int8 and not found.difference <= TOLERANCE:
        raise WeightsError(
            f"What was written does not predict as the model: a probability differs by {found.difference:.2g}, at most "
            f"{TOLERANCE:g} was allowed. Nothing was kept. Try --size fixed, or another form."
        )


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _quantize(made: ModelProto, inputs: list[np.ndarray], part: Path) -> ModelProto:
    """The network from its first to its last product in 8 bits; what prepares images and makes probabilities stays."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quantization: Any = import_module("onnxruntime.quantization")
    rest = iter([{"images": each} for each in inputs])
    reader = type("Reader", (quantization.CalibrationDataReader,), {"get_next": lambda _: next(rest, None)})()
    with tempfile.TemporaryDirectory() as work:
        before, ready, after = (str(Path(work) / f"{name}.onnx") for name in ("before", "ready", "after"))
        onnx.save(made, before)
        quant_pre_process(before, ready, skip_symbolic_shape=True)
        graph = onnx.load(ready).graph
        weights = {each.name for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT}
        products = [
            number
            for number, node in enumerate(graph.node)
            if node.op_type in ("Conv", "Gemm", "MatMul") and weights & {*node.input}
        ]
        inside = [node.name for node in graph.node[products[0] : products[-1] + 1]]
        logging.disable(logging.WARNING)  # of tensors that have no channels, and are quantised whole
        try:
            quantization.quantize_static(ready, after, reader, nodes_to_quantize=inside, per_channel=True)
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(after)


@contextmanager
def _onnx_runner(path: Path) -> Iterator[Run]:
    onnxruntime: Any = import_module("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    yield lambda images: session.run(None, {"images": images})[0]


@contextmanager
def _torch_runner(path: Path) -> Iterator[Run]:
    network = torch.export.load(path).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    yield run


FASTAI = """
import os, sys, warnings
import numpy as np
told = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
warnings.simplefilter("ignore")
from fastai.learner import load_learner
learn = load_learner(sys.argv[1])
for line in sys.stdin:
    images = list(np.load("given.npy"))
    with learn.no_bar():
        found, _ = learn.get_preds(dl=learn.dls.test_dl(images, num_workers=0))
    np.save("found.npy", found.numpy())
    print(file=told, flush=True)
"""
"""What a fresh process makes of an exported learner: a line for each array that lies ready."""


@contextmanager
def _fastai_runner(path: Path) -> Iterator[Run]:
    command = [sys.executable, "-c", FASTAI, str(path.absolute())]
    pipe, alone = subprocess.PIPE, {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, env=alone, cwd=work)

        def run(images: np.ndarray) -> np.ndarray:
            assert process.stdin and process.stdout
            np.save(Path(work) / "given.npy", images)
            with suppress(BrokenPipeError):
                process.stdin.write(b"\n")
                process.stdin.flush()
            if not process.stdout.readline():
                said.seek(0)
                words = (said.read().decode(errors="replace").strip().splitlines() or ["it ended"])[-1]
                raise OutputError(f"fastai does not load what was written: {words[:200]}")
            return np.load(Path(work) / "found.npy")

        try:
            yield run
        finally:
            process.kill()
            with suppress(BrokenPipeError):
                process.communicate()


RUNNERS: dict[str, Callable[[Path], AbstractContextManager[Run]]] = {
    "onnx": _onnx_runner, "torch-export": _torch_runner, "learner": _fastai_runner,
}  # fmt: skip
