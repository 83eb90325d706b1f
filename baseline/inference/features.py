"""Features of images: what the last linear layer of a network takes, before the classes (`Model.embed`)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from baseline.errors import DataError, OutputError, first_line, format_count, import_failure, missing_package
from baseline.files import write_atomic
from baseline.inference.inputs import read_batches
from baseline.progress import Progress
from baseline.reading import MAX_TABLE_BYTES, check_memory_for, check_regular, load_npz
from baseline.vision.rng import preserve_rng_state

if TYPE_CHECKING:
    from baseline.inference.model import Model
    from baseline.inference.reference import Reference

__all__ = ["Embeddings", "embed_images", "feature_layers", "nearest", "read_embeddings", "record_features", "recording"]

SUFFIXES = (".npz", ".parquet")
"""Endings of files of features."""

BLOCK_ROWS = 1024
"""Number of images that are compared with the reference images at once."""


@dataclass(frozen=True)
class Embeddings:
    """Features of images, in the order of the images."""

    paths: list[str]
    features: np.ndarray
    """N x features, float32; NaN for an image that cannot be read."""
    errors: list[str]
    """Why an image cannot be read; empty if it was read."""

    @property
    def readable(self) -> np.ndarray:
        """Whether each image could be read."""
        return np.array([not error for error in self.errors], dtype=bool)


def feature_layers(network: nn.Sequential) -> tuple[nn.Sequential, nn.Sequential]:
    """Return a network without its classifier, and the classifier: the last linear layer, with the dropout and the
    normalization directly before it.

    >>> head = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2))
    >>> features, classifier = feature_layers(nn.Sequential(nn.Identity(), head))
    >>> features(torch.zeros(1, 3, 2, 2)).shape, len(classifier)
    (torch.Size([1, 8]), 2)
    """
    layers = list(network[1].children())
    cut = len(layers)
    while cut and isinstance(layers[cut - 1], nn.Linear | nn.Dropout | nn.BatchNorm1d):
        cut -= 1
        linear = sum(isinstance(layer, nn.Linear) for layer in layers[cut:])
        if linear and cut and isinstance(layers[cut - 1], nn.Linear):
            break
    return nn.Sequential(network[0], *layers[:cut]), nn.Sequential(*layers[cut:])


@contextmanager
def record_features(network: nn.Sequential) -> Iterator[list[torch.Tensor]]:
    """Yield a list that gets the features of each forward pass of the network, N x features."""
    outputs: list[torch.Tensor] = []
    first = feature_layers(network)[1][0]
    handle = first.register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[0].detach().flatten(1)))
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def recording(reference: Reference | None, network: Any) -> Iterator[Callable[[], np.ndarray | None]]:
    """Yield a function that returns how unlike the reference the images of the first forward pass inside are.

    Without a reference it returns None; after no forward pass, an empty array.
    """
    if reference is None:
        yield lambda: None
        return
    with record_features(network) as outputs:
        yield lambda: reference.unlike(outputs[0].float().cpu().numpy()) if outputs else np.empty(0)


def embed_images(
    model: Model, images: Sequence[Any], batch_size: int = 64, progress: Progress | None = None
) -> Embeddings:
    """Return the features of images: the plain image, without test-time augmentation.

    Args:
        images: paths, archive members, or anything else that `Model.predict` takes.

    >>> embed_images(model, ["a.jpg", "b.jpg"]).features.shape                     # doctest: +SKIP
    (2, 1280)
    """
    images = list(images)
    parts: list[np.ndarray] = []
    errors: list[str] = []
    autocast = model._autocast()
    with (progress or Progress()).bar("computing features", len(images), "images") as bar, preserve_rng_state():
        layers = feature_layers(model.network)[0].eval()
        for batch, decoded in read_batches(images, batch_size, [model._decode_spec]):
            readable = [squares[0] for squares in decoded if not isinstance(squares, str)]
            errors += [result if isinstance(result, str) else "" for result in decoded]
            if readable:
                with torch.inference_mode(), autocast:
                    inputs = model.inputs(readable).contiguous(memory_format=torch.channels_last)
                    parts.append(layers(inputs).flatten(1).float().cpu().numpy())
            bar.step(len(batch))
    width = parts[0].shape[1] if parts else 0
    features = np.full((len(images), width), np.nan, np.float32)
    features[[not error for error in errors]] = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
    return Embeddings([str(image) for image in images], features, errors)


def nearest(
    features: np.ndarray, reference: np.ndarray, count: int, *, itself: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the most similar reference images, N x count, and the cosine similarities, nearest first.

    Args:
        features: N x features.
        reference: M x features.
        itself: whether the reference images are these images, of which none is its own neighbor.

    >>> nearest(np.eye(3)[:2], np.array([[1.0, 0, 0], [1, 1, 0]]), 1)[0].tolist()
    [[0], [1]]
    """
    rows, similarity = np.empty((len(features), count), int), np.empty((len(features), count), np.float32)
    target = torch.from_numpy(unit_rows(reference)).T
    for start in range(0, len(features), BLOCK_ROWS):
        block = torch.from_numpy(unit_rows(features[start : start + BLOCK_ROWS])) @ target
        if itself:
            block[torch.arange(len(block)), torch.arange(start, start + len(block))] = -2
        values, columns = block.topk(count)
        rows[start : start + len(block)], similarity[start : start + len(block)] = columns.numpy(), values.numpy()
    return rows, similarity


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Return the rows scaled to length 1, float32."""
    values = np.asarray(features, np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def add_neighbors(embedded: Embeddings, reference: Embeddings | None, count: int) -> dict[str, np.ndarray]:
    """Return `neighbors` (paths) and `similarity` of the readable images, N x count; empty and NaN for the others.

    Args:
        reference: the images to search; the embedded images themselves if None.

    Raises:
        DataError: if there are too few reference images, or they have features of another network.
    """
    searched = reference or embedded
    usable = np.flatnonzero(searched.readable)
    available = len(usable) - (reference is None)
    if available < count:
        raise DataError(f"{format_count(count, 'neighbor')} per image were asked for, and there are only {available}.")
    if searched.features.shape[1] != embedded.features.shape[1]:
        raise DataError(
            f"The reference has {searched.features.shape[1]:,} features per image, and the model "
            f"{embedded.features.shape[1]:,}. Pass a reference of the same model."
        )
    at = embedded.readable
    neighbors = np.full((len(at), count), "", object)
    similarity = np.full((len(at), count), np.nan, np.float32)
    rows, values = nearest(embedded.features[at], searched.features[usable], count, itself=reference is None)
    neighbors[at] = np.array(searched.paths, object)[usable][rows]
    similarity[at] = values
    return {"neighbors": neighbors, "similarity": similarity}


def write_embeddings(path: Path, embedded: Embeddings, neighbors: dict[str, np.ndarray]) -> None:
    """Write features, and neighbors if there are any, as `.npz` (arrays) or `.parquet` (columns).

    Raises:
        OutputError: if the file cannot be written.
    """
    buffer = io.BytesIO()
    if path.suffix.lower() == ".npz":
        texts = {"paths": embedded.paths, "errors": embedded.errors}
        arrays: dict[str, Any] = {name: np.array(values, dtype=str) for name, values in texts.items()}
        arrays |= {"features": embedded.features}
        arrays |= {name: values.astype(str) if values.dtype == object else values for name, values in neighbors.items()}
        np.savez(buffer, **arrays)
    else:
        import pyarrow as pa
        from pyarrow import parquet

        columns: dict[str, Any] = {"path": embedded.paths, "error": [error or None for error in embedded.errors]}
        rows = [row if ok else None for row, ok in zip(embedded.features, embedded.readable, strict=True)]
        columns["features"] = pa.array(rows, pa.list_(pa.float32(), embedded.features.shape[1]))
        for name, values in neighbors.items():
            for number in range(values.shape[1]):
                column = [value or None for value in values[:, number]] if values.dtype == object else values[:, number]
                columns[f"{name.removesuffix('s')}_{number + 1}"] = column
        parquet.write_table(pa.table(columns), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


def check_embeddings_path(path: Path) -> None:
    """Raise an `OutputError` if features cannot be written to a path."""
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{path} has an unknown extension; needed: {' or '.join(SUFFIXES)}.")
    if path.exists():
        raise OutputError(f"{path} already exists. Remove it, or choose another --out.")
    if path.suffix.lower() == ".parquet" and import_failure("pyarrow"):
        raise OutputError(f"{missing_package('Parquet', 'pyarrow', 'parquet', 'pyarrow')}. Or pass a .npz file.")


def read_embeddings(path: Path) -> Embeddings:
    """Read a file that `baseline embed` wrote.

    Raises:
        DataError: if it is no such file, or a Parquet file that cannot be read here.
    """
    if path.suffix.lower() != ".npz" and import_failure("pyarrow"):
        raise DataError(f"{missing_package(str(path), 'a Parquet reader', 'parquet', 'pyarrow')}.")
    try:
        check_regular(path, MAX_TABLE_BYTES)
        if path.suffix.lower() == ".npz":
            saved_paths, saved_errors, features = load_npz(path, ("paths", "errors", "features"), MAX_TABLE_BYTES)
            paths, errors = saved_paths.tolist(), saved_errors.tolist()
        else:
            from pyarrow import parquet

            table = parquet.read_table(path, columns=["path", "error", "features"])
            paths, errors = table["path"].to_pylist(), [error or "" for error in table["error"].to_pylist()]
            width = table["features"].type.list_size
            check_memory_for(8 * len(paths) * width, path)
            features = np.full((len(paths), width), np.nan, np.float32)
            features[[not error for error in errors]] = np.array(
                [row for row in table["features"].to_pylist() if row is not None], np.float32
            ).reshape(-1, width)
        if (
            features.ndim != 2
            or features.dtype != np.float32
            or len(paths) != len(features)
            or len(errors) != len(paths)
            or not all(isinstance(text, str) for text in (*paths, *errors))
        ):
            raise ValueError("its arrays do not fit together")
    except (OSError, ValueError, LookupError, AttributeError, EOFError, NotImplementedError, TypeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DataError(f"{path} does not hold features: {reason}. Pass a file that baseline embed wrote.") from None
    return Embeddings(paths, features, errors)
