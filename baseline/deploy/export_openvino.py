"""Write a model for OpenVINO: preprocessing, network, TTA views and temperature, for squares of the model's size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from baseline.deploy.export_module import ExportModule

if TYPE_CHECKING:
    from baseline.inference.model import Model

__all__ = ["openvino_runner", "write_openvino"]


def write_openvino(model: Model, folder: Path, views: tuple[str, ...] = ()) -> None:
    """Write `model.xml` and `model.bin`, in float32."""
    import openvino

    side = model.decoded_size
    module = ExportModule(model.network, model.config, side, views, any_size=False).eval()
    example = (torch.randint(256, (2, side, side, 3), dtype=torch.uint8),)
    with torch.no_grad():
        program = torch.export.export(module, example, dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    converted = openvino.convert_model(program)
    converted.reshape([-1, side, side, 3])
    openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)


@contextmanager
def openvino_runner(folder: Path, model: Model) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Yield a function from squares, N x size x size x 3, uint8, to probabilities."""
    import openvino

    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    yield lambda squares: compiled(squares)[0]
