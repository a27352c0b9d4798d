"""A rank's entry into a training."""

from __future__ import annotations

import copy
import logging
import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from hvdkeras.history.records import Evaluation, RankHistory
from hvdkeras.launch import environment, gpu, rank
from hvdkeras.models.rest import Rest
from hvdkeras.rank.place import Place
from hvdkeras.spec import TrainingSpec

if TYPE_CHECKING:
    from mpi4py import MPI

    from hvdkeras.rank.training import Trained


@dataclass
class Result:
    """What a rank sends to the driver; only rank 0 sends weights.

    Attributes:
        histories: one history for each model that the rank trained: one, but for ensembles.
        weights: the trained models' trainable weights, shape `(models, n)`.
        statistics: their averaged variables, such as batch normalisation's statistics, shape `(models, m)`.
        evaluations: the evaluations of the center.
        skipped_checkpoints: damaged checkpoints that were not resumed from, a line each.
        rest: what rank 0's model holds beside its weights; None for ensembles.
    """

    histories: list[RankHistory]
    weights: np.ndarray | None = None
    statistics: np.ndarray | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    skipped_checkpoints: list[str] = field(default_factory=list)
    rest: Rest | None = None


def run(spec: TrainingSpec) -> Result:
    """Takes this rank's part of a training in a running MPI job.

    Ranks beyond the training's `num_workers` have an empty result.
    """
    this = environment.job()
    logging.getLogger("hvdkeras").setLevel(logging.INFO if spec.oversight.verbose else logging.WARNING)
    gpu_name = gpu.pin(this.local_rank, this.local_size)
    threads = gpu.limit_threads(min(this.local_size, spec.num_workers), spec.threads)
    device = f"GPU {gpu_name}" if gpu_name else f"CPU, {threads} threads"
    environment.prepare()
    from mpi4py import MPI

    working = this.rank < spec.num_workers
    with rank.limit(spec.timeout, f"all {MPI.COMM_WORLD.size} ranks to begin the training"):
        comm = MPI.COMM_WORLD.Split(0 if working else MPI.UNDEFINED, this.rank)
    if not working:
        return Result([])
    with rank.importing():
        import hvdkeras.rank.training  # noqa: F401
    train = _train_one if spec.ensemble is None else _train_members
    result = train(spec, comm, device, threads)
    comm.Free()
    return result


def run_on_standing_rank(spec: TrainingSpec) -> Result:
    """As `run`, on a rank that goes on to another training: Keras and TensorFlow are left as at a start."""
    # Each training traces its functions once, which TensorFlow takes for one training that does so again.
    logging.getLogger("tensorflow").addFilter(_is_not_about_tracing)
    result = run(spec)
    import keras
    from tensorflow.python.framework import ops

    # TensorFlow keeps these for ever, and by them the graphs and models of a training that is over.
    registered = getattr(ops.gradient_registry, "_registry", {})
    for name in [name for name in registered if name.startswith("CustomGradient-")]:
        del registered[name]
    keras.backend.clear_session()
    return result


def _is_not_about_tracing(record: logging.LogRecord) -> bool:
    return "triggered tf.function retracing" not in record.getMessage()


def _train_one(spec: TrainingSpec, comm: MPI.Comm, device: str, threads: int) -> Result:
    """Trains one model together with the other ranks, by the algorithm's rule."""
    from hvdkeras.rank.training import train

    history = RankHistory(comm.rank, socket.gethostname(), device)
    trained = train(spec, Place(comm, threads), history)
    if comm.rank > 0:
        return Result([history])
    return Result(
        [history],
        trained.weights[np.newaxis],
        trained.statistics[np.newaxis],
        trained.evaluations,
        list(trained.skipped_checkpoints),
        trained.rest,
    )


def _train_members(spec: TrainingSpec, comm: MPI.Comm, device: str, threads: int) -> Result:
    """Trains this rank's members of an ensemble in turn, each with initial weights of its own."""
    from mpi4py import MPI

    from hvdkeras.mpi.waiting import wait
    from hvdkeras.rank.training import train

    histories: list[RankHistory] = []
    results: list[Trained] = []
    count = spec.ensemble.members
    for member in range(comm.rank, count, comm.size):
        history = RankHistory(comm.rank, socket.gethostname(), device, member=member)
        # Callbacks have a state: each member gets its own.
        own = replace(spec, oversight=copy.deepcopy(spec.oversight))
        results.append(train(own, Place(MPI.COMM_SELF, threads, member), history))
        histories.append(history)
    # No bound: the others may train for as long as they need. The loss of one ends the job.
    wait(comm.Ibarrier().Test, math.inf, "the members that other ranks train")
    weights = _gather(comm, [result.weights for result in results], count, spec.timeout)
    statistics = _gather(comm, [result.statistics for result in results], count, spec.timeout)
    evaluations = [
        replace(evaluation, member=history.member)
        for result, history in zip(results, histories, strict=True)
        for evaluation in result.evaluations
    ]
    skipped = [line for result in results for line in result.skipped_checkpoints]
    return Result(histories, weights, statistics, evaluations, skipped)


def _gather(comm: MPI.Comm, vectors: Sequence[np.ndarray], count: int, timeout: float) -> np.ndarray | None:
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
