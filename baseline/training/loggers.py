"""Numbers of a run -> TensorBoard, Weights & Biases, MLflow or a CSV file. Knows names and steps; knows no networks.

They come from `Show.numbers`, to which training tells them, and not from fastai's callbacks, which are made for a
single `fit`. Seen with fastai 2.8.12: `TensorBoardCallback` writes a file a fit, begins each at step 1 and writes
validation batches as steps of training; `WandbCallback` ends in a TypeError on our Learners before the first batch; an
error in either ends the training; for MLflow there is none. A search for a learning rate tells no numbers.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from baseline.errors import OutputError, RecipeError, first_line
from baseline.progress import Progress

if TYPE_CHECKING:
    from baseline.progress import Bar

__all__ = ["LoggingProgress", "check_loggers", "flatten_metrics", "open_loggers"]


PROJECT = "baseline"
"""The project of Weights & Biases, and the experiment of MLflow, where the environment names no other."""


INIT_TIMEOUT_SECONDS = 30
"""How long an answer of Weights & Biases is waited for."""


FLUSH_INTERVAL_SECONDS = 10
"""About how old the newest number on disk, or on a server, may be."""


Values = Mapping[str, float]


class MetricLogger(Protocol):
    """Where the numbers of one run go."""

    words: str
    """What it is and where to look."""

    def numbers(self, step: int, values: Values) -> None: ...

    def summary(self, step: int, values: Values) -> None: ...

    def close(self, status: str) -> None:
        """The last call; the status is `"finished"`, `"failed"` or `"killed"`."""


def check_loggers(names: tuple[str, ...]) -> None:
    """Sees that the package behind each logger is installed.

    Raises:
        RecipeError: if one is not, with the line that installs it.
    """
    for name in names:
        spec = find_spec(name) if name in EXTRAS else None
        if name in EXTRAS and (spec is None or spec.origin is None):  # a folder of that name is no package
            raise RecipeError(f"--log {name} needs the package {name}: pip install 'fastai-baseline[{name}]'.")


@contextmanager
def open_loggers(
    names: tuple[str, ...], folder: Path, facts: Mapping[str, Any], progress: Progress
) -> Iterator[LoggingProgress]:
    """Opens a run in each of the loggers and closes them with how it ended; what is inside shows to `LoggingProgress`.

    Args:
        names: from `baseline.recipe.LOGGERS`.
        folder: the run folder; its last two parts name the run.
        facts: what the run is made from, flat, as parameters.
        show: where everything but numbers goes on to.

    Raises:
        OutputError: if one cannot be opened.
    """
    logs = LoggingProgress(progress)
    status = "failed"
    try:
        for name in names:
            logs.add(name, LOGGER_CLASSES[name], folder, facts)
        yield logs
        status = "finished"
    except KeyboardInterrupt:
        status = "killed"
        raise
    finally:
        logs.close(status)


class LoggingProgress(Progress):
    """A `Progress` that hands numbers to loggers. One that fails is told once, and left out from there on."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.step = 0
        self.loggers: dict[str, MetricLogger] = {}

    def add(self, name: str, opener: Callable[..., MetricLogger], folder: Path, facts: Mapping[str, Any]) -> None:
        try:
            self.loggers[name] = opener(folder, facts)
        except Exception as error:
            words = f"The log {name} cannot be opened: {first_line(error)}. Mend that, or leave it out of --log."
            raise OutputError(words) from error
        self.progress.log(f"log: {self.loggers[name].words}")

    def log(self, line: str) -> None:
        self.progress.log(line)

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "") -> Iterator[Bar]:
        with self.progress.bar(title, total, unit) as bar:
            yield bar

    def numbers(self, step: int, values: Values) -> None:
        self.step = step
        self._each(lambda logger: logger.numbers(step, values))

    def summary(self, values: Values) -> None:
        """Takes what the run reached in the end."""
        self._each(lambda logger: logger.summary(self.step, values))

    def close(self, status: str) -> None:
        self._each(lambda logger: logger.close(status))
        self.loggers = {}

    def _each(self, work: Callable[[MetricLogger], None]) -> None:
        for name, logger in list(self.loggers.items()):
            try:
                work(logger)
            except Exception as error:
                del self.loggers[name]
                self.progress.log(f"log: {name} has failed and is left out from here on: {first_line(error)}")


def flatten_metrics(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The numbers of `baseline.evaluate` under names such as `test/tta/accuracy`, ends of intervals beside them.

    >>> flatten_metrics({"test": {"images": 9, "tta": {"accuracy": 0.75, "interval": (0.3, 0.9), "loss": None}}})
    {'test/tta/accuracy': 0.75, 'test/tta/accuracy_low': 0.3, 'test/tta/accuracy_high': 0.9}
    """
    found: dict[str, float] = {}
    for split, of_split in metrics.items():
        for view in ("plain", "tta"):
            numbers = of_split.get(view, {})
            intervals = {"accuracy": numbers.get("interval"), **numbers.get("intervals", {})}
            for name, value in numbers.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    low, high = intervals.get(name) or (None, None)
                    ends = {name: value, f"{name}_low": low, f"{name}_high": high}
                    found |= {f"{split}/{view}/{end}": float(v) for end, v in ends.items() if v is not None}
    return found


class CsvLogger:
    """`log.csv`, a row a number, as training goes."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        path = folder / "log.csv"
        self.words = f"csv: {path}, written as training goes; its epochs are in history.csv after every run anyway"
        self.file = path.open("w", encoding="utf-8")
        self._write("step,name,value\n")

    def numbers(self, step: int, values: Values) -> None:
        self._write("".join(f"{step},{name},{value!r}\n" for name, value in values.items()))

    def summary(self, step: int, values: Values) -> None:
        self.numbers(step, values)

    def close(self, status: str) -> None:
        self.file.close()

    def _write(self, text: str) -> None:
        self.file.write(text)
        self.file.flush()


class TensorBoardLogger:
    """Event files in the run folder: scalars, the facts as text, and at the end a row of the hparams table."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.words = f"tensorboard: {folder / 'tensorboard'}; look with: tensorboard --logdir {folder}"
        self.facts = facts
        self.writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=FLUSH_INTERVAL_SECONDS)
        rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
        self.writer.add_text("recipe", f"| field | value |\n|---|---|\n{rows}")

    def numbers(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def summary(self, step: int, values: Values) -> None:
        from torch.utils.tensorboard.summary import hparams

        self.numbers(step, values)
        # SummaryWriter.add_hparams would put them into a folder, and so a run, of their own
        for part in hparams(dict(self.facts), dict(values)):
            self.writer._get_file_writer().add_summary(part)

    def close(self, status: str) -> None:
        self.writer.close()


class WandbLogger:
    """A run of Weights & Biases, apart from any that the caller has open; offline where no key is set or none answers.

    Its files lie in the run folder, unless `WANDB_DIR` says where.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        with _set_environment(WANDB_SILENT="true"):
            import wandb

            settings = wandb.setup().settings
        begin = partial(
            wandb.init,
            project=settings.project or PROJECT,
            name=settings.run_name or _run_name(folder),
            dir=os.environ.get("WANDB_DIR") or str(folder),
            config=dict(facts),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_SECONDS),
        )
        why = ", as no API key is set" if settings.mode == "online" and not _has_api_key(settings) else ""
        try:
            self.run = begin(mode="offline" if why else None)
        except wandb.errors.CommError as error:
            why = f", as {settings.base_url} did not answer ({first_line(error)})"
            self.run = begin(mode="offline")
        self.run.define_metric("*", step_metric="step")
        offline = f"offline{why}; send with: wandb sync {Path(self.run.dir).parent}"
        self.words = f"wandb: {offline if self.run.offline else self.run.url or 'disabled'}"

    def numbers(self, step: int, values: Values) -> None:
        self.run.log({"step": step, **values})

    def summary(self, step: int, values: Values) -> None:
        self.run.summary.update(dict(values))

    def close(self, status: str) -> None:
        self.run.finish(exit_code={"finished": 0, "failed": 1, "killed": 255}[status])


class MLflowLogger:
    """A run of MLflow where its own settings say (`MLFLOW_TRACKING_URI`, else a store in the working folder).

    Numbers are sent together, as each request takes its time.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        self.metric = Metric
        self.waiting: list[Any] = []
        self.sent = time.monotonic()
        with _quiet_logging(), _short_timeouts():
            self.client = mlflow.MlflowClient()
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
            known = self.client.get_experiment_by_name(name)
            number = known.experiment_id if known else self.client.create_experiment(name)
            self.run = self.client.create_run(number, run_name=_run_name(folder)).info.run_id
            params = [Param(key, str(value)) for key, value in facts.items()]
            for start in range(0, len(params), 100):  # at most so many a request
                self.client.log_batch(self.run, params=params[start : start + 100])
        self.words = f"mlflow: run {self.run} of experiment {name} in {mlflow.get_tracking_uri()}"

    def numbers(self, step: int, values: Values) -> None:
        now = int(1000 * time.time())
        self.waiting += [self.metric(name, float(value), now, step) for name, value in values.items()]
        if time.monotonic() - self.sent > FLUSH_INTERVAL_SECONDS or len(self.waiting) > 900:
            self._send()

    def summary(self, step: int, values: Values) -> None:
        self.numbers(step, values)

    def close(self, status: str) -> None:
        self._send()
        with _short_timeouts():
            self.client.set_terminated(self.run, status.upper())

    def _send(self) -> None:
        with _short_timeouts():
            self.client.log_batch(self.run, metrics=self.waiting)
        self.waiting, self.sent = [], time.monotonic()


LOGGER_CLASSES: dict[str, Callable[..., MetricLogger]] = {
    "csv": CsvLogger,
    "mlflow": MLflowLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
}

EXTRAS = ("mlflow", "tensorboard", "wandb")


def _run_name(folder: Path) -> str:
    """The folder's last two parts: `runs/mine-20261123-101500`, `five/seed-0`."""
    return "/".join(folder.absolute().parts[-2:])


def _has_api_key(settings: Any) -> bool:
    """Whether Weights & Biases could log in without asking: by its settings and environment, or a .netrc."""
    from requests.utils import get_netrc_auth

    return bool(settings.api_key or settings.identity_token_file or get_netrc_auth(settings.base_url))


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Inside, logging tells warnings and errors only: MLflow tells of each table that a new store gets."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def _short_timeouts() -> AbstractContextManager[None]:
    """Inside, MLflow gives up on a server that is gone after seconds, not the minutes that it has by default."""
    return _set_environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", MLFLOW_HTTP_REQUEST_TIMEOUT="15")


@contextmanager
def _set_environment(**wished: str) -> Iterator[None]:
    """Inside, these environment variables are set, unless they were already."""
    own = {name: value for name, value in wished.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]
