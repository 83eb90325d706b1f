"""The callback that keeps the network the same in all training processes."""

from __future__ import annotations

from fastai.callback.core import Callback

from baseline.parallel.distributed import all_reduce_mean


class SyncGradients(Callback):
    """Average gradients after each backward pass, and BatchNorm statistics before validation, over all processes."""

    def after_backward(self) -> None:
        all_reduce_mean([p.grad for p in self.model.parameters() if p.grad is not None])

    def before_validate(self) -> None:
        all_reduce_mean([value for value in self.model.buffers() if value.is_floating_point()])
