"""Experiment loggers: the metrics of a run, written to TensorBoard, Weights & Biases, MLflow or a CSV file.

Training reports its metrics through `Progress.log_metrics`. fastai's own logging callbacks are not used because they
are made for a single `fit`; with fastai 2.8.12, `TensorBoardCallback` writes one file per fit, starts each at step 1
and logs validation batches as training steps; `WandbCallback` raises a TypeError on our Learners before the first
batch; an error in either ends the training; and there is none for MLflow. Learning-rate searches are not logged.
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

from baseline.errors import OutputError, RecipeError, first_line, missing_package
from baseline.files import csv_rows, write_atomic
from baseline.progress import Progress

if TYPE_CHECKING:
    from baseline.progress import Bar

__all__ = ["LoggingProgress", "check_loggers", "open_loggers"]


PROJECT = "baseline"
"""Default name of the Weights & Biases project and of the MLflow experiment; environment variables override it."""


INIT_TIMEOUT_SECONDS = 30
"""Seconds to wait for an answer from Weights & Biases."""


FLUSH_INTERVAL_SECONDS = 10
"""Maximum age, in seconds, of metrics that are not yet written to disk or sent to a server."""


Values = Mapping[str, float]
"""Metrics by name."""


class MetricLogger(Protocol):
    """A destination for the metrics of one run."""

    description: str
    """What it is and where to find its output."""

    def log_metrics(self, step: int, values: Values) -> None:
        """Log metrics of one step: the number of training batches so far."""

    def summary(self, step: int, values: Values) -> None:
        """Log the final metrics of the run."""

    def close(self, status: str) -> None:
        """Close the log; `status` is `"finished"`, `"failed"` or `"killed"`."""


def check_loggers(names: tuple[str, ...]) -> None:
    """Check that the package that each logger needs is installed.

    Raises:
        RecipeError: if one is missing; the message has the command that installs it.
    """
    for name in names:
        spec = find_spec(name) if name in EXTRAS else None
        if name in EXTRAS and (spec is None or spec.origin is None):  # a namespace: just a folder of that name
            raise RecipeError(f"{missing_package(f'--loggers {name}', f'the package {name}', name)}.")


@contextmanager
def open_loggers(
    names: tuple[str, ...], folder: Path, facts: Mapping[str, Any], progress: Progress
) -> Iterator[LoggingProgress]:
    """Open each of the loggers, yield a `Progress` that writes to them, and close them with the outcome of the run.

    Args:
        names: names of loggers, from `LOGGERS` in `baseline.recipe.schema`.
        folder: the run folder; the last two parts of its path name the run.
        facts: the settings of the run, flat, logged as parameters.
        progress: receives messages and progress bars.

    Raises:
        OutputError: if a logger cannot be opened.
    """
    logging_progress = LoggingProgress(progress)
    status = "failed"
    try:
        for name in names:
            logging_progress.add(name, LOGGER_CLASSES[name], folder, facts)
        yield logging_progress
        status = "finished"
    except KeyboardInterrupt:
        status = "killed"
        raise
    finally:
        logging_progress.close(status)


class LoggingProgress(Progress):
    """A `Progress` that also sends metrics to loggers. A logger that fails is reported once and not used again."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.step = 0
        self.loggers: dict[str, MetricLogger] = {}

    def add(self, name: str, opener: Callable[..., MetricLogger], folder: Path, facts: Mapping[str, Any]) -> None:
        try:
            self.loggers[name] = opener(folder, facts)
        except Exception as error:
            raise OutputError(
                f"The log {name} cannot be opened: {first_line(error)}. Fix that, or leave it out of --loggers."
            ) from error
        self.progress.log(f"log: {self.loggers[name].description}")

    def log(self, line: str) -> None:
        self.progress.log(line)

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "") -> Iterator[Bar]:
        with self.progress.bar(title, total, unit) as bar:
            yield bar

    def log_metrics(self, step: int, values: Values) -> None:
        self.step = step
        self._call_all(lambda logger: logger.log_metrics(step, values))

    def log_summary(self, values: Values) -> None:
        self._call_all(lambda logger: logger.summary(self.step, values))

    def close(self, status: str) -> None:
        self._call_all(lambda logger: logger.close(status))
        self.loggers = {}

    def _call_all(self, call: Callable[[MetricLogger], None]) -> None:
        for name, logger in list(self.loggers.items()):
            try:
                call(logger)
            except Exception as error:
                del self.loggers[name]
                self.progress.log(f"log: {name} failed and is not used any more: {first_line(error)}")


class CsvLogger:
    """`log.csv` with one row per metric, written during training."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        path = folder / "log.csv"
        self.description = f"csv: {path}, written during training (its epochs are also in history.csv after the run)"
        write_atomic(path, "step,name,value\n")
        self.file = path.open("a", encoding="utf-8")

    def log_metrics(self, step: int, values: Values) -> None:
        self._write(csv_rows([str(step), name, repr(value)] for name, value in values.items()))

    def summary(self, step: int, values: Values) -> None:
        self.log_metrics(step, values)

    def close(self, status: str) -> None:
        self.file.close()

    def _write(self, text: str) -> None:
        self.file.write(text)
        self.file.flush()


class TensorBoardLogger:
    """Event files in the run folder: scalars, the settings as text, and a row of the hparams table at the end."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.description = f"tensorboard: {folder / 'tensorboard'}; view with: tensorboard --logdir {folder}"
        self.facts = facts
        self.writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=FLUSH_INTERVAL_SECONDS)
        rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
        self.writer.add_text("recipe", f"| field | value |\n|---|---|\n{rows}")

    def log_metrics(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def summary(self, step: int, values: Values) -> None:
        from torch.utils.tensorboard.summary import hparams

        self.log_metrics(step, values)
        # SummaryWriter.add_hparams would write them to a folder, and so a TensorBoard run, of their own
        for summary in hparams(dict(self.facts), dict(values)):
            self.writer._get_file_writer().add_summary(summary)

    def close(self, status: str) -> None:
        self.writer.close()


class WandbLogger:
    """A Weights & Biases run, separate from any that the caller has open.

    It is offline if no API key is set or the server does not answer. Its files are in the run folder or `WANDB_DIR`.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        with _set_environment(WANDB_SILENT="true"):
            import wandb

            settings = wandb.setup().settings
        init = partial(
            wandb.init,
            project=settings.project or PROJECT,
            name=settings.run_name or _run_name(folder),
            dir=os.environ.get("WANDB_DIR") or str(folder),
            config=dict(facts),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_SECONDS),
        )
        reason = ", as no API key is set" if settings.mode == "online" and not _has_api_key(settings) else ""
        try:
            self.run = init(mode="offline" if reason else None)
        except wandb.errors.CommError as error:
            reason = f", as {settings.base_url} did not answer ({first_line(error)})"
            self.run = init(mode="offline")
        self.run.define_metric("*", step_metric="step")
        offline = f"offline{reason}; upload with: wandb sync {Path(self.run.dir).parent}"
        self.description = f"wandb: {offline if self.run.offline else self.run.url or 'disabled'}"

    def log_metrics(self, step: int, values: Values) -> None:
        self.run.log({"step": step, **values})

    def summary(self, step: int, values: Values) -> None:
        self.run.summary.update(dict(values))

    def close(self, status: str) -> None:
        self.run.finish(exit_code={"finished": 0, "failed": 1, "killed": 255}[status])


class MLflowLogger:
    """An MLflow run in the store of `MLFLOW_TRACKING_URI`, else in one in the working directory.

    Metrics are sent in batches because every request is slow.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        self.metric_class = Metric
        self.pending: list[Any] = []
        self.last_sent = time.monotonic()
        with _quiet_logging(), _short_timeouts():
            self.client = mlflow.MlflowClient()
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
            experiment = self.client.get_experiment_by_name(name)
            experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
            self.run = self.client.create_run(experiment_id, run_name=_run_name(folder)).info.run_id
            params = [Param(key, str(value)) for key, value in facts.items()]
            for start in range(0, len(params), 100):  # MLflow accepts at most 100 per request
                self.client.log_batch(self.run, params=params[start : start + 100])
        self.description = f"mlflow: run {self.run} of experiment {name} in {mlflow.get_tracking_uri()}"

    def log_metrics(self, step: int, values: Values) -> None:
        now = int(1000 * time.time())
        self.pending += [self.metric_class(name, float(value), now, step) for name, value in values.items()]
        if time.monotonic() - self.last_sent > FLUSH_INTERVAL_SECONDS or len(self.pending) > 900:
            self._send()

    def summary(self, step: int, values: Values) -> None:
        self.log_metrics(step, values)

    def close(self, status: str) -> None:
        self._send()
        with _short_timeouts():
            self.client.set_terminated(self.run, status.upper())

    def _send(self) -> None:
        with _short_timeouts():
            self.client.log_batch(self.run, metrics=self.pending)
        self.pending, self.last_sent = [], time.monotonic()


LOGGER_CLASSES: dict[str, Callable[..., MetricLogger]] = {
    "csv": CsvLogger,
    "mlflow": MLflowLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
}

EXTRAS = ("mlflow", "tensorboard", "wandb")
"""Loggers whose packages are extras of this one."""


def _run_name(folder: Path) -> str:
    """Return the last two parts of the folder's path, such as `runs/mine-20261123-101500` or `five/seed-0`."""
    return "/".join(folder.absolute().parts[-2:])


def _has_api_key(settings: Any) -> bool:
    """Whether Weights & Biases can log in without a prompt: by its settings, the environment, or a .netrc file."""
    from requests.utils import get_netrc_auth

    return bool(settings.api_key or settings.identity_token_file or get_netrc_auth(settings.base_url))


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Hide log messages below warnings: MLflow reports each table that it creates in a new store."""
    previous_level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(previous_level)


def _short_timeouts() -> AbstractContextManager[None]:
    """Make MLflow give up on an unreachable server after seconds instead of its default of minutes."""
    return _set_environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", MLFLOW_HTTP_REQUEST_TIMEOUT="15")


@contextmanager
def _set_environment(**variables: str) -> Iterator[None]:
    """Set environment variables that are not set already, and unset them on exit."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]
