"""One model's training on one rank: data, Keras, the rule, and what holds the ranks together."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from hvdkeras.callbacks.exchange import Distance, Events, Exchange, Record, Tell
from hvdkeras.callbacks.feed import Feed
from hvdkeras.center import ReplicatedCenter, WindowCenter, mean
from hvdkeras.checkpoint.folder import Checkpoints
from hvdkeras.checkpoint.rank_state import Position, Standing
from hvdkeras.coordination.evaluation import CenterModel
from hvdkeras.coordination.participant import Pace
from hvdkeras.coordination.supervision import Supervision
from hvdkeras.data.decoding import DecodedRows
from hvdkeras.data.rows import Rows, split
from hvdkeras.history.records import Look, RankHistory
from hvdkeras.models import schema as signature
from hvdkeras.models.vector import FlatWeights, averaged_variables, rest_of
from hvdkeras.mpi.waiting import broadcast
from hvdkeras.rank.agreement import check_agreement

if TYPE_CHECKING:
    from mpi4py import MPI

    from hvdkeras.rank.worker import Job

logger = logging.getLogger("hvdkeras")


class Replica:
    """The training of one model on this rank.

    Args:
        trainer: the `Trainer` to follow.
        job: what to work on.
        comm: the ranks that train this model together; only this one for an ensemble's member.
        history: what is filled.
        threads: TensorFlow's threads of this rank, and how many decode.
        member: which model of an ensemble it is; None where there is one model.
        members: how many there are.

    Attributes:
        looks: what was seen of the center, at rank 0.
    """

    def __init__(
        self,
        trainer: Any,
        job: Job,
        comm: MPI.Comm,
        history: RankHistory,
        threads: int,
        member: int | None = None,
        members: int = 1,
    ) -> None:
        self._trainer, self._job, self._comm, self._history = trainer, job, comm, history
        self._threads, self._member, self._members = threads, member, members
        self._held_out: np.ndarray | None = None
        self.looks: list[Look] = []
        rows = self._chosen_rows()
        self._model = self._compiled(rows)
        more = trainer.prepare(self._model, rows, comm) or ()
        self._trainable = FlatWeights(self._model.trainable_variables)
        self._other = FlatWeights(averaged_variables(self._model))
        self._position = Position(rows)
        self._pace = Pace(
            self._model.optimizer,
            lambda progress: trainer.learning_rate_factor(progress, comm.size),
            self._position,
        )
        self._rows = rows
        self._standing = Standing(self._model, self._position, history, more)

    def rest(self) -> list[np.ndarray]:
        """Returns what this rank's model holds beside its weights, the optimizer's state above all."""
        return rest_of(self._model)

    def train(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the trained weights, shape `(n,)`, and averaged variables, `(m,)`; only rank 0's count."""
        checkpoints, number = self._checkpoints(), 0
        if checkpoints and self._job.resume:
            latest = np.array([(checkpoints.latest() or 0) if self._comm.rank == 0 else 0])
            number = int(broadcast(self._comm, latest, self._trainer.timeout, "rank 0's checkpoint")[0])
        resumed = checkpoints.manifest(number) if number else {}
        saved = self._go_back(checkpoints, number, resumed) if number else None
        with self._center(self._trainable.read() if saved is None else saved["center"]) as center:
            exchange = [self._exchange(center)] if center else []
            record = Record(self._history, self._position, center, self._trainer.verbose)
            record.resume(self._standing.notes.get("running", {}))
            supervision = None
            of_rank = f"rank-{self._history.rank}" if self._member is None else f"model-{self._member}"
            callbacks = self._trainer.callbacks_of_rank(of_rank)
            if self._trainer.is_watched or self._job.validation:
                supervision = self._supervision(center, exchange, record, checkpoints, resumed)
                if saved is not None:
                    supervision.center.load(saved["center"][0], saved["other"])
                callbacks = supervision.around(callbacks)
            self._fit(
                [*self._measures(center), *exchange, *self._tellers(center), record, *callbacks], resumed
            )
            result = self._end(center, supervision)
            self._history.exchange = dict(center.telemetry) if center else {}
        return result

    def _fit(self, callbacks: list[Any], resumed: dict[str, Any]) -> None:
        epochs, position = self._trainer.num_epoch, self._position
        feed = Feed(self._rows, self._model, position.epoch, position.first_step)
        callbacks = [feed, position, self._pace, *callbacks]
        with warnings.catch_warnings():
            # A resumed epoch is shorter than Keras was told.
            warnings.filterwarnings("ignore", "Your input ran out of data")
            self._model.fit(
                feed.dataset(),
                initial_epoch=epochs if resumed.get("stopped") else position.epoch,
                epochs=epochs,
                verbose=0,
                shuffle=False,
                class_weight=signature.class_weights(
                    self._model, self._trainer.class_weight, self._rows.columns
                ),
                callbacks=keras.callbacks.CallbackList(
                    callbacks,
                    add_history=True,
                    model=self._model,
                    epochs=epochs,
                    steps=position.steps,
                    verbose=0,
                    rank=self._history.rank,
                    num_workers=self._job.num_workers,
                ),
            )

    def _end(self, center: Any, supervision: Supervision | None) -> tuple[np.ndarray, np.ndarray]:
        """The result, once all ranks have added theirs."""
        self._check_agreement(center)
        if supervision:
            result, self.looks = supervision.finish(), supervision.looks
        if center and not self._trainer.synchronous:
            center.finish()
        if supervision:
            return result or (self._trainable.read(), self._other.read())
        trainable = center.pull() if center else self._trainable.read()
        return trainable, mean(self._comm, self._other.read(), self._trainer.timeout)

    def _check_agreement(self, center: Any) -> None:
        trainer = self._trainer
        if trainer.synchronous:
            check_agreement(self._comm, center.contents()[0], trainer.timeout, "the center's weights")
        if trainer.equal_ranks:
            check_agreement(self._comm, self._trainable.read(), trainer.timeout, "the model's weights")

    def _chosen_rows(self) -> Rows | DecodedRows:
        trainer, shards, comm = self._trainer, self._job.shards, self._comm
        chosen = None
        if trainer.validation_split:
            chosen, self._held_out = split(shards.rows, trainer.validation_split, trainer.seed)
        part, parts, seed = comm.rank, comm.size, trainer.seed
        if self._member is not None:
            part, parts = (self._member, self._members) if trainer.partition else (0, 1)
            # On all rows, another seed gives each member an order of its own.
            seed += self._member
        return self._decoded(Rows(shards, part, parts, trainer.batch_size, seed, self._job.shuffle, chosen))

    def _decoded(self, rows: Rows) -> Rows | DecodedRows:
        return DecodedRows(rows, self._trainer.decode, self._threads) if self._trainer.decode else rows

    def _validation_feed(self, model: Any) -> Feed | None:
        """This rank's share of the rows to evaluate on; None where it has none."""
        shards = self._job.validation or self._job.shards
        if self._job.validation is None and self._held_out is None:
            return None
        total = shards.rows if self._held_out is None else len(self._held_out)
        sharing = min(self._comm.size, total)
        if self._comm.rank >= sharing:
            return None
        batch_size, seed = self._trainer.batch_size, self._trainer.seed
        rows = Rows(shards, self._comm.rank, sharing, batch_size, seed, False, self._held_out)
        return Feed(self._decoded(rows), model)

    def _compiled(self, rows: Rows) -> Any:
        """The model, its random layers seeded by rank; an ensemble's from initial weights of its own."""
        trainer = self._trainer
        window = trainer.communication_window or rows.steps
        number = self._comm.rank if self._member is None else self._member
        keras.utils.set_random_seed(trainer.seed + number)
        return trainer.compiled_model(
            fresh=self._member is not None, steps_per_execution=min(window, rows.steps), rank=number
        )

    def _checkpoints(self) -> Checkpoints | None:
        url = self._trainer.checkpoint
        if url is None:
            return None
        return Checkpoints(url if self._member is None else f"{url}/model-{self._member:03d}")

    def _facts(self) -> dict[str, Any]:
        return {"algorithm": type(self._trainer).__name__, "order": self._order()}

    def _order(self) -> dict[str, Any]:
        """What decides which rows make up which batch: with another an epoch can't go on in its middle."""
        trainer, held_out = self._trainer, self._held_out
        return {
            "rows": self._job.shards.rows - (0 if held_out is None else len(held_out)),
            "batch_size": trainer.batch_size,
            "communication_window": trainer.communication_window,
            "seed": trainer.seed,
            "shuffle": self._job.shuffle,
        }

    def _go_back(
        self, checkpoints: Checkpoints, number: int, manifest: dict[str, Any]
    ) -> dict[str, np.ndarray]:
        """Puts this rank where it stood, and returns what was saved of the center."""
        saved = checkpoints.read_arrays(number, "center.npz")
        if saved["center"].shape[1] != self._trainable.size:
            raise ValueError(
                f"keras_model must have the {saved['center'].shape[1]} trainable weights of the checkpoint "
                f"that it goes on from, in {checkpoints.url}. Received: {self._trainable.size}"
            )
        if manifest["num_workers"] == self._comm.size and manifest["order"] == self._order():
            self._standing.restore(checkpoints, number, self._comm.rank)
        else:
            self._standing.blend(checkpoints, number, manifest["num_workers"])
            self._trainable.write(saved["center"][0])
        self._pace.factor = self._standing.notes.get("factor", 1.0)
        if self._comm.rank == 0:
            logger.info(
                "resuming from checkpoint %d in %s, %.2f epochs of %d",
                number,
                checkpoints.url,
                manifest["progress"],
                self._trainer.num_epoch,
            )
        return saved

    @contextlib.contextmanager
    def _center(self, contents: np.ndarray) -> Iterator[Any]:
        """The center for the trainer's rule, freed at the end; None where ranks don't exchange."""
        trainer = self._trainer
        if trainer.synchronous is None:
            yield None
            return
        if trainer.synchronous:
            center = ReplicatedCenter(self._comm, np.atleast_2d(contents)[0], timeout=trainer.timeout)
        else:
            slots = trainer.center_slots
            center = WindowCenter(self._comm, contents, slots=slots, timeout=trainer.timeout)
        yield center
        # Not after an exception: the others don't answer then, and the launcher ends them all.
        center.free()

    def _exchange(self, center: Any) -> Exchange:
        state = self._standing.rule_state
        if state is None:
            state = self._trainer.begin(center.pull())
        return Exchange(self._trainer, center, self._trainable, self._position, state)

    def _measures(self, center: Any) -> list[Any]:
        return [Distance(self._history, center, self._trainable, self._position)] if center else []

    def _tellers(self, center: Any) -> list[Any]:
        events = [Events(self._history, center)] if self._trainer.timeline else []
        return [*events, *([Tell(self._history.model, self._position)] if self._trainer.verbose else [])]

    def _supervision(
        self,
        center: Any,
        exchange: list[Exchange],
        record: Record,
        checkpoints: Checkpoints | None,
        resumed: dict[str, Any],
    ) -> Supervision:
        steps = min(self._trainer.communication_window or self._position.steps, self._position.steps)
        model = self._trainer.compiled_model(steps_per_execution=steps)

        def contents() -> np.ndarray:
            return center.contents() if center else np.array(self._trainable.read()[np.newaxis])

        def save(number: int) -> None:
            self._standing.rule_state = exchange[0].state if exchange else None
            self._standing.notes = {"factor": self._pace.factor, "running": record.running()}
            self._standing.save(checkpoints, number, self._comm.rank)

        return Supervision(
            comm=self._comm,
            trainer=self._trainer,
            center=CenterModel(model, self._validation_feed(model)),
            position=self._position,
            pace=self._pace,
            other=self._other,
            contents=contents,
            waits=self._trainer.synchronous is not False,
            checkpoints=checkpoints,
            save=save,
            resumed=resumed,
            name="center" if self._member is None else f"center-{self._member}",
            facts=self._facts(),
        )
