"""What all trainers share: the contract of an algorithm, and the way of a training on the driver."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hvdkeras.checkpoint.folder import Checkpoints
from hvdkeras.data import decoding, sources
from hvdkeras.data.columns import Column
from hvdkeras.data.rows import split
from hvdkeras.data.shards import Shards
from hvdkeras.history import progress, timeline
from hvdkeras.history.questions import Recorded
from hvdkeras.history.records import History
from hvdkeras.launch import environment, local, spark
from hvdkeras.launch.failure import TrainingError
from hvdkeras.ml.estimator import require_positive
from hvdkeras.models import schema as signature
from hvdkeras.models import vector as weights
from hvdkeras.rank import worker
from hvdkeras.trainers.arguments import Arguments

__all__ = ["Trainer", "require_positive"]

logger = logging.getLogger("hvdkeras")


class Trainer(Recorded, Arguments):
    """The configuration of a training, and the rule that its ranks exchange weights by.

    The same object is what the user constructs, what is shipped to the ranks and what holds the rule. A new
    algorithm is a subclass that sets `synchronous` and writes `exchange`. See `Arguments` for the arguments
    that all trainers share.

    Attributes:
        history: a `History` after `train`, None before.
    """

    synchronous: bool | None = None
    """True: all ranks exchange together, by collectives. False: each at its own pace, with a center at
    rank 0. None: the ranks never exchange."""

    equal_ranks: bool = False
    """Whether all ranks must end with the same weights, which they then compare."""

    communication_window: int = 16
    """Batches between two exchanges; also the steps that one call into TensorFlow runs."""

    work = staticmethod(worker.train_replica)
    """What a rank does."""

    center_slots: int = 0
    """How many vectors of the weights' size lie beside an asynchronous center, for the rule's own use."""

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

    def prepare(self, model: Any, rows: Any, comm: Any) -> Sequence[Any]:
        """Called on each rank before it trains, for algorithms that change how Keras takes a step.

        Args:
            model: the rank's compiled Keras model.
            rows: the rank's `hvdkeras.data.rows.Rows`.
            comm: the mpi4py communicator of the ranks that train.

        Returns:
            Variables, beyond the model's and its optimizer's, that the training depends on: checkpoints hold
            them, too.
        """
        return ()

    def learning_rate_factor(self, progress: float, num_workers: int) -> float:
        """Returns what the optimizer's learning rate is multiplied by after `progress` epochs."""
        return 1.0

    def check(self, num_workers: int) -> None:
        """Raises ValueError where the arguments contradict each other or the algorithm's theory."""

    def train(
        self, data: Any, shuffle: bool = False, *, validation_data: Any = None, resume: bool = False
    ) -> Any:
        """Trains a copy of the model.

        Args:
            data: a Spark DataFrame (ranks run on the executors); or, with ranks on this machine, a dict of
                NumPy arrays by column name, the path of Parquet files, or `Shards` that were written
                before. In a script that runs under `horovodrun` or `mpirun` nothing is launched: each
                rank of the job takes its part, and all get the result.
            shuffle: False: each rank keeps the rows that it was given and visits them in a new order each
                epoch. True: each epoch deals all rows out anew.
            validation_data: more data, of one of these kinds, on which the ranks together evaluate the
                center after each epoch.
            resume: go on from the newest complete checkpoint in `checkpoint`, or begin if there is none. A
                synchronous training then reaches the weights that it would have reached without the
                interruption, given the same rows in the same order. An asynchronous one loses no rows; those
                between its last checkpoint and its end are trained on again. With another number of ranks
                the epoch under way begins anew, from the center and the mean of the optimizers' states. What
                callbacks remember is not in a checkpoint.

        Returns:
            The trained Keras model, compiled with the trainer's loss and metrics. Its optimizer has the
            state of rank 0's, which is everybody's in `SynchronousSGD`; where ranks keep optimizers of their
            own, it is one of them. An ensemble's members have optimizers that begin anew.

        Raises:
            ValueError: if an argument, a column or the data does not fit; nothing was launched then.
            TrainingError: if a rank failed.
        """
        started = time.monotonic()
        num_workers = self._num_workers()
        self.check(num_workers)
        self._check_model()
        self._check_oversight_of(validation_data, resume)
        if self.timeline is not None:
            local.once(timeline.check, self.timeline)
        with self._shards(data) as shards, self._validation_shards(validation_data) as validation:
            for laid_out in filter(None, (shards, validation) if self.decode else ()):
                local.once(decoding.check_decode, laid_out, self.decode)
            chosen = None
            if self.validation_split:
                chosen, _ = split(shards.rows, self.validation_split, self.seed)
            shards.check_rows(num_workers, chosen)
            self._check_window(shards.rows if chosen is None else len(chosen), num_workers)
            launch = spark.run if sources.is_dataframe(data) else local.run
            job = worker.Job(shards, validation, shuffle, num_workers, resume)
            results, restarts = self._launched(launch, job)
        histories = [history for result in results for history in result.histories]
        looks = [look for result in results for look in result.looks]
        self.history = History(
            sorted(histories, key=lambda history: (history.model, history.rank)),
            time.monotonic() - started,
            shards.rows,
            sorted(looks, key=lambda look: (look.model, look.seconds)),
            restarts,
        )
        self._write_timeline(self.timeline)
        return self._trained(results[0])

    def _num_workers(self) -> int:
        job = environment.job()
        num_workers = self.num_workers or (job.size if job else 2)
        if job and num_workers > job.size:
            raise ValueError(
                "num_workers must be at most the number of ranks of the job that the script runs in, "
                f"{job.size}. Received: {num_workers}"
            )
        return num_workers

    def _launched(self, launch: Any, job: worker.Job) -> tuple[list[worker.Result], list[str]]:
        """Runs the ranks, again from the last checkpoint if one is lost; returns why that was, too."""
        here, restarts = environment.job(), []
        models = self.models_trained(job.num_workers)
        while True:
            try:
                with progress.shown(models, job.num_workers, self.num_epoch, self.verbose) as receiver:
                    results = launch(
                        worker.run,
                        (self.work, self, job),
                        num_proc=here.size if here else job.num_workers,
                        verbose=self.verbose,
                        on_message=receiver,
                        **self.launch_options,
                    )
                return results, restarts
            except TrainingError as error:
                # What a rank raised it would raise again.
                if len(restarts) == self.max_restarts or error.remote_traceback is not None:
                    raise
                restarts.append(str(error).splitlines()[0])
                logger.warning(
                    "restart %d of %d from the last checkpoint: %s",
                    len(restarts),
                    self.max_restarts,
                    restarts[-1],
                )
                job = replace(job, resume=True)

    def _check_oversight_of(self, validation_data: Any, resume: bool) -> None:
        """Raises where checkpoints or validation can't be as they are asked for."""
        if validation_data is not None and self.validation_split:
            raise ValueError(
                "validation_data must be left out where validation_split is given. "
                f"Received: validation_split={self.validation_split}"
            )
        if self.stop_at and validation_data is None and not self.validation_split:
            raise ValueError("stop_at needs validation_split or validation_data. Received: neither")
        if self.max_restarts and environment.job():
            raise ValueError(
                "max_restarts must be 0 in a script that runs under mpirun or horovodrun: who started it "
                f"restarts it, with resume=True. Received: {self.max_restarts}"
            )
        if self.checkpoint is None:
            if resume:
                raise ValueError("resume needs checkpoint. Received: checkpoint=None")
        else:
            local.once(Checkpoints(self.checkpoint).check, type(self).__name__, resume)

    def _check_model(self) -> None:
        """Raises where the ranks could not rebuild and compile the model; they would fail in the same way."""
        if self.keras_model is None:  # a trainer that was pickled
            self._restore()
        signature.class_weights(self.keras_model, self.class_weight, self._columns())
        self._recipe = None
        self._warn_of_rate(getattr(self.recipe.optimizer, "learning_rate", None))

    def _warn_of_rate(self, own: float | None) -> None:
        """Warns where `learning_rate` is not that of the optimizer, which was given as an object."""
        named = self.worker_optimizer is None or isinstance(self.worker_optimizer, str)
        if self._has_rate and not named and own is not None and not np.isclose(own, self.learning_rate):
            logger.warning(
                "learning_rate does not change worker_optimizer, which was given with a rate of its own, %g: "
                "set it there, or give the optimizer's name. Received: learning_rate=%g",
                own,
                self.learning_rate,
            )

    def _columns(self, scalars: Container[str] = ()) -> tuple[Column, ...]:
        """What a training reads of data whose columns `scalars` hold one number a row."""
        columns = self.features_col, self.label_col, scalars, self.sample_weight_col
        return signature.columns(self.keras_model, self.loss, *columns)

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
        columns = tuple(
            replace(column, encoded=column.name in self.decode)
            for column in self._columns(sources.scalar_columns(data) - self.decode.keys())
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

    @contextlib.contextmanager
    def _validation_shards(self, data: Any) -> Iterator[Shards | None]:
        if data is None:
            yield None
            return
        with self._shards(data) as shards:
            yield shards

    def _trained(self, result: worker.Result) -> Any:
        return self._models(result)[0]

    def _models(self, result: worker.Result) -> list[Any]:
        """Models of this process with the weights that the ranks found."""
        models = []
        for trainable, other in zip(result.trainable, result.other, strict=True):
            model = self.compiled_model()
            weights.assign(model.trainable_variables, trainable)
            weights.assign(weights.averaged_variables(model), other)
            weights.take_rest(model, result.rest)
            models.append(model)
        return models
