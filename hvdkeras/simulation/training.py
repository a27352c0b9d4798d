"""`simulate`: a trainer's algorithm with many workers, in simulated time."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hvdkeras.algorithm import Mode, check_contract
from hvdkeras.data.sources import by_column
from hvdkeras.history.records import Evaluation
from hvdkeras.naming import shown
from hvdkeras.simulation.dense import DenseModel
from hvdkeras.simulation.problems import Problem
from hvdkeras.simulation.replicas import SGD
from hvdkeras.simulation.result import Simulation
from hvdkeras.simulation.runs import Asynchronous, Averaged, Run, Setup, Synchronous
from hvdkeras.simulation.times import Failures, Times

if TYPE_CHECKING:
    from hvdkeras.trainers import Trainer

# Arguments of a trainer that change what its ranks compute, and that are not simulated.
_REFUSED = (
    "sample_weight_col",
    "class_weight",
    "loss_weights",
    "decode",
    "padding",
    "validation_split",
    "validation_indicator_col",
    "resume",
    "callbacks",
    "center_callbacks",
    "stop_at",
)
# Restarts from one checkpoint after which a training counts as one that never ends.
_VAIN = 1000
_RUNS = {Mode.ASYNCHRONOUS: Asynchronous, Mode.SYNCHRONOUS: Synchronous, Mode.GRADIENTS: Averaged}


def simulate(
    trainer: Trainer,
    data: Any,
    num_workers: int,
    times: Times,
    *,
    shuffle: bool | None = None,
    validation_data: Any = None,
    failures: Failures | None = None,
    seconds: float | None = None,
    evaluations: int = 1,
    seed: int = 0,
) -> Simulation:
    """Trains with many workers in this process, and says how long that would take.

    The trainer's own algorithm runs, with its rule, its optimizer, its communication window and its
    `num_epoch`. Time is simulated: nothing waits.

    Args:
        trainer: the trainer. Its optimizer must be SGD, with momentum or without.
        data: arrays by column name, or a pandas DataFrame, for the trainer's model, which must be Sequential
            with Dense and Flatten layers; or a `Problem` such as `Quadratic`, which takes the place of the
            trainer's model, loss and data.
        num_workers: number of workers, from 1.
        times: seconds of the parts of a training.
        shuffle: as in `Trainer.train`. Default: the trainer's.
        validation_data: data on which the center is evaluated. Default: `data`.
        failures: when workers die. Default: never.
        seconds: simulated seconds after which the training ends. Default: after `num_epoch` epochs.
        evaluations: evaluations of the center in an epoch, beside those at the start and at the end. They
            take no simulated time.
        seed: of the draws of seconds and failures.

    Returns:
        What was found; see `Simulation`.

    Raises:
        ValueError: an argument, the model, the optimizer or the data is of a kind that is not simulated; an
            argument of the trainer contradicts its algorithm's theory; or workers die so often that the
            training never ends.
    """
    _check(trainer, num_workers, times, evaluations)
    shuffle = trainer.shuffle if shuffle is None else shuffle
    problem = _problem(trainer, data, num_workers, shuffle, validation_data)
    # A worker alone trains like one that averages its gradients with nobody.
    kind = _RUNS.get(trainer.mode, Averaged)
    setup = Setup(trainer.algorithm(), problem, SGD.of(trainer), num_workers, trainer.num_epoch, times, seed)
    return _Course(kind(setup), problem, num_workers, failures, evaluations, seed).complete(
        math.inf if seconds is None else seconds
    )


def _check(trainer: Trainer, num_workers: int, times: Times, evaluations: int) -> None:
    check_contract(trainer)
    if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 1:
        raise ValueError(f"num_workers must be a positive integer. Received: {num_workers!r}")
    if not isinstance(times, Times):
        raise ValueError(f"times must be Times. Received: {times!r}")
    if evaluations < 1:
        raise ValueError(f"evaluations must be a positive integer. Received: {evaluations!r}")
    for name in _REFUSED:
        if getattr(trainer, name):
            raise ValueError(
                f"{name} must be left out: it is not simulated. Received: {shown(getattr(trainer, name))}"
            )
    trainer.check(num_workers)
    if trainer.mode is Mode.INDEPENDENT and num_workers > 1:
        raise ValueError(
            f"num_workers must be 1 for {type(trainer).__name__}, whose ranks never exchange. "
            f"Received: {num_workers}"
        )


def _problem(trainer: Trainer, data: Any, num_workers: int, shuffle: bool, validation_data: Any) -> Problem:
    data = by_column(data)
    if isinstance(data, Mapping):
        return DenseModel(trainer, data, num_workers, shuffle, by_column(validation_data))
    if not hasattr(data, "gradients"):
        raise ValueError(
            "data must be arrays by column name, a pandas DataFrame, or a Problem such as Quadratic. "
            f"Received: {type(data).__name__}"
        )
    return data


class _Course:
    """A run with its evaluations, failures and restarts.

    Args:
        run: the training.
        problem: what it minimizes, which checkpoints share.
        num_workers: number of workers.
        failures: when workers die; None for never.
        evaluations: evaluations of the center in an epoch.
        seed: of the failures.
    """

    def __init__(
        self,
        run: Run,
        problem: Problem,
        num_workers: int,
        failures: Failures | None,
        evaluations: int,
        seed: int,
    ) -> None:
        self._run, self._problem, self._num_workers = run, problem, num_workers
        self._failures, self._every = failures, 1 / evaluations
        self._random = np.random.default_rng((seed, *b"failures"))
        # What restarts have added to the run's own seconds.
        self._lost, self._count, self._in_vain = 0.0, 0, 0
        self._found: list[Evaluation] = []

    def complete(self, seconds: float) -> Simulation:
        """Runs until the last exchange, or for so many seconds."""
        self._evaluate()
        saved, dies = self._checkpoint(), self._next_death()
        while (next_ := self._run.next() + self._lost) < math.inf:
            if next_ > dies:
                if dies > seconds:
                    break
                saved, dies = self._restart(saved, dies)
                continue
            if next_ > seconds:
                break
            self._run.advance()
            if self._run.replicas.epochs_done >= self._found[-1].epoch + self._every - 1e-9:
                self._evaluate()
            if self._failures and self._run.now - saved.now >= self._failures.checkpoint:
                saved, self._in_vain = self._checkpoint(), 0
        if self._run.replicas.epochs_done > self._found[-1].epoch:
            self._evaluate()
        return self._result(seconds)

    def _restart(self, saved: Run, dies: float) -> tuple[Run, float]:
        """Resumes from a checkpoint after a death; returns a copy of it, and the next death."""
        self._count += 1
        self._in_vain += 1
        if self._in_vain == _VAIN:
            raise ValueError(
                f"failures must let {self._num_workers} workers reach the next checkpoint. Received: "
                f"{self._failures}, with {_VAIN} restarts from one checkpoint"
            )
        self._run = saved
        self._lost = dies + self._failures.restart - saved.now
        self._found = [each for each in self._found if each.epoch <= saved.replicas.epochs_done]
        return self._checkpoint(), self._next_death()

    def _next_death(self) -> float:
        if self._failures is None:
            return math.inf
        mean = self._failures.mean_seconds / self._num_workers
        return self._run.now + self._lost + self._random.exponential(mean)

    def _checkpoint(self) -> Run:
        return copy.deepcopy(self._run, {id(self._problem): self._problem}) if self._failures else self._run

    def _evaluate(self) -> None:
        metrics = self._problem.evaluate(self._run.center())
        epoch, seconds = self._run.replicas.epochs_done, self._run.now + self._lost
        self._found.append(Evaluation(epoch, seconds, dict(metrics)))

    def _result(self, seconds: float) -> Simulation:
        run = self._run
        total = run.now + self._lost
        if run.next() < math.inf:
            total = seconds  # the training was cut off
        mean, largest = run.staleness()
        return Simulation(
            seconds=total,
            rows=run.replicas.rows,
            evaluations=self._found,
            weights=run.center(),
            exchanges=run.exchanges,
            staleness_mean=mean,
            staleness_max=largest,
            computing=run.computing,
            waiting=run.waiting,
            utilization=run.serving / total if total else 0.0,
            failures=self._count,
            goodput=run.now / total if total else 1.0,
        )
