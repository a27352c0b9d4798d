"""What a rank does, in the order in which it does it."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hvdkeras.data.rows import Rows
from hvdkeras.data.shards import Shards
from hvdkeras.history import RankHistory
from hvdkeras.launch import environment, gpu

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass
class Result:
    """What a rank sends to the driver; only rank 0 sends weights.

    Attributes:
        histories: one history for each model that the rank trained: one, but for ensembles.
        trainable: the trained models' trainable weights, shape `(models, n)`.
        other: the averaged rest (batch normalisation's statistics), shape `(models, m)`.
    """

    histories: list[RankHistory]
    trainable: np.ndarray | None = None
    other: np.ndarray | None = None


def run(
    train: Callable[..., Result], trainer: Any, shards: Shards, shuffle: bool, num_workers: int
) -> Result:
    """Takes this rank's part of a training in a running MPI job.

    Args:
        train: `train_replica` or `train_members`.
        trainer: the `Trainer` to follow.
        shards: the data.
        shuffle: whether each epoch deals all rows out anew.
        num_workers: ranks that train; those beyond them have an empty result.
    """
    job = environment.job()
    logging.getLogger("hvdkeras").setLevel(logging.INFO if trainer.verbose else logging.WARNING)
    gpu_name = gpu.pin(job.local_rank, job.local_size)
    threads = gpu.limit_threads(min(job.local_size, num_workers), trainer.threads)
    device = f"GPU {gpu_name}" if gpu_name else f"CPU, {threads} threads"
    environment.prepare()
    from mpi4py import MPI

    working = job.rank < num_workers
    comm = MPI.COMM_WORLD.Split(0 if working else MPI.UNDEFINED, job.rank)
    if not working:
        return Result([])
    result = train(trainer, shards, shuffle, comm, device)
    comm.Free()
    return result


def train_replica(trainer: Any, shards: Shards, shuffle: bool, comm: MPI.Comm, device: str) -> Result:
    """Trains one model together with the other ranks, by the trainer's rule."""
    from hvdkeras.exchange import Distance, Exchange
    from hvdkeras.weights import FlatWeights, averaged_variables

    rows = Rows(shards, comm.rank, comm.size, trainer.batch_size, trainer.seed, shuffle)
    model = _compiled(trainer, rows, comm.rank)
    trainer.prepare(model, rows, comm)
    trainable = FlatWeights(model.trainable_variables)
    other = FlatWeights(averaged_variables(model))
    with _center(trainer, comm, trainable.read()) as center:
        history = RankHistory(comm.rank, socket.gethostname(), device)
        exchange = []
        if center:
            exchange = [Distance(history, center, trainable), Exchange(trainer, center, trainable)]
        _fit(model, rows, history, trainer, exchange, center)
        weights = _last(trainer, center) if center else trainable.read()
        history.exchange = dict(center.telemetry) if center else {}
    mean = _mean(comm, other.read(), trainer.timeout)
    if comm.rank > 0:
        return Result([history])
    return Result([history], weights[np.newaxis], mean[np.newaxis])


def train_members(trainer: Any, shards: Shards, shuffle: bool, comm: MPI.Comm, device: str) -> Result:
    """Trains this rank's models of an ensemble, one after the other, each from initial weights of its own."""
    from hvdkeras.weights import FlatWeights, averaged_variables

    histories, vectors, count = [], [], trainer.num_models
    for member in range(comm.rank, count, comm.size):
        part, parts = (member, count) if trainer.partition else (0, 1)
        # On all rows, another seed gives each member an order of its own.
        rows = Rows(shards, part, parts, trainer.batch_size, trainer.seed + member, shuffle)
        model = _compiled(trainer, rows, member, fresh=True)
        history = RankHistory(comm.rank, socket.gethostname(), device, model=member)
        _fit(model, rows, history, trainer, [], None)
        histories.append(history)
        groups = model.trainable_variables, averaged_variables(model)
        vectors.append([FlatWeights(group).read() for group in groups])
    trainable, other = (_gather(comm, [pair[i] for pair in vectors], count) for i in range(2))
    return Result(histories, trainable, other)


def _compiled(trainer: Any, rows: Rows, number: int, fresh: bool = False) -> Any:
    """The model, its random layers seeded by `number`; with `fresh`, from initial weights of its own."""
    import keras

    window = trainer.communication_window or rows.steps
    keras.utils.set_random_seed(trainer.seed + number)
    return trainer.compiled_model(fresh=fresh, steps_per_execution=min(window, rows.steps))


def _fit(
    model: Any, rows: Rows, history: RankHistory, trainer: Any, callbacks: list[Any], center: Any
) -> None:
    from hvdkeras.exchange import Events, Record, Tell
    from hvdkeras.feed import Feed

    feed = Feed(rows, len(model.inputs))
    record = Record(history, rows.rows, center, trainer.verbose)
    events = [Events(history, center)] if trainer.timeline else []
    telling = [Tell(history.model, rows.rows)] if trainer.verbose else []
    callbacks = [feed, *callbacks, *events, record, *telling]
    model.fit(feed.dataset(), epochs=trainer.num_epoch, verbose=0, shuffle=False, callbacks=callbacks)


@contextlib.contextmanager
def _center(trainer: Any, comm: MPI.Comm, initial: np.ndarray) -> Iterator[Any]:
    """The center that the trainer's rule works with, freed at the end; None where ranks don't exchange."""
    if trainer.synchronous is None:
        yield None
        return
    from hvdkeras.center import ReplicatedCenter, WindowCenter

    if trainer.synchronous:
        center = ReplicatedCenter(comm, initial, timeout=trainer.timeout)
    else:
        center = WindowCenter(comm, initial, slots=trainer.center_slots, timeout=trainer.timeout)
    yield center
    # Not after an exception: the others don't answer then, and the launcher ends them all.
    center.free()


def _last(trainer: Any, center: Any) -> np.ndarray:
    """The center's weights once all ranks have added theirs."""
    if not trainer.synchronous:
        center.finish()
    return center.pull()


def _mean(comm: MPI.Comm, vector: np.ndarray, timeout: float) -> np.ndarray:
    """The ranks' mean of what no rule exchanges."""
    from hvdkeras.center import ReplicatedCenter

    if vector.size == 0:
        return vector
    mean = ReplicatedCenter(comm, np.zeros_like(vector), timeout=timeout)
    mean.push(vector / np.float32(comm.size))
    result = mean.pull()
    mean.free()
    return result


def _gather(comm: MPI.Comm, vectors: list[np.ndarray], count: int) -> np.ndarray | None:
    """All members' vectors at rank 0, shape `(count, n)`, in the members' order; None elsewhere."""
    gathered = []
    for turn in range(0, count, comm.size):
        taking_part = min(comm.size, count - turn)
        own = vectors[turn // comm.size] if comm.rank < taking_part else np.empty(0, np.float32)
        everyone = np.empty((taking_part, vectors[0].size), np.float32) if comm.rank == 0 else None
        counts = [vectors[0].size if rank < taking_part else 0 for rank in range(comm.size)]
        comm.Gatherv(own, [everyone, counts] if comm.rank == 0 else None)
        gathered.append(everyone)
    return np.concatenate(gathered) if comm.rank == 0 else None
