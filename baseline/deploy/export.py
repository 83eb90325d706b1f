"""Export a model folder to a file that other programs can run, and verify the file before it gets its name.

| format | file | contents |
|---|---|---|
| `onnx` | `.onnx` | preprocessing, network, TTA views and temperature, for onnxruntime and others; no Python |
| `torch-export` | `.pt2` | the same, for torch alone |
| `learner` | `.pkl` | fastai's own export, a pickle: network and DataLoaders, without TTA or calibration |
| `timm` | folder | timm's own files, without TTA; see `baseline.deploy.export_timm` |
| `openvino` | folder | network, TTA views and temperature for OpenVINO, and squares of the model's size |
| `mlflow`, `space`, `docker` | folder | the model with what runs it; see `baseline.deploy.export_app` |
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from baseline import __version__
from baseline.data.image import load_image, load_square, read_image_bytes
from baseline.data.labels import predicted_codes
from baseline.data.sources.image_list import list_images
from baseline.deploy.export_module import ExportModule
from baseline.errors import BaselineError, OutputError, WeightsError, first_line, missing_package, unknown_name
from baseline.evaluation.calibration import apply_temperature
from baseline.files import write_atomic
from baseline.inference import DEFAULT_TTA
from baseline.inference.model import TOLERANCE, load_model
from baseline.progress import Progress
from baseline.system import all_or_none
from baseline.vision.model_folder import read_golden

if TYPE_CHECKING:
    from onnx import ModelProto

    from baseline.inference.model import Model

__all__ = ["FORMATS", "SIZES", "Exported", "export"]


FORMATS = {
    "onnx": ".onnx", "torch-export": ".pt2", "learner": ".pkl",
    **dict.fromkeys(("timm", "openvino", "mlflow", "space", "docker"), ""),
}  # fmt: skip
"""Export formats and their file extensions; empty for a folder."""

PACKAGES = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "openvino": ("openvino",), "mlflow": ("mlflow",)}
"""Packages that a format needs, which its extra of the same name installs."""

SIZES = ("any", "fixed")
"""Input sizes that an exported file can accept."""

MAX_BYTES = 1_900_000_000
"""Maximum size in bytes of the tensors in one ONNX file; the format itself is limited to 2 GiB."""

MIN_AGREEMENT = 0.95
"""Minimum fraction of images for which an int8 network must predict what the float32 network predicts."""

MIN_CALIBRATION_IMAGES, MAX_CALIBRATION_IMAGES = 20, 200
"""Minimum number of images that int8 needs, and maximum number that its ranges are measured on."""

BATCH = 32
"""Number of images per batch when the file is compared with the model."""


Run = Callable[[np.ndarray], np.ndarray]
"""Maps uint8 images, N x H x W x 3, to probabilities, N x classes."""


@dataclass(frozen=True)
class Exported:
    """An exported file and how its predictions compare with the model's."""

    path: Path
    bytes: int
    images: int
    """Number of images that both were run on."""
    agreeing: int
    """Number of those images with the same prediction."""
    max_difference: float
    """Largest difference between two probabilities."""
    golden: bool
    """Whether the images were the model folder's golden inputs."""
    unreadable: int = 0
    """Number of images that could not be read."""

    @property
    def agreement(self) -> float:
        """Fraction of images with the same prediction."""
        return self.agreeing / self.images

    def __str__(self) -> str:
        plural = "" if self.images == 1 else "s"
        kind = f"golden input{plural}" if self.golden else f"image{plural}"
        unreadable = f"; {self.unreadable:,} could not be read" if self.unreadable else ""
        return (
            f"{self.path}: {self.bytes / 1e6:.1f} MB; same prediction as the model for {self.agreeing:,} of "
            f"{self.images:,} {kind} ({self.agreement:.2%}), largest probability difference "
            f"{self.max_difference:.1e}{unreadable}"
        )


def export(
    model: str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    images: str | Sequence[str] = (),
    size: str = "any",
    tta: bool = DEFAULT_TTA,
    int8: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Export a model to another file format, and compare the two on images before the file gets its name.

    ONNX and torch-export files take uint8 images, N x H x W x 3, upright RGB, and return calibrated probabilities,
    N x classes, float32: what `Model.predict` returns. N is dynamic. An ONNX file stores its classes and settings in
    its metadata.

    Args:
        model: a run folder, or its `model/` alone.
        to: one of `FORMATS`.
        out: the file, or a folder for it; default: `NAME.onnx` in the working directory.
        images: images to compare the two on, as `baseline predict` takes them; default: the model folder's golden
            inputs.
        size: `"any"` accepts images of any size and resizes them inside exactly as `predict` does, to the last bit;
            `"fixed"` accepts squares of the model's size only, and needs no float64 inside, except for the mean over
            views.
        tta: average over the views of the run's evaluation (test-time augmentation, TTA), for which the temperature
            was fitted; if false, use the plain image alone, at a fraction of the cost.
        int8: quantize weights and activations of convolutions and matrix products to 8 bits; ranges are measured on a
            quarter of the images, at most 200, and the file is evaluated on the others.

    Raises:
        OutputError: if the format does not exist, the file or a `labels.txt` of other classes exists, a package is
            missing, or the file cannot be written.
        WeightsError: if a probability differs by more than 1e-4, or with `int8` more than one prediction in 20 differs.
        DataError: if `images` names files that do not exist.

    >>> export("runs/mine", "onnx", images="images/").max_difference               # doctest: +SKIP
    """
    progress = progress or Progress()
    check_options(to, size, int8, bool(images), tta)
    check_packages(to)
    loaded = load_model(model)
    loaded.network.cpu()  # where it computes in float32
    path = export_path(loaded, to, out, int8, overwrite)
    size = size if FORMATS[to] else "fixed"
    inputs, golden = comparison_images(loaded, [images] if isinstance(images, str) else images, size)
    exporter = Exporter(loaded, size, tta and to not in ("learner", "timm"), to != "learner", progress)
    if not FORMATS[to]:
        from baseline.deploy.export_folder import export_folder

        return export_folder(exporter, to, path, inputs, golden, overwrite)
    labels = check_labels(path, loaded.classes, overwrite)
    with partial_path(path) as part:
        if int8:
            if len(inputs) < MIN_CALIBRATION_IMAGES:
                raise OutputError(
                    f"int8 needs at least {MIN_CALIBRATION_IMAGES} images, not {len(inputs)}. Pass more to --images."
                )
            step = max(4, len(inputs) // MAX_CALIBRATION_IMAGES)
            progress.log(f"int8: ranges measured on {len(inputs[::step])} images, evaluated on the others")
            exporter.onnx(part, calibration_images=inputs[::step])
            inputs = [image for number, image in enumerate(inputs) if number % step]
        else:
            {"onnx": exporter.onnx, "torch-export": exporter.torch_export, "learner": exporter.learner}[to](part)
        with RUNNERS[to](part) as run:
            result = exporter.compare(run, inputs, path, part.stat().st_size, golden)
        check_agreement(result, int8)
        with all_or_none(label_file := path.with_name("labels.txt")):
            write_atomic(label_file, labels)
            part.replace(path)  # last: a file that exists is not written again
    return result


def check_options(to: str, size: str, int8: bool, images: bool, tta: bool) -> None:
    """Raise an OutputError if the options of an export do not fit together."""
    if to not in FORMATS:
        raise OutputError(unknown_name("format", to, FORMATS))
    if size not in SIZES:
        raise OutputError(unknown_name("size", size, SIZES))
    if int8 and to != "onnx":
        raise OutputError(f"int8 is available for onnx only, not for {to}. Omit --int8, or use --to onnx.")
    if int8 and not images:
        raise OutputError("int8 needs images to measure ranges on, and others to judge the result on. Pass --images.")
    if to == "learner" and (size != "any" or not tta):
        raise OutputError("A learner always takes images of any size, without TTA. Omit --size and --no-tta.")
    if to in ("mlflow", "space", "docker") and (size != "any" or not tta):
        raise OutputError(f"{to} predicts as baseline predict does, with TTA. Omit --size and --no-tta.")


def check_packages(to: str) -> None:
    """Raise an OutputError if a package that the format needs is not installed."""
    missing = [name for name in PACKAGES.get(to, ()) if find_spec(name) is None]
    if missing:
        raise OutputError(f"{missing_package(f'Export to {to}', ', '.join(missing), to)}.")


def export_path(model: Model, to: str, out: str | Path | None, int8: bool, overwrite: bool) -> Path:
    """Return the path of the file to write, named after the run by default."""
    folder = model.folder.absolute()
    name = folder.parent.name if folder.name == "model" else folder.name
    path = Path(out or ".").expanduser()
    if not FORMATS[to]:
        return path if out else path / f"{name or 'model'}-{to}"
    file = f"{name or 'model'}{'-int8' if int8 else ''}{FORMATS[to]}"
    path = path / file if path.is_dir() else path
    if path.suffix != FORMATS[to]:
        raise OutputError(f"{path} does not end in {FORMATS[to]}. Choose another --out.")
    if path.exists() and not (overwrite and path.is_file()):
        raise OutputError(f"{path} exists. Pass --overwrite, or another --out.")
    return path


def check_labels(path: Path, classes: list[str], overwrite: bool) -> str:
    """Return the content of `labels.txt` beside a file; raise an OutputError if there is one of other classes."""
    labels = path.with_name("labels.txt")
    content = labels_text(classes)
    if labels.exists() and not overwrite and labels.read_bytes() != content.encode():
        raise OutputError(f"{labels} exists and lists other classes. Pass --overwrite, or another --out.")
    return content


def labels_text(classes: Sequence[str]) -> str:
    """Return the content of `labels.txt`: one class per line, in the order of the outputs.

    >>> labels_text(["ants", "honey\\nbees"])
    'ants\\nhoney bees\\n'
    """
    return "".join(" ".join(name.split()) + "\n" for name in classes)


@contextmanager
def partial_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside the file, to write to and then rename; it is removed in any case."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # left behind by a process that was killed, or a link to another file
        yield part
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        reason = error.strerror or first_line(error)
        raise OutputError(f"{path} cannot be written: {reason}. Free some space, or choose another --out.") from None
    finally:
        part.unlink(missing_ok=True)


def comparison_images(model: Model, images: Sequence[str], size: str) -> tuple[list[Any], bool]:
    """Return the images to compare on, and whether they are the model folder's golden inputs."""
    if images:
        if not (paths := list(list_images(images)[0])):
            raise OutputError(f"{' '.join(images)} contains no images. Pass others to --images.")
        return paths, False
    try:
        squares = list(read_golden(model.folder, model.config)[0].numpy())
    except OutputError as error:
        raise OutputError(f"{error} Pass --images to compare on.") from None
    if size == "fixed":
        return squares, True
    side = len(squares[0])
    sizes = ((side, side), (side * 3 // 2, side * 2 + 1), (side * 3 + 1, side), (side - 3, side * 4 // 3))
    return [np.asarray(Image.fromarray(square).resize(new_size)) for square in squares for new_size in sizes], True


class Exporter:
    """Writes a loaded model to a file, and compares the file with the model."""

    def __init__(self, model: Model, size: str, tta: bool, calibrated: bool, progress: Progress) -> None:
        self.model, self.tta, self.calibrated, self.progress = model, tta, calibrated, progress
        self.any_size = size == "any"
        self.side, self.resize = model.decoded_size, model.config["resize"]
        self.value_range = model.value_range
        self.views = tuple(model.config["tta"]) if tta else ()

    @property
    def module(self) -> ExportModule:
        return ExportModule(self.model.network, self.model.config, self.side, self.views, any_size=self.any_size).eval()

    @property
    def example(self) -> tuple[torch.Tensor]:
        """Example input; its sides differ, so that neither is mistaken for the other, nor for the model's size."""
        height, width = (self.side + 5, self.side + 9) if self.any_size else (self.side, self.side)
        return (torch.randint(256, (2, height, width, 3), dtype=torch.uint8),)

    @property
    def dynamic_dims(self) -> dict[int, str]:
        return {0: "batch"} | ({1: "height", 2: "width"} if self.any_size else {})

    def torch_export(self, part: Path) -> None:
        dims = {"images": {dim: torch.export.Dim(name) for dim, name in self.dynamic_dims.items()}}
        with self.export_errors("torch-export"), torch.no_grad():
            program = torch.export.export(self.module, self.example, dynamic_shapes=dims)
            torch.export.save(program, part, extra_files={"baseline.json": json.dumps(self._metadata())})

    def onnx(self, part: Path, calibration_images: Sequence[Any] = ()) -> None:
        """Write an ONNX file, quantized to 8 bits if there are `calibration_images` to measure ranges on."""
        import onnx

        if "dynamic_shapes" not in signature(torch.onnx.export).parameters:
            raise OutputError(
                f"An ONNX file needs torch 2.5 or newer, and {torch.__version__} is installed. Update torch, or use "
                "--to torch-export."
            )
        if sum(tensor.nbytes for tensor in self.model.network.state_dict().values()) > MAX_BYTES:
            raise OutputError(f"{self.model.folder} exceeds the 2 GiB limit of an ONNX file. Use --to torch-export.")
        names: dict[str, Any] = {"input_names": ["images"], "output_names": ["probabilities"]}
        with self.export_errors("onnx"), torch.no_grad():
            program = torch.onnx.export(
                self.module,
                self.example,
                dynamo=True,
                verbose=False,
                dynamic_shapes={"images": self.dynamic_dims},
                **names,
            )
            proto = program.model_proto  # type: ignore[union-attr]
        if calibration_images:
            proto = quantize(proto, [self._input(image)[None] for image in calibration_images])
        proto.doc_string = "uint8 images, batch x height x width x 3, upright RGB -> probabilities, batch x classes"
        onnx.helper.set_model_props(proto, {key: _metadata_text(value) for key, value in self._metadata().items()})
        onnx.save(proto, part)

    def learner(self, part: Path) -> None:
        with self.export_errors("learner"):
            self.model.learner.export(part.absolute())

    def _metadata(self) -> dict[str, Any]:
        """What users of the file need to know. The threshold is that of the calibrated probabilities.

        Where each class has a threshold of its own, `threshold` is a list in the order of the classes.
        """
        facts = self.model.config
        metadata = {key: facts[key] for key in ("classes", "task", "arch", "image_size", "resize", "temperature")}
        metadata["value_range"] = list(self.value_range)
        metadata |= {"input_size": "any" if self.any_size else self.side, "views": list(self.views)}
        metadata |= {"model": self.model.identity, "made_by": f"fastai-baseline {__version__}"}
        if self.model.cut_points:  # of the expected class number by calibrated probabilities
            metadata["cut_points"] = self.model.cut_points
        return metadata | ({"threshold": self.threshold.tolist()} if self.model.multilabel else {})

    @property
    def threshold(self) -> np.ndarray:
        """Calibrated probability from which a label is predicted in multilabel models, or one per class."""
        temperature = self.model.config["temperature"] if self.calibrated else None
        uncalibrated = np.asarray(self.model.threshold)
        return uncalibrated if temperature is None else apply_temperature(uncalibrated, temperature, "multilabel")

    @contextmanager
    def export_errors(self, to: str) -> Iterator[None]:
        """Report any exception as an OutputError: exporters raise nearly every type, and emit warnings of their own."""
        self.progress.log(f"{to}: writing {self.model.config['arch']}, which takes a few seconds")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except (OSError, BaselineError):
            raise
        except Exception as error:
            reason = re.sub(r"\x1b\[[\d;]*m", "", first_line(error)).rstrip(".")
            versions = f" with torch {torch.__version__} and onnxscript {version('onnxscript')}" if to == "onnx" else ""
            newer = "export in an environment with newer ones, which loads the same model, or " if versions else ""
            others = ", ".join(name for name in FORMATS if name != to)
            message = f"{self.model.config['arch']} cannot be written as {to}{versions}: {reason}"
            raise OutputError(f"{message}. Options: {newer}another format: {others}.") from None

    # ---- comparison -------------------------------------------------------------------------------------------------

    def compare(self, run: Run, images: list[Any], path: Path, size: int, golden: bool) -> Exported:
        """Compare the file's probabilities with the model's."""
        max_difference, agreeing, count = 0.0, 0, 0
        with self.progress.bar("comparing", len(images), "images") as bar:
            for start in range(0, len(images), BATCH):
                batch = images[start : start + BATCH]
                (block,) = self.model.predict_batches(
                    batch, batch_size=BATCH, optimize=False, tta=self.tta, calibrated=self.calibrated
                )
                readable = [number for number, error in enumerate(block.errors) if not error]
                actual = self._run(run, [self._input(batch[number]) for number in readable])
                expected = block.probabilities[readable]
                # np.maximum propagates NaN
                max_difference = float(np.maximum(max_difference, np.abs(actual - expected).max(initial=0)))
                agreeing += int((self._decisions(actual) == self._decisions(expected)).all(-1).sum())
                count += len(readable)
                bar.step(len(batch), f"largest difference {max_difference:.1e}")
        if not count:
            raise OutputError("None of the images to compare on can be read. Pass others to --images.")
        return Exported(path, size, count, agreeing, max_difference, golden, len(images) - count)

    def _input(self, image: Any) -> np.ndarray:
        """Return an image as the file takes it."""
        if not self.any_size:
            return load_square(image, self.side, self.resize, self.value_range)
        content = read_image_bytes(image) if isinstance(image, str) else image
        return np.asarray(load_image(content, self.side, self.value_range))

    def _run(self, run: Run, inputs: list[np.ndarray]) -> np.ndarray:
        """Return the probabilities of images that may differ in size, batching those of equal size."""
        probabilities = np.empty((len(inputs), len(self.model.classes)))
        for shape in {image.shape for image in inputs}:
            rows = [number for number, image in enumerate(inputs) if image.shape == shape]
            probabilities[rows] = run(np.stack([inputs[number] for number in rows]))
        return probabilities

    def _decisions(self, probabilities: np.ndarray) -> np.ndarray:
        if self.model.multilabel:
            return probabilities >= self.threshold
        temperature = None if self.calibrated or not self.model.cut_points else self.model.config["temperature"]
        calibrated = probabilities if temperature is None else apply_temperature(probabilities, temperature)
        return predicted_codes(calibrated, self.model.cut_points)[:, None]


def check_agreement(result: Exported, int8: bool) -> None:
    """Raise a WeightsError if the file does not predict what the model predicts."""
    if int8 and not (result.agreement >= MIN_AGREEMENT and np.isfinite(result.max_difference)):
        raise WeightsError(
            f"The int8 network predicts {result.images - result.agreeing:,} of {result.images:,} images differently "
            f"from the model, more than {1 - MIN_AGREEMENT:.0%}. Omit --int8, or pass images like the training images."
        )
    if not int8 and not result.max_difference <= TOLERANCE:
        raise WeightsError(
            "The exported file does not predict what the model predicts: a probability differs by "
            f"{result.max_difference:.2g}, at most {TOLERANCE:g} is allowed. Nothing was written. Try --size fixed, or "
            "another format."
        )


def _metadata_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def quantize(proto: ModelProto, inputs: list[np.ndarray]) -> ModelProto:
    """Quantize the network from its first to its last weighted product; preprocessing and postprocessing stay as is."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quantization: Any = import_module("onnxruntime.quantization")
    batches = iter([{"images": array} for array in inputs])
    reader = type("Reader", (quantization.CalibrationDataReader,), {"get_next": lambda _: next(batches, None)})()
    with tempfile.TemporaryDirectory() as folder:
        original, prepared, quantized = (
            str(Path(folder) / f"{name}.onnx") for name in ("original", "prepared", "quantized")
        )
        onnx.save(proto, original)
        quant_pre_process(original, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        weights = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
        products = [
            number
            for number, node in enumerate(graph.node)
            if node.op_type in ("Conv", "Gemm", "MatMul") and weights & {*node.input}
        ]
        nodes = [node.name for node in graph.node[products[0] : products[-1] + 1]]
        logging.disable(logging.WARNING)  # about tensors without channels, which are quantized per tensor
        try:
            quantization.quantize_static(prepared, quantized, reader, nodes_to_quantize=nodes, per_channel=True)
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(quantized)


@contextmanager
def onnx_runner(path: Path) -> Iterator[Run]:
    onnxruntime: Any = import_module("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    yield lambda images: session.run(None, {"images": images})[0]


@contextmanager
def torch_runner(path: Path) -> Iterator[Run]:
    network = torch.export.load(path).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    yield run


LEARNER_SCRIPT = """
import os, sys, warnings
import numpy as np
replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
warnings.simplefilter("ignore")
from fastai.learner import load_learner
learn = load_learner(sys.argv[1])
for line in sys.stdin:
    images = list(np.load("images.npy"))
    with learn.no_bar():
        probabilities, _ = learn.get_preds(dl=learn.dls.test_dl(images, num_workers=0))
    np.save("probabilities.npy", probabilities.numpy())
    print(file=replies, flush=True)
"""
"""Script that runs an exported learner in a fresh process: one line in and one line out per array of images."""


@contextmanager
def learner_runner(path: Path) -> Iterator[Run]:
    command = [sys.executable, "-c", LEARNER_SCRIPT, str(path.absolute())]
    pipe, environment = subprocess.PIPE, {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, env=environment, cwd=folder)

        def run(images: np.ndarray) -> np.ndarray:
            assert process.stdin and process.stdout
            np.save(Path(folder) / "images.npy", images)
            with suppress(BrokenPipeError):
                process.stdin.write(b"\n")
                process.stdin.flush()
            if not process.stdout.readline():
                stderr.seek(0)
                lines = stderr.read().decode(errors="replace").strip().splitlines()
                reason = (lines or ["the process ended"])[-1]
                raise OutputError(f"fastai cannot load the exported learner: {reason[:200]}")
            return np.load(Path(folder) / "probabilities.npy")

        try:
            yield run
        finally:
            process.kill()
            with suppress(BrokenPipeError):
                process.communicate()


RUNNERS: dict[str, Callable[[Path], AbstractContextManager[Run]]] = {
    "onnx": onnx_runner, "torch-export": torch_runner, "learner": learner_runner,
}  # fmt: skip
"""How to run a file of each format."""
