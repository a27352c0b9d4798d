"""What a rank does, in the order in which it does it."""

from __future__ import annotations

import copy
import logging
import math
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hvdkeras.data.shards import Shards
from hvdkeras.history.records import Look, RankHistory
from hvdkeras.launch import environment, gpu

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass
class Job:
    """What a training's ranks work on.

    Attributes:
        shards: the rows to train on.
        validation: the rows to evaluate the center on, if they are data of their own.
        shuffle: whether each epoch deals all rows out anew.
        num_workers: ranks that train.
        resume: whether to go on from the newest checkpoint.
    """

    shards: Shards
    validation: Shards | None
    shuffle: bool
    num_workers: int
    resume: bool


@dataclass
class Result:
    """What a rank sends to the driver; only rank 0 sends weights.

    Attributes:
        histories: one history for each model that the rank trained: one, but for ensembles.
        trainable: the trained models' trainable weights, shape `(models, n)`.
        other: the averaged rest (batch normalisation's statistics), shape `(models, m)`.
        looks: what was seen of the center.
        rest: what rank 0's model holds beside its weights, see `hvdkeras.models.vector.rest_of`; empty for
            ensembles.
    """

    histories: list[RankHistory]
    trainable: np.ndarray | None = None
    other: np.ndarray | None = None
    looks: list[Look] = field(default_factory=list)
    rest: list[np.ndarray] = field(default_factory=list)


def run(train: Callable[..., Result], trainer: Any, job: Job) -> Result:
    """Takes this rank's part of a training in a running MPI job.

    Args:
        train: `train_replica` or `train_members`.
        trainer: the `Trainer` to follow.
        job: what to work on. Ranks beyond its `num_workers` have an empty result.
    """
    place = environment.job()
    logging.getLogger("hvdkeras").setLevel(logging.INFO if trainer.verbose else logging.WARNING)
    gpu_name = gpu.pin(place.local_rank, place.local_size)
    threads = gpu.limit_threads(min(place.local_size, job.num_workers), trainer.threads)
    device = f"GPU {gpu_name}" if gpu_name else f"CPU, {threads} threads"
    environment.prepare()
    from mpi4py import MPI

    working = place.rank < job.num_workers
    comm = MPI.COMM_WORLD.Split(0 if working else MPI.UNDEFINED, place.rank)
    if not working:
        return Result([])
    result = train(trainer, job, comm, device, threads)
    comm.Free()
    return result


def train_replica(trainer: Any, job: Job, comm: MPI.Comm, device: str, threads: int) -> Result:
    """Trains one model together with the other ranks, by the trainer's rule."""
    from hvdkeras.rank.replica import Replica

    history = RankHistory(comm.rank, socket.gethostname(), device)
    replica = Replica(trainer, job, comm, history, threads)
    trainable, other = replica.train()
    if comm.rank > 0:
        return Result([history])
    return Result([history], trainable[np.newaxis], other[np.newaxis], replica.looks, replica.rest())


def train_members(trainer: Any, job: Job, comm: MPI.Comm, device: str, threads: int) -> Result:
    """Trains this rank's models of an ensemble, one after the other, each from initial weights of its own."""
    from mpi4py import MPI

    from hvdkeras.mpi.waiting import wait
    from hvdkeras.rank.replica import Replica

    histories, vectors, looks, count = [], [], [], trainer.num_models
    for member in range(comm.rank, count, comm.size):
        history = RankHistory(comm.rank, socket.gethostname(), device, model=member)
        # Callbacks remember what they have seen: each member has its own.
        own = trainer.copy()
        own.callbacks, own.center_callbacks = copy.deepcopy((own.callbacks, own.center_callbacks))
        replica = Replica(own, job, MPI.COMM_SELF, history, threads, member, count)
        vectors.append(replica.train())
        histories.append(history)
        looks += [replace(look, model=member) for look in replica.looks]
    # No bound: the others may train for as long as they need. Who is lost meanwhile ends the job.
    wait(comm.Ibarrier().Test, math.inf, "the members that other ranks train")
    trainable, other = (
        _gather(comm, [pair[i] for pair in vectors], count, trainer.timeout) for i in range(2)
    )
    return Result(histories, trainable, other, looks)


def _gather(comm: MPI.Comm, vectors: list[np.ndarray], count: int, timeout: float) -> np.ndarray | None:
    """All members' vectors at rank 0, shape `(count, n)`, in the members' order; None elsewhere."""
    from hvdkeras.mpi.waiting import wait

    gathered = []
    for turn in range(0, count, comm.size):
        taking_part = min(comm.size, count - turn)
        own = vectors[turn // comm.size] if comm.rank < taking_part else np.empty(0, np.float32)
        everyone = np.empty((taking_part, vectors[0].size), np.float32) if comm.rank == 0 else None
        counts = [vectors[0].size if rank < taking_part else 0 for rank in range(comm.size)]
        request = comm.Igatherv(own, [everyone, counts] if comm.rank == 0 else None)
        wait(request.Test, timeout, "the members' weights")
        gathered.append(everyone)
    return np.concatenate(gathered) if comm.rank == 0 else None
