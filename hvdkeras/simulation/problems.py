"""What simulated workers minimize: the contract, and the quadratic of the literature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Problem(Protocol):
    """Gradients of many workers at once.

    Attributes:
        initial: the weights that all workers start from, shape `(n,)`, float32.
        steps: batches of one worker in an epoch.
    """

    initial: np.ndarray
    steps: int

    def rows(self, workers: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Returns the rows of some workers' batches, shape `(k,)`.

        Args:
            workers: numbers of workers, shape `(k,)`.
            steps: for each the number of its batch in the epoch, shape `(k,)`.
        """
        ...

    def gradients(
        self, weights: np.ndarray, workers: np.ndarray, epochs: np.ndarray, steps: np.ndarray
    ) -> np.ndarray:
        """Returns the gradient of the mean loss of one batch for each of some workers, shape `(k, n)`.

        Args:
            weights: the workers' weights, shape `(k, n)`, float32.
            workers: their numbers, shape `(k,)`.
            epochs: for each the number of its epoch, shape `(k,)`.
            steps: for each the number of its batch in the epoch, shape `(k,)`.
        """
        ...

    def evaluate(self, weights: np.ndarray) -> dict[str, float]:
        """Returns metrics of weights, shape `(n,)`."""
        ...


class Quadratic:
    """The loss `sum(curvature * x ** 2) / 2`, with gradients that may be noisy.

    Args:
        curvature: the second derivatives, shape `(n,)`.
        initial: the weights at the start, shape `(n,)`. Default: ones.
        noise: standard deviation of the normal noise in each element of a gradient.
        steps: batches of one worker in an epoch.
        seed: of the noise.

    Raises:
        ValueError: the shapes differ, or `noise` or `steps` is out of range.
    """

    def __init__(
        self,
        curvature: Sequence[float],
        initial: Sequence[float] | None = None,
        noise: float = 0.0,
        steps: int = 100,
        seed: int = 0,
    ) -> None:
        self._curvature = np.asarray(curvature, np.float32)
        self.initial = np.ones_like(self._curvature) if initial is None else np.asarray(initial, np.float32)
        if self._curvature.ndim != 1 or self.initial.shape != self._curvature.shape:
            raise ValueError(
                "curvature and initial must be vectors of one length. Received: shapes "
                f"{self._curvature.shape} and {self.initial.shape}"
            )
        if noise < 0 or steps < 1:
            raise ValueError(
                f"noise must be from 0 and steps from 1. Received: noise={noise!r}, steps={steps!r}"
            )
        self._noise, self._seed, self.steps = np.float32(noise), seed, steps

    def rows(self, workers: np.ndarray, steps: np.ndarray) -> np.ndarray:
        return np.ones(len(workers), np.int64)

    def gradients(
        self, weights: np.ndarray, workers: np.ndarray, epochs: np.ndarray, steps: np.ndarray
    ) -> np.ndarray:
        result = weights * self._curvature
        if self._noise:
            # A seed for each batch: the noise does not depend on which workers are computed together.
            for row, place in zip(result, zip(workers, epochs, steps, strict=True), strict=True):
                random = np.random.default_rng((self._seed, *map(int, place)))
                row += self._noise * random.standard_normal(len(row), np.float32)
        return result

    def evaluate(self, weights: np.ndarray) -> dict[str, float]:
        return {"loss": float(np.sum(self._curvature * np.square(weights, dtype=np.float64)) / 2)}


class MeanGradient:
    """The problem of one worker whose batch is that of all workers together.

    Args:
        problem: the workers' problem.
        num_workers: number of workers.
        accumulation: batches of each worker whose mean gradient makes one step.
    """

    def __init__(self, problem: Problem, num_workers: int, accumulation: int) -> None:
        self._problem, self._workers, self._accumulation = problem, np.arange(num_workers), accumulation
        self.initial, self.steps = problem.initial, -(-problem.steps // accumulation)

    def rows(self, workers: np.ndarray, steps: np.ndarray) -> np.ndarray:
        return np.array([sum(rows.sum() for rows in self._group(step)) for step in steps])

    def gradients(
        self, weights: np.ndarray, workers: np.ndarray, epochs: np.ndarray, steps: np.ndarray
    ) -> np.ndarray:
        (row,), (epoch,), (step,) = weights, epochs, steps
        count = len(self._workers)
        result, group = np.zeros_like(row), self._group(step)
        for batch, rows in enumerate(group, step * self._accumulation):
            same = np.broadcast_to(row, (count, row.size))
            place = self._workers, np.full(count, epoch), np.full(count, batch)
            share = (rows / rows.sum() / len(group)).astype(np.float32)
            result += share @ self._problem.gradients(same, *place)
        return result[np.newaxis]

    def evaluate(self, weights: np.ndarray) -> dict[str, float]:
        return self._problem.evaluate(weights)

    def _group(self, step: int) -> list[np.ndarray]:
        """The rows of each worker in each batch of a step, shape `(num_workers,)` each."""
        first = step * self._accumulation
        batches = range(first, min(first + self._accumulation, self._problem.steps))
        return [self._problem.rows(self._workers, np.full(len(self._workers), batch)) for batch in batches]
