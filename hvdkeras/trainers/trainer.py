"""What all trainers share: their arguments, the checks of them, and the way of a training."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hvdkeras import progress, signature, timeline, weights, worker
from hvdkeras.data import sources
from hvdkeras.data.shards import Shards
from hvdkeras.estimator import TunableEstimator, require_positive
from hvdkeras.history import History
from hvdkeras.launch import environment, local, spark
from hvdkeras.recorded import Recorded

logger = logging.getLogger("hvdkeras")


class Trainer(Recorded, TunableEstimator):
    """The configuration of a training, and the rule that its ranks exchange weights by.

    The same object is what the user constructs, what is shipped to the ranks (it pickles; the model
    travels as the content of a `.keras` file) and what holds the rule. A new algorithm is a subclass that
    sets `synchronous` and writes `exchange`.

    Args:
        keras_model: a built Functional or Sequential Keras model. It is not changed by training.
        worker_optimizer: a Keras optimizer or its name, one copy for each rank. Default: the model's own
            if it is compiled, otherwise SGD at `learning_rate`.
        loss: a Keras loss, its name, a function, or a list or dict of them for several outputs. Default:
            the model's own if it is compiled.
        metrics: as in `keras.Model.compile`. Default: the model's own if it is compiled.
        loss_weights: as in `keras.Model.compile`.
        num_workers: ranks to train with. Default: 2, or all ranks of the job in which the script runs.
        batch_size: rows of one step of one rank.
        num_epoch: passes over the data.
        features_col: the column of the model's input, or a list with one column for each input.
        label_col: the column of the labels, or a list with one column for each output. Integer labels fit
            the sparse losses, and the categorical ones too: they are one-hot encoded by the output's size.
        output_col: the column that the fitted model of `fit` adds, or a list with one for each output.
        learning_rate: step size of the default optimizer; some algorithms use it in their rule, too.
        seed: of the shuffling and of the ranks' random layers.
        store: a folder or URL (anything that fsspec opens) that the driver and all ranks see. The data is
            laid out for the ranks in a new folder in it, which is removed after the training. Default: a
            temporary folder of this machine.
        custom_objects: classes and functions by name that the model needs and that are not registered
            with Keras.
        threads: TensorFlow threads of one rank. Default: the machine's cores divided by its ranks.
        timeout: seconds that a rank waits for another before it gives up with an error that says so.
        verbose: 0 is silent; 1 shows the progress on stderr, as a bar in terminals and notebooks, elsewhere
            as a line an epoch and a minute; 2 also prints a line an epoch from each rank and what mpirun
            says.
        timeline: a path or URL (anything that fsspec opens) on the driver's side, where a timeline of what
            each rank did is written after the training, for chrome://tracing and https://ui.perfetto.dev.
            Default: none. A rank keeps its first 20,000 events, two or three for each window.
        launch_options: further arguments for `hvdkeras.launch.spark.run` or `hvdkeras.launch.local.run`:
            `start_timeout`, `env`, `mpi_args`.

    Attributes:
        history: a `History` after `train`, None before.

    Raises:
        ValueError: for a count that is not a positive integer or a rate that is not a positive number.
    """

    synchronous: bool | None = None
    """True: all ranks exchange together, by collectives. False: each at its own pace, with a center at
    rank 0. None: the ranks never exchange."""

    communication_window: int = 16
    """Batches between two exchanges; also the steps that one call into TensorFlow runs."""

    work = staticmethod(worker.train_replica)
    """What a rank does."""

    center_slots: int = 0
    """How many vectors of the weights' size lie beside an asynchronous center, for the rule's own use."""

    def __init__(
        self,
        keras_model: Any,
        *,
        worker_optimizer: Any = None,
        loss: Any = None,
        metrics: Sequence[Any] | Mapping[str, Any] | None = None,
        loss_weights: Sequence[float] | Mapping[str, float] | None = None,
        num_workers: int | None = None,
        batch_size: int = 32,
        num_epoch: int = 1,
        features_col: str | Sequence[str] = "features",
        label_col: str | Sequence[str] = "label",
        output_col: str | Sequence[str] = "prediction",
        learning_rate: float = 0.01,
        seed: int = 0,
        store: str | None = None,
        custom_objects: Mapping[str, Any] | None = None,
        threads: int | None = None,
        timeout: float = 600.0,
        verbose: int = 1,
        timeline: str | None = None,
        launch_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.keras_model = keras_model
        compiled = weights.compile_arguments(keras_model)
        self.worker_optimizer = compiled.get("optimizer") if worker_optimizer is None else worker_optimizer
        self.loss = compiled.get("loss") if loss is None else loss
        self.metrics = compiled.get("metrics") if metrics is None else metrics
        self.loss_weights = compiled.get("loss_weights") if loss_weights is None else loss_weights
        self.num_workers = None if num_workers is None else require_positive("num_workers", num_workers, int)
        self.batch_size = require_positive("batch_size", batch_size, int)
        self.num_epoch = require_positive("num_epoch", num_epoch, int)
        self.features_col = features_col
        self.label_col = label_col
        self.output_col = output_col
        self.learning_rate = require_positive("learning_rate", learning_rate, float)
        self.seed = seed
        self.store = store
        self.custom_objects = dict(custom_objects or {})
        self.threads = None if threads is None else require_positive("threads", threads, int)
        self.timeout = require_positive("timeout", timeout, float)
        self.verbose = verbose
        self.timeline = timeline
        self.launch_options = dict(launch_options or {})
        self.history: History | None = None

    def exchange(self, local: np.ndarray, center: Any, state: Any, steps: int) -> tuple[np.ndarray, Any]:
        """The algorithm: what a rank does after `communication_window` batches.

        Args:
            local: the rank's trainable weights, shape `(n,)`, float32, read-only.
            center: `hvdkeras.center.ReplicatedCenter` if `synchronous`, otherwise
                `hvdkeras.center.WindowCenter`: `pull()`, `push(update)` and `exchange(rule, local, ...)`.
            state: what `begin` or the exchange before returned.
            steps: batches since then: `communication_window`, or fewer at the end of an epoch.

        Returns:
            The rank's new weights, shape `(n,)`, and the state for the next exchange.
        """
        raise NotImplementedError(f"{type(self).__name__} sets synchronous, so it must define exchange")

    def begin(self, center: np.ndarray) -> Any:
        """Returns the state for a rank's first exchange; `center`, shape `(n,)`, is where all ranks start."""
        return None

    def prepare(self, model: Any, rows: Any, comm: Any) -> None:
        """Called on each rank before it trains, for algorithms that change how Keras takes a step.

        Args:
            model: the rank's compiled Keras model.
            rows: the rank's `hvdkeras.data.rows.Rows`.
            comm: the mpi4py communicator of the ranks that train.
        """

    def check(self, num_workers: int) -> None:
        """Raises ValueError where the arguments contradict each other or the algorithm's theory."""

    def models_trained(self, num_workers: int) -> int:
        """Returns how many models train and tell their progress: one on each rank."""
        return num_workers

    def train(self, data: Any, shuffle: bool = False) -> Any:
        """Trains a copy of the model.

        Args:
            data: a Spark DataFrame (ranks run on the executors); or, with ranks on this machine, a dict of
                NumPy arrays by column name, the path of Parquet files, or `Shards` that were written
                before. In a script that runs under `horovodrun` or `mpirun` nothing is launched: each
                rank of the job takes its part, and all get the result.
            shuffle: False: each rank keeps the rows that it was given and visits them in a new order each
                epoch. True: each epoch deals all rows out anew.

        Returns:
            The trained Keras model, compiled with the trainer's loss and metrics.

        Raises:
            ValueError: if an argument, a column or the data does not fit; nothing was launched then.
            TrainingError: if a rank failed.
        """
        started = time.monotonic()
        num_workers, job = self._num_workers(), environment.job()
        self.check(num_workers)
        self._check_model()
        launch = spark.run if sources.is_dataframe(data) else local.run
        with self._shards(data) as shards:
            shards.check_rows(num_workers)
            self._check_window(shards.rows, num_workers)
            if self.timeline is not None:
                local.once(timeline.check, self.timeline)
            models = self.models_trained(num_workers)
            with progress.shown(models, num_workers, self.num_epoch, self.verbose) as receiver:
                results = launch(
                    worker.run,
                    (self.work, self, shards, shuffle, num_workers),
                    num_proc=job.size if job else num_workers,
                    verbose=self.verbose,
                    on_message=receiver,
                    **self.launch_options,
                )
        histories = sorted(
            (h for result in results for h in result.histories), key=lambda h: (h.model, h.rank)
        )
        self.history = History(histories, time.monotonic() - started, shards.rows)
        if self.timeline is not None:
            local.once(self.history.timeline, self.timeline)
        return self._trained(results[0])

    def compiled_model(self, fresh: bool = False, steps_per_execution: int = 1) -> Any:
        """Returns a copy of the model, compiled with the trainer's arguments.

        Args:
            fresh: draw initial weights anew instead of copying the model's.
            steps_per_execution: as in `keras.Model.compile`.
        """
        import keras

        content = self.keras_model
        if not isinstance(content, bytes):
            content = weights.model_to_bytes(content)
        with keras.saving.custom_object_scope(self._objects()):
            # The model is the user's own: it may hold code.
            model = weights.model_from_bytes(content, self._objects(), safe_mode=False)
            return self.compile(keras.models.clone_model(model) if fresh else model, steps_per_execution)

    def compile(self, model: Any, steps_per_execution: int = 1) -> Any:
        """Compiles a model of the same outputs with the trainer's arguments, and returns it."""
        loss, metrics, optimizer = (
            # Packed and unpacked, so that no two models share a Keras object.
            weights.unpack(weights.pack(argument), self._objects())
            for argument in (self.loss, self.metrics, self.worker_optimizer)
        )
        model.compile(
            optimizer=self.default_optimizer() if optimizer is None else optimizer,
            loss=loss,
            metrics=metrics,
            loss_weights=self.loss_weights,
            steps_per_execution=steps_per_execution,
        )
        return model

    def default_optimizer(self) -> dict[str, Any]:
        """Returns the configuration of the optimizer that ranks use where `worker_optimizer` is not given."""
        return {"class_name": "SGD", "config": {"learning_rate": self.learning_rate}}

    def __getstate__(self) -> dict[str, Any]:
        """Returns the configuration with everything that is Keras's in a form that pickles."""
        state = {**self.__dict__, "history": None, "custom_objects": self._objects()}
        if not isinstance(self.keras_model, bytes):
            state["keras_model"] = weights.model_to_bytes(self.keras_model)
        for name in ("worker_optimizer", "loss", "metrics"):
            state[name] = weights.pack(state[name])
        return state

    def _objects(self) -> dict[str, Any]:
        """The custom objects given, and those registered with Keras, of which other processes don't know."""
        import keras

        return {**keras.saving.get_custom_objects(), **self.custom_objects}

    def _num_workers(self) -> int:
        job = environment.job()
        num_workers = self.num_workers or (job.size if job else 2)
        if job and num_workers > job.size:
            raise ValueError(
                "num_workers must be at most the number of ranks of the job that the script runs in, "
                f"{job.size}. Received: {num_workers}"
            )
        return num_workers

    def _check_model(self) -> None:
        """Raises where the ranks could not rebuild and compile the model; they would fail in the same way."""
        if isinstance(self.keras_model, bytes):  # a trainer that was pickled
            self.keras_model = self.compiled_model()
        signature.columns(self.keras_model, self.loss, self.features_col, self.label_col)
        try:
            weights.check_metrics(self.metrics)
            self.compiled_model()
        except Exception as error:
            # Keras wraps the reason in the configuration of the whole model, which can fill a screen.
            reason = str(error).split("Exception encountered: ")[-1].split(" Full object config: ")[0]
            raise ValueError(
                "keras_model, worker_optimizer, loss and metrics must survive saving and loading "
                "(custom_objects names what Keras does not know). Received: "
                f"{type(self.keras_model).__name__} {self.keras_model.name!r}, "
                f"{type(error).__name__}: {reason}"
            ) from error

    def _check_window(self, rows: int, num_workers: int) -> None:
        """Warns where the window that was asked for can't be had."""
        steps = -(-rows // (num_workers * self.batch_size))
        job = environment.job()
        exchanges = self.synchronous is not None and (job is None or job.rank == 0)
        if exchanges and (self.communication_window or 0) > steps:
            logger.warning(
                "communication_window should be at most the %d batches of an epoch: a window ends with its "
                "epoch. Received: %d",
                steps,
                self.communication_window,
            )

    @contextlib.contextmanager
    def _shards(self, data: Any) -> Iterator[Shards]:
        """The data laid out for the ranks, and removed at the end if it was laid out here."""
        if sources.is_dataframe(data) and environment.job():
            raise ValueError(
                "data must be NumPy arrays, a Parquet path or shards in a script that runs under mpirun "
                "or horovodrun. Received: a Spark DataFrame, whose ranks Spark launches"
            )
        columns = signature.columns(
            self.keras_model, self.loss, self.features_col, self.label_col, sources.scalar_columns(data)
        )
        if isinstance(data, Shards):
            data.check_columns(columns)
            yield data
            return
        shards = local.once(sources.write, data, columns, self.store)
        try:
            yield shards
        finally:
            local.once(shards.remove)

    def _trained(self, result: worker.Result) -> Any:
        return self._models(result)[0]

    def _models(self, result: worker.Result) -> list[Any]:
        """Models of this process with the weights that the ranks found."""
        models = []
        for trainable, other in zip(result.trainable, result.other, strict=True):
            model = self.compiled_model()
            weights.assign(model.trainable_variables, trainable)
            weights.assign(weights.averaged_variables(model), other)
            models.append(model)
        return models
