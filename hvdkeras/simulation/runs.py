"""When which worker exchanges: the events of a simulated training, by the way in which workers cooperate."""

from __future__ import annotations

import copy
import heapq
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hvdkeras.algorithm import Algorithm
from hvdkeras.simulation.centers import AsynchronousCenter, SynchronousCenter
from hvdkeras.simulation.problems import MeanGradient, Problem
from hvdkeras.simulation.replicas import SGD, Replicas
from hvdkeras.simulation.times import Stopwatch, Times


@dataclass(frozen=True)
class Setup:
    """What is simulated.

    Attributes:
        algorithm: what the workers run.
        problem: what they minimize.
        optimizer: of each worker.
        num_workers: number of workers.
        num_epoch: epochs of each worker.
        times: seconds of the parts.
        seed: of the draws of seconds.
    """

    algorithm: Algorithm
    problem: Problem
    optimizer: SGD
    num_workers: int
    num_epoch: int
    times: Times
    seed: int

    def replicas(self) -> Replicas:
        """Returns the workers' weights at the start."""
        window = self.algorithm.communication_window
        return Replicas(self.problem, self.num_workers, self.optimizer, window, self.factor)

    def factor(self, epochs: float) -> float:
        """Returns the factor of the learning rate after a number of epochs."""
        return self.algorithm.learning_rate_factor(epochs, self.num_workers)

    def algorithms(self) -> list[Algorithm]:
        """Returns the algorithm of each worker."""
        return [copy.copy(self.algorithm) for _ in range(self.num_workers)]

    def stopwatch(self) -> Stopwatch:
        """Returns what draws the seconds of windows."""
        return Stopwatch(self.times, self.num_workers, self.seed)

    def reduction(self) -> float:
        """Returns the seconds of a reduction of all workers."""
        return self.times.reduction(self.problem.initial.size, self.num_workers)


class Run(Protocol):
    """A training under way. A deep copy of it is a checkpoint.

    Attributes:
        now: simulated seconds.
        replicas: the workers' weights.
        exchanges: exchanges of each worker, shape `(num_workers,)`.
        computing: seconds in which each worker computed, shape `(num_workers,)`.
        waiting: seconds in which each waited for the center or for others, shape `(num_workers,)`.
        serving: seconds in which the center or a reduction was busy.
    """

    now: float
    replicas: Replicas
    exchanges: np.ndarray
    computing: np.ndarray
    waiting: np.ndarray
    serving: float

    def next(self) -> float:
        """Returns when the next event takes place, `inf` after the last one."""
        ...

    def advance(self) -> None:
        """Carries the next event out."""
        ...

    def center(self) -> np.ndarray:
        """Returns the center, shape `(n,)`; the workers' weights where these are equal."""
        ...

    def staleness(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean and the largest staleness of each worker's exchanges, shape `(num_workers,)`."""
        ...


class Asynchronous:
    """Each worker exchanges at its own pace; the center serves one after the other, in the order of arrival.

    Args:
        setup: the training.
    """

    def __init__(self, setup: Setup) -> None:
        num_workers, initial, slots = setup.num_workers, setup.problem.initial, setup.algorithm.center_slots
        self.replicas, self._algorithms = setup.replicas(), setup.algorithms()
        self._num_epoch = setup.num_epoch
        self._center = AsynchronousCenter(initial, slots, num_workers)
        self._states = [
            own.begin(center.pull())
            for own, center in zip(self._algorithms, self._center.workers, strict=True)
        ]
        self._stopwatch = setup.stopwatch()
        self._service = setup.times.service(initial.size, slots)
        self._latency = setup.times.latency
        self.now = self.serving = self._free = 0.0
        self.computing, self.waiting = np.zeros(num_workers), np.zeros(num_workers)
        self._order = 0
        self._arrivals: list[tuple[float, int, int, int]] = []
        for worker in range(num_workers):
            self._begin(worker, 0.0)

    @property
    def exchanges(self) -> np.ndarray:
        return np.array([worker.exchanges for worker in self._center.workers])

    def next(self) -> float:
        # When the exchange ends, which the center begins when it is free.
        if not self._arrivals:
            return math.inf
        return max(self._arrivals[0][0], self._free) + self._service + self._latency

    def advance(self) -> None:
        arrival, _, worker, steps = heapq.heappop(self._arrivals)
        begin = max(arrival, self._free)
        self._free = begin + self._service
        self.serving += self._service
        self.waiting[worker] += begin - arrival
        weights, self._states[worker] = self._algorithms[worker].exchange(
            self.replicas.trained(worker), self._center.workers[worker], self._states[worker], steps
        )
        self.replicas.end(worker, weights)
        self.now = self._free + self._latency
        if self.replicas.epoch[worker] < self._num_epoch:
            self._begin(worker, self.now)

    def center(self) -> np.ndarray:
        return self._center.local.pull()

    def staleness(self) -> tuple[np.ndarray, np.ndarray]:
        workers = self._center.workers
        means = [worker.staleness_sum / max(1, worker.exchanges) for worker in workers]
        return np.array(means), np.array([worker.staleness_max for worker in workers])

    def _begin(self, worker: int, now: float) -> None:
        steps = self.replicas.begin(worker)
        seconds = self._stopwatch.window(worker, steps)
        self.computing[worker] += seconds
        self._order += 1
        heapq.heappush(self._arrivals, (now + seconds + self._latency, self._order, worker, steps))


class Synchronous:
    """All workers exchange together.

    A reduction runs beside the next window, until a worker needs its result.

    Args:
        setup: the training.
    """

    def __init__(self, setup: Setup) -> None:
        num_workers = setup.num_workers
        self.replicas, self._algorithms = setup.replicas(), setup.algorithms()
        self._num_epoch, self._workers = setup.num_epoch, range(num_workers)
        self._center = SynchronousCenter(setup.problem.initial, num_workers)
        self._states = [own.begin(self._center.value.copy()) for own in self._algorithms]
        self._stopwatch, self._reduction = setup.stopwatch(), setup.reduction()
        self.now = self.serving = self._reduced = 0.0
        self._clocks = np.zeros(num_workers)
        self.computing, self.waiting = np.zeros(num_workers), np.zeros(num_workers)
        self.exchanges = np.zeros(num_workers, np.int64)
        self._begin()

    def next(self) -> float:
        if self.replicas.epoch[0] >= self._num_epoch:
            return math.inf
        return max(float((self._clocks + self._seconds).max()), self._reduced) + self._reduction

    def advance(self) -> None:
        exchanges = [lambda center, worker=worker: self._exchange(worker, center) for worker in self._workers]
        results, waited, reductions = self._center.together(exchanges)
        for worker, (weights, state) in enumerate(results):
            self.replicas.end(worker, weights)
            self._states[worker] = state
        arrived = self._clocks + self._seconds
        # The first verb completes the reduction before.
        begun = np.maximum(arrived, self._reduced)
        self._reduced = float(begun.max()) + reductions * self._reduction
        self._clocks = np.where(waited, self._reduced, begun)
        self.serving += reductions * self._reduction
        self.computing += self._seconds
        self.waiting += self._clocks - arrived
        self.exchanges += 1
        self.now = self._reduced
        if self.next() < math.inf:
            self._begin()

    def center(self) -> np.ndarray:
        return self._center.value

    def staleness(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(self._workers)), np.zeros(len(self._workers), np.int64)

    def _begin(self) -> None:
        self._steps = [self.replicas.begin(worker) for worker in self._workers]
        windows = zip(self._workers, self._steps, strict=True)
        self._seconds = np.array([self._stopwatch.window(worker, steps) for worker, steps in windows])

    def _exchange(self, worker: int, center: Any) -> Any:
        # A copy of the state: an interrupted exchange may have changed it in place.
        state = copy.deepcopy(self._states[worker])
        weights = self.replicas.trained(worker)
        return self._algorithms[worker].exchange(weights, center, state, self._steps[worker])


class Averaged:
    """Every step uses the mean gradient of all workers, which so have equal weights.

    Args:
        setup: the training.

    Raises:
        ValueError: the gradients would be compressed.
    """

    def __init__(self, setup: Setup) -> None:
        algorithm, problem, num_workers = setup.algorithm, setup.problem, setup.num_workers
        averaging = algorithm.gradient_averaging
        if averaging.compression is not None:
            raise ValueError(
                f"compression must be None: it is not simulated. Received: {averaging.compression!r}"
            )
        self._num_epoch, self._workers = setup.num_epoch, range(num_workers)
        self._group = averaging.accumulation
        mean = MeanGradient(problem, num_workers, self._group)
        window = -(-(algorithm.communication_window or problem.steps) // self._group)
        self.replicas = Replicas(mean, 1, setup.optimizer, window, setup.factor)
        self._stopwatch, self._reduction = setup.stopwatch(), setup.reduction()
        self.now = self.serving = 0.0
        self.computing, self.waiting = np.zeros(num_workers), np.zeros(num_workers)
        self.exchanges = np.zeros(num_workers, np.int64)
        self._begin()

    def next(self) -> float:
        over = self.replicas.epoch[0] >= self._num_epoch
        return math.inf if over else self.now + float(self._seconds.max(axis=1).sum()) + self._serving

    def advance(self) -> None:
        self.now = self.next()
        self.replicas.end(0, self.replicas.trained(0))
        self.serving += self._serving
        self.computing += self._seconds.sum(axis=0)
        self.waiting += (self._seconds.max(axis=1, keepdims=True) - self._seconds).sum(axis=0)
        self.exchanges += len(self._seconds)
        if self.next() < math.inf:
            self._begin()

    def center(self) -> np.ndarray:
        return self.replicas.weights[0].copy()

    def staleness(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(self._workers)), np.zeros(len(self._workers), np.int64)

    def _begin(self) -> None:
        # The seconds of each worker for each step of the optimizer.
        steps = range(self.replicas.begin(0))
        draws = [[self._stopwatch.window(worker, self._group) for worker in self._workers] for _ in steps]
        self._seconds, self._serving = np.array(draws), len(draws) * self._reduction
