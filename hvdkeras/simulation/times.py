"""How long the parts of a training take, and when workers die: what a simulation is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hvdkeras.history.saturation import knee

FLOAT32 = 4


@dataclass(frozen=True)
class Times:
    """The seconds of the parts of a training.

    Attributes:
        step: seconds of one batch on one worker, the mean.
        exchange: seconds for which one exchange occupies the center; for algorithms whose workers exchange
            together, seconds of one reduction. Without what `bandwidth` adds.
        latency: seconds of a message on its way between a worker and the center. It delays the worker alone.
        bandwidth: bytes a second of the link of the center's host. Default: memory's, which is part of
            `exchange`.
        spread: standard deviation of a step's seconds divided by their mean. The seconds follow a gamma
            distribution: 1 makes them exponential. Default: all steps take `step`.
        slow: factors of `step` by worker, for stragglers: `{0: 4.0}` is a worker four times slower.

    Raises:
        ValueError: a number is negative or not finite.
    """

    step: float
    exchange: float = 0.0
    latency: float = 0.0
    bandwidth: float = math.inf
    spread: float = 0.0
    slow: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("step", "exchange", "latency", "spread"):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (name == "step" and not value):
                kind = "a positive number" if name == "step" else "a number from 0"
                raise ValueError(f"{name} must be {kind}. Received: {value!r}")
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth must be a positive number. Received: {self.bandwidth!r}")
        for worker, factor in self.slow.items():
            if not 0 < factor < math.inf:
                raise ValueError(
                    f"slow must map workers to positive factors. Received: {worker!r}: {factor!r}"
                )

    def service(self, size: int, slots: int = 0) -> float:
        """Returns S, the seconds for which one exchange occupies an asynchronous center.

        The center and its slots cross the link of the center's host in both directions.

        Args:
            size: numbers of the center.
            slots: vectors beside it.
        """
        return self.exchange + 2 * FLOAT32 * size * (1 + slots) / self.bandwidth

    def reduction(self, size: int, num_workers: int) -> float:
        """Returns the seconds of a reduction of all workers (Thakur, Rabenseifner, Gropp 2005).

        Args:
            size: numbers that are summed.
            num_workers: workers that sum them; one alone has nothing to sum.
        """
        if num_workers == 1:
            return 0.0
        moved = 2 * FLOAT32 * size * (num_workers - 1) / num_workers
        hops = 2 * math.ceil(math.log2(num_workers))
        return self.exchange + moved / self.bandwidth + hops * self.latency

    def knee(self, steps: int, size: int, slots: int = 0) -> float:
        """Returns how many workers an asynchronous center serves before it saturates; see `saturation.knee`.

        Args:
            steps: batches of a window.
            size: numbers of the center.
            slots: vectors beside it.
        """
        return knee(steps * self.step + 2 * self.latency, self.service(size, slots))


@dataclass(frozen=True)
class Failures:
    """When workers die. One lost worker ends the job, which resumes from its newest checkpoint.

    Attributes:
        mean_seconds: mean seconds until one worker dies, exponentially distributed.
        restart: seconds from a worker's death until the job trains again.
        checkpoint: seconds of training between two checkpoints.

    Raises:
        ValueError: a number is not positive, `restart` is negative.
    """

    mean_seconds: float
    restart: float
    checkpoint: float

    def __post_init__(self) -> None:
        for name in ("mean_seconds", "checkpoint"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be a positive number. Received: {getattr(self, name)!r}")
        if not 0 <= self.restart < math.inf:
            raise ValueError(f"restart must be a number from 0. Received: {self.restart!r}")

    def goodput(self, num_workers: int) -> float:
        """Returns the expected part of the seconds that are not lost.

        As Daly 2006, but no worker dies during a restart, and checkpoints are written beside the training.

        Args:
            num_workers: workers of the job.
        """
        mean = self.mean_seconds / num_workers
        # For `checkpoint` seconds of training: the expected seconds that they take.
        return self.checkpoint / ((mean + self.restart) * math.expm1(self.checkpoint / mean))


class Stopwatch:
    """Draws the seconds of windows.

    Args:
        times: what is given.
        num_workers: number of workers.
        seed: of the draws.

    Raises:
        ValueError: `times.slow` names a worker that does not exist.
    """

    def __init__(self, times: Times, num_workers: int, seed: int) -> None:
        unknown = [worker for worker in times.slow if not 0 <= worker < num_workers]
        if unknown:
            raise ValueError(f"slow must name workers from 0 to {num_workers - 1}. Received: {unknown[0]!r}")
        self._step = np.full(num_workers, times.step)
        for worker, factor in times.slow.items():
            self._step[worker] *= factor
        self._variance = times.spread**2
        self._random = np.random.default_rng((seed, *b"seconds"))

    def window(self, worker: int, steps: int) -> float:
        """Returns the seconds of `steps` batches of a worker."""
        if not self._variance:
            return steps * float(self._step[worker])
        return self._random.gamma(steps / self._variance, self._step[worker] * self._variance)
