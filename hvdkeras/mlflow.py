"""MLflow: each training of this process becomes a run of an experiment."""

from __future__ import annotations

import inspect
import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from hvdkeras.arguments import declared_arguments
from hvdkeras.driver import tracking as driver
from hvdkeras.driver.configuration import Configuration
from hvdkeras.driver.training import Request
from hvdkeras.history import History
from hvdkeras.history.progress import Advance, Totals, senders
from hvdkeras.history.records import Evaluation
from hvdkeras.history.values import Value, components
from hvdkeras.models.schema import tensors
from hvdkeras.models.signature import functional, signature_of
from hvdkeras.naming import cut
from hvdkeras.spec import EnsembleSpec

try:
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"hvdkeras.mlflow needs MLflow 3: pip install 'hvdkeras[mlflow]'. Received: {error}", name=error.name
    ) from error

logger = logging.getLogger("hvdkeras")

# The environment of ranks may hold credentials.
_SECRET = ("launch_options",)
# MLflow takes 6,000 characters; its page shows fewer.
_LONGEST = 500
# For the messages that wait when a training ends.
_JOIN_SECONDS = 60.0


@contextmanager
def tracking(log_models: bool = True) -> Iterator[list[str]]:
    """Makes each training of this process in the block a run of MLflow, with all that is known of it.

        mlflow.set_experiment("digits")
        with hvdkeras.mlflow.tracking() as runs:
            EASGD(model, rho=1.0).train(rows)
        mlflow.keras.load_model(f"runs:/{runs[-1]}/model")

    This process alone logs, and no rank does. A run gets

    - before the launch: the trainer's arguments as params, without `launch_options`, whose environment may
      hold credentials;
    - during the training: the metrics of each evaluation of the center, and for each epoch the mean of the
      ranks' metrics. The step of a metric is the epoch, rounded. The metrics of an ensemble's members begin
      with `member_0/` and so on;
    - after it: `history.json`, which `History.load` reads, the picture `history.png`, `timeline.json` where
      the trainer has a `timeline`, and the trained model with its signature as `model`, or several as
      `model_0` and so on.

    It is a child of the run that was active when the block began; so is each candidate of a `CrossValidator`.
    The run of a training that fails has the status FAILED. Where MLflow fails after the training has begun,
    there is a warning, and the training is not affected. In a script that runs under `horovodrun` or `mpirun`
    rank 0 logs.

    Args:
        log_models: whether the trained models are logged.

    Yields:
        The ids of the runs, in the order in which they began.

    Raises:
        ValueError: the block is inside another one.
        mlflow.exceptions.MlflowException: a training began, and MLflow took no run.
    """
    runs: list[str] = []
    parent = mlflow.active_run()
    experiment = None if parent is None else parent.info.experiment_id
    begin = partial(
        mlflow.start_run,
        experiment_id=experiment,
        nested=True,
        parent_run_id=None if parent is None else parent.info.run_id,
    )
    with driver.following(partial(_run, begin, runs, log_models)):
        yield runs


@contextmanager
def _run(
    begin: Callable[..., Any],
    runs: list[str],
    log_models: bool,
    trainer: Configuration,
    ensemble: EnsembleSpec | None,
    num_workers: int,
    request: Request,
) -> Iterator[_Run]:
    with begin(run_name=type(trainer).__name__) as active:
        runs.append(active.info.run_id)
        mlflow.log_params(_params(trainer, num_workers, request))
        members = ensemble.members if ensemble else num_workers
        expected = senders(members, num_workers)
        run = _Run(
            active.info.run_id, lambda: Totals(expected, trainer.num_epoch), bool(ensemble), log_models
        )
        try:
            yield run
        except BaseException as error:
            mlflow.set_tag("error", cut(f"{type(error).__name__}: {error}", _LONGEST))
            raise
        finally:
            run.close()


class _Run(driver.TrainingRun):
    """One training; a thread of its own sends what arrives while it trains.

    Args:
        run_id: of the run, which is active in the thread that trains.
        totals: makes an empty account of the ranks' progress.
        is_ensemble: whether several models are trained.
        log_models: whether the trained models are logged.
    """

    def __init__(
        self, run_id: str, totals: Callable[[], Totals], is_ensemble: bool, log_models: bool
    ) -> None:
        self._id, self._new_totals, self._is_ensemble = run_id, totals, is_ensemble
        self._log_models = log_models
        self._totals = totals()
        self._epochs: set[int] = set()
        self._evaluations = 0
        self._messages: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)
        self._thread.start()

    def on_message(self, rank: int, message: Any) -> None:
        self._messages.put((rank, message, time.time()))

    def finish(self, history: History, models: Callable[[], list[Any]]) -> None:
        self.close()
        self._try("the metrics", self._log_rest, history)
        self._try("the history", self._log_history, history)
        made = models() if self._log_models else []
        for number, model in enumerate(made):
            name = f"model_{number}" if len(made) > 1 else "model"
            self._try(f"the {name}", _log_model, model, name)

    def close(self) -> None:
        """Sends what waits, and ends the thread. A second call does nothing."""
        self._messages.put(None)
        self._thread.join(_JOIN_SECONDS)
        if self._thread.is_alive():
            logger.warning("MLflow has not taken all metrics within %g s", _JOIN_SECONDS)

    def _send_all(self) -> None:
        while (arrived := self._messages.get()) is not None:
            if not self._try("the metrics while the training runs", self._send, *arrived):
                return

    def _send(self, rank: int, message: Any, at: float) -> None:
        if isinstance(message, Evaluation):
            self._evaluations += 1
            self._log_evaluation(message, at)
        elif isinstance(message, Advance):
            before = self._totals.newest.get((rank, message.member))
            if before is not None and message.rows < before.rows:
                self._totals = self._new_totals()  # a restart
            for epoch, metrics in self._totals.add(rank, message).items():
                self._log(metrics, epoch, at)
                self._epochs.add(epoch)

    def _log_rest(self, history: History) -> None:
        """Logs what did not arrive: of before a resume, and epochs that not all ranks have ended."""
        now, averaged = time.time(), history.averaged()
        for epoch in range(len(history.rows_seen())):
            if epoch + 1 not in self._epochs:
                metrics = {name: values[epoch] for name, values in averaged.items() if epoch < len(values)}
                self._log(metrics, epoch + 1, now)
        missing = max(0, len(history.center) - self._evaluations)
        for evaluation in history.center[:missing]:
            self._log_evaluation(evaluation, now)
        self._log({"training_time": history.training_time, "rows": history.rows}, 0, now)

    def _log_evaluation(self, evaluation: Evaluation, at: float) -> None:
        prefix = f"member_{evaluation.member}/" if self._is_ensemble else ""
        metrics = {f"{prefix}{name}": value for name, value in evaluation.metrics.items()}
        self._log(metrics, round(evaluation.epoch), at)

    def _log(self, metrics: Mapping[str, Value], step: int, at: float) -> None:
        if metrics:
            numbers = components(metrics)
            mlflow.log_metrics(numbers, step=step, timestamp=int(1000 * at), run_id=self._id)

    def _log_history(self, history: History) -> None:
        with tempfile.TemporaryDirectory(prefix="hvdkeras-") as folder:
            history.save(os.path.join(folder, "history.json"))
            history.plot(os.path.join(folder, "history.png"))
            if any(rank.events for rank in history.ranks):
                history.timeline(os.path.join(folder, "timeline.json"))
            mlflow.log_artifacts(folder, run_id=self._id)

    @staticmethod
    def _try(what: str, log: Callable[..., None], *arguments: Any) -> bool:
        """Logs something; an error must not cost the model that was trained."""
        try:
            log(*arguments)
        except Exception:
            logger.warning("MLflow did not take %s", what, exc_info=True)
            return False
        return True


def _params(trainer: Configuration, num_workers: int, request: Request) -> dict[str, str]:
    """The trainer's arguments as text, without those that are empty."""
    names = [name for name in declared_arguments(type(trainer)) if name not in _SECRET]
    values = {name: getattr(trainer, name) for name in names}
    values.update(num_workers=num_workers, shuffle=request.shuffle, resume=request.resume)
    texts = {name: _text(value) for name, value in values.items() if value not in (None, [], {})}
    return {"trainer": type(trainer).__name__, **{name: cut(text, _LONGEST) for name, text in texts.items()}}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if inspect.isroutine(value) or inspect.isclass(value):
        return value.__name__
    if hasattr(value, "get_config"):
        return f"{type(value).__name__}({_text(value.get_config())})"
    return type(value).__name__ if type(value).__repr__ is object.__repr__ else str(value)


def _log_model(model: Any, name: str) -> None:
    import mlflow.keras

    mlflow.keras.log_model(
        model,
        name=name,
        signature=_signature(model),
        # MLflow would find them by loading the model in a process of its own, for half a minute.
        pip_requirements=[f"{package}=={version(package)}" for package in ("keras", "numpy")]
        + [f"tensorflow=={_tensorflow()}"],
    )


def _tensorflow() -> str:
    import tensorflow

    return tensorflow.__version__


def _signature(model: Any) -> ModelSignature:
    """The shapes and types of a model's inputs and outputs."""
    model = model if signature_of(model) is None else functional(model)
    return ModelSignature(*(Schema(_specs(tensors(model, which))) for which in ("inputs", "outputs")))


def _specs(known: list[Any]) -> list[TensorSpec]:
    # A single tensor goes without its name: Keras takes it as it is, and not in a dict.
    return [
        TensorSpec(
            np.dtype(object if tensor.dtype == "string" else tensor.dtype),
            tuple(-1 if axis is None else axis for axis in tensor.shape),
            tensor.name if len(known) > 1 else None,
        )
        for tensor in known
    ]
