"""Memory: a bound on what the threads of one process use at the same time, and estimates of what is needed."""

from __future__ import annotations

import os
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from baseline.errors import OutputError
from baseline.system import free_memory_bytes, total_memory_bytes

if TYPE_CHECKING:
    from torch import nn

Network = TypeVar("Network", bound="nn.Module")

__all__ = ["MemoryLimit", "build_without_values", "estimate_rows", "forward_bytes", "named_memory_errors",
           "parquet_text_bytes", "release_batch", "require_memory"]  # fmt: skip


DEVICE_MEMORY_ERROR = re.compile(
    r"MPS backend out of memory|(CUDA|HIP) error: out of memory|(CUDNN|CUBLAS|HIPBLAS)_STATUS_ALLOC_FAILED"
)
"""Errors of torch about too little memory of a device that are plain `RuntimeError`s."""

SMALL_PARQUET_BYTES = 50_000_000
"""Bytes that a Parquet file may unpack to at most, by its number of rows and its size, without being measured."""


FRACTION = 1 / 4
"""Fraction of the memory that is free at first use that may be reserved at the same time."""


class MemoryLimit:
    """Lets threads wait until the memory that they need fits below a limit.

    A reservation above the limit waits until it is the only one. A thread that holds a reservation is not made to wait
    for a second one, so that it cannot wait for itself.

    Args:
        max_bytes: the limit; 0 is a quarter of the memory that is free at first use.

    >>> limit = MemoryLimit(10**9)
    >>> with limit.reserve(3 * 10**9):
    ...     limit.used_bytes
    1000000000
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self.used_bytes, self.changed, self.thread = 0, threading.Condition(), threading.local()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Context manager that waits until `size` bytes are free, and gives them back at its end."""
        if getattr(self.thread, "has_reservation", False):
            yield
            return
        self.max_bytes = self.max_bytes or int((free_memory_bytes() or total_memory_bytes() / 2) * FRACTION)
        size = min(size, self.max_bytes)
        with self.changed:
            self.changed.wait_for(lambda: self.used_bytes + size <= self.max_bytes)
            self.used_bytes += size
        self.thread.has_reservation = True
        try:
            yield
        finally:
            self.thread.has_reservation = False
            with self.changed:
                self.used_bytes -= size
                self.changed.notify_all()


COPIES_IN_FLIGHT = 4
"""Multiple of its largest tensor that a pass of a network needs: what a layer takes, makes, and computes with."""


def require_memory(needed: int, what: str) -> None:
    """Check that memory is free before it is needed; where the system does not report it, nothing is checked.

    Args:
        needed: bytes.
        what: what needs them, as the subject of the message.

    Raises:
        OutputError: if less is free.
    """
    free = free_memory_bytes()
    if free is not None and needed > free:
        raise OutputError(
            f"{what} needs {needed / 1e9:.1f} GB of memory, but only {free / 1e9:.1f} GB are free. "
            "Use a smaller model, or a machine with more memory."
        )


@contextmanager
def named_memory_errors() -> Iterator[None]:
    """Raise `torch.OutOfMemoryError` where a device or its libraries raise another `RuntimeError` about memory."""
    import torch

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not DEVICE_MEMORY_ERROR.search(str(error)):
            raise
        raise torch.OutOfMemoryError(str(error)) from None


def release_batch(learner: Any) -> None:
    """Free the memory of a batch that failed: its tensors, the graph behind them, and gradients.

    fastai drops them only where a fit ends without an error, and the next batch would not fit beside them. This has to
    be called after the `except` block, as the error refers to the frames that hold tensors.
    """
    import torch

    for name in ("xb", "yb", "pred", "loss", "loss_grad"):
        setattr(learner, name, None)
    learner.model.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


IN_PLACE_ACTIVATIONS = {"aten::hardtanh_", "aten::hardswish_", "aten::hardsigmoid_"}
"""Functions that change no shape, and for which the meta device takes a millisecond each."""


def forward_bytes(network: nn.Module, size: int) -> tuple[int, bool]:
    """Return the bytes that a pass of a network on the meta device would need for one image, and whether it ended.

    Args:
        size: height and width of the image in pixels.

    Returns:
        `COPIES_IN_FLIGHT` times the largest tensor, and False for a network that fails, such as one that does not
        accept the size: the largest tensor is that before the failure.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Largest(TorchDispatchMode):
        """Keeps the size of the largest tensor that is computed."""

        bytes = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.name() in IN_PLACE_ACTIVATIONS:
                return args[0]
            # torch derives the shape of a BatchNorm by its arithmetic in Python, which takes most of the time of a pass
            is_known = func is torch.ops.aten.batch_norm.default and _is_evaluation(*args)
            result = torch.empty_like(args[0]) if is_known else func(*args, **(kwargs or {}))
            sizes = [leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            self.bytes = max([self.bytes, *sizes])
            return result

    largest, ended = Largest(), False
    with suppress(Exception), torch.inference_mode(), largest:  # as many types as there are architectures
        network(torch.zeros(1, 3, size, size, device="meta"))
        ended = True
    return COPIES_IN_FLIGHT * largest.bytes, ended


def _is_evaluation(values: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *_: Any) -> bool:
    """Return whether these are the arguments of a BatchNorm with running statistics of as many channels."""
    return not training and mean.shape == values.shape[1:2]


SMALL_TENSOR = 4096
"""Maximum number of values of a tensor that an architecture may compute with while it is built without values."""


def build_without_values(build: Callable[[], Network]) -> Network:
    """Return a network whose tensors are on the meta device and take no memory.

    A few architectures, such as the RegNets of torchvision, compute with small tensors of their own while they are
    built: for these only large tensors are without values from the start.

    Args:
        build: builds the network.

    >>> from torch import nn
    >>> build_without_values(lambda: nn.Linear(10**6, 10**6)).weight.is_meta
    True
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map_only

    class LargeOnMeta(TorchDispatchMode):
        """Creates large tensors on the meta device."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            is_meta = [leaf.is_meta for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            if any(is_meta) and not all(is_meta):
                args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
            elif not is_meta and "device" in kwargs:
                result = func(*args, **{**kwargs, "device": torch.device("meta")})
                if result.numel() > SMALL_TENSOR:
                    return result
            return func(*args, **kwargs)

    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # values were needed
        with torch.device("cpu"), LargeOnMeta():
            return build().to("meta")


XLSX_ROW_BYTES = 100
"""Bytes of XML that a row of an Excel file has at least, with two short cells."""


def estimate_rows(path: Path) -> tuple[int, int]:
    """Return about how many rows a table has, and the bytes of its text; a small file can unpack to a large table."""
    size = path.stat().st_size
    if path.suffix.lower() == ".xlsx":
        try:
            with zipfile.ZipFile(path) as book:
                size = sum(member.file_size for member in book.infolist())
        except (zipfile.BadZipFile, ValueError):
            return 0, size
        return size // XLSX_ROW_BYTES, size
    if path.suffix.lower() == ".parquet":
        try:
            from pyarrow.parquet import read_metadata

            return read_metadata(path).num_rows, max(size, parquet_text_bytes(path))
        except (ImportError, ValueError):  # the reader says so
            return 0, size
    with path.open("rb") as file:
        sample = file.read(1 << 16)
    return size * max(1, sample.count(b"\n")) // max(1, len(sample)), size


def parquet_text_bytes(path: Path, without: str = "") -> int:
    """Return the bytes of the texts, and of other values of bytes, that a Parquet file unpacks to.

    A value that recurs is stored once, or as its difference from the one before, and takes its length in every row. A
    small file is not measured. Of a large one, only the different values are read.

    Args:
        without: a column that does not count.

    Raises:
        ValueError: if the file is damaged.
    """
    from pyarrow import ArrowException, parquet

    try:
        file = parquet.ParquetFile(path)
        columns = [name for name in file.schema_arrow.names if name != without]
        schema = [file.schema.column(number) for number in range(len(file.schema))]
        texts = [leaf.path for leaf in schema if leaf.physical_type == "BYTE_ARRAY"]
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        most = sum(group.num_rows * group.total_byte_size for group in groups)
        if most <= SMALL_PARQUET_BYTES or not texts:
            return 0
        try:
            batches = parquet.ParquetFile(path, read_dictionary=texts).iter_batches(columns=columns)
            return sum(_value_bytes(column) for batch in batches for column in batch.columns)
        except (ArrowException, OSError):  # an encoding of differences has no dictionary
            total, limit = 0, free_memory_bytes() or SMALL_PARQUET_BYTES * 100
            for batch in file.iter_batches(batch_size=16, columns=columns):
                total += batch.nbytes
                if total > limit:
                    break
            return total
    except (ArrowException, OSError) as error:
        raise ValueError(str(error)) from None


def _value_bytes(column: Any) -> int:
    """Return the bytes that the values of an Arrow array take where each is stored by itself."""
    from pyarrow import compute, types

    if types.is_struct(column.type):
        return sum(map(_value_bytes, column.flatten()))
    if types.is_list(column.type) or types.is_large_list(column.type):
        return _value_bytes(column.flatten())
    if not types.is_dictionary(column.type):
        return int(column.nbytes)
    lengths = compute.binary_length(column.dictionary).cast("int64")
    return int(compute.sum(compute.take(lengths, column.indices)).as_py() or 0)
