"""Centers in one process that know which worker calls, with the verbs of the real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hvdkeras.algorithm import Center, Rule
from hvdkeras.center.local import LocalCenter
from hvdkeras.center.vectors import blocks, check_operands, checked, read_only, vector


class AsynchronousCenter:
    """A center that workers exchange with one after the other, with the counters of a `WindowCenter`.

    Args:
        initial: the center's first values, shape `(n,)`, float32.
        slots: vectors beside it.
        size: number of workers.

    Attributes:
        local: the vectors.
        pushes: calls of `push` and `exchange` of all workers.
        workers: the center as each worker sees it, with its counters.
    """

    def __init__(self, initial: np.ndarray, slots: int, size: int) -> None:
        self.local = LocalCenter(initial, slots)
        self.pushes = 0
        self.workers = [AsynchronousWorker(self, size) for _ in range(size)]


class AsynchronousWorker:
    """An asynchronous center as one worker sees it; see `hvdkeras.algorithm.Center`.

    Attributes:
        size: number of workers.
        exchanges: calls of `exchange` and `push`.
        staleness_sum: the sum of the staleness that they met.
        staleness_max: the largest.
    """

    def __init__(self, center: AsynchronousCenter, size: int) -> None:
        self._center, self.size = center, size
        self.exchanges = self.staleness_sum = self.staleness_max = 0
        self._seen = 0

    def pull(self) -> np.ndarray:
        self._seen = self._others
        return self._center.local.pull()

    def push(self, update: np.ndarray) -> None:
        self._center.local.push(update)
        self._count()

    def exchange(self, rule: Rule, local: np.ndarray, *vectors: np.ndarray) -> np.ndarray:
        kept = self._center.local.exchange(rule, local, *vectors)
        self._count()
        self._seen = self._others
        return kept

    def staleness(self) -> int:
        return self._others - self._seen

    @property
    def _others(self) -> int:
        """The pushes of the other workers so far."""
        return self._center.pushes - self.exchanges

    def _count(self) -> None:
        staleness = self.staleness()
        self.staleness_sum += staleness
        self.staleness_max = max(self.staleness_max, staleness)
        self._center.pushes += 1
        self.exchanges += 1


class SynchronousCenter:
    """A center that all workers exchange with together, as with a `ReplicatedCenter`.

    Args:
        initial: the center's first values, shape `(n,)`, float32.
        size: number of workers.

    Attributes:
        value: the center with all pushes whose reduction is complete.
    """

    def __init__(self, initial: np.ndarray, size: int) -> None:
        self.value, self._size = vector("initial", initial).copy(), size
        self._sum = np.zeros_like(initial)

    def together(self, exchanges: Sequence[Callable[[Center], Any]]) -> tuple[list[Any], list[bool], int]:
        """Runs the exchange of every worker, as if all ran at the same time.

        A worker that needs the result of a reduction is interrupted, and run once more from its begin when
        all workers have contributed: its verbs then return what they returned before. So an `exchange` must
        depend on its arguments alone.

        Args:
            exchanges: for each worker a function of its center.

        Returns:
            What the functions returned, whether each worker had to wait for the others, and the number of
            reductions.

        Raises:
            ValueError: the workers push unequally often.
        """
        workers = [SynchronousWorker(self, self._size) for _ in exchanges]
        results: list[Any] = [None] * len(exchanges)
        waited = [False] * len(exchanges)
        running = list(range(len(exchanges)))
        reductions = 0
        while running:
            interrupted = []
            for number in running:
                worker = workers[number]
                worker.restart()
                try:
                    results[number] = exchanges[number](worker)
                except _Interrupted:
                    interrupted.append(number)
                    waited[number] = True
            pushes = {worker.pushes for worker in workers}
            if len(pushes) > 1:
                raise ValueError(
                    f"each worker must exchange as often as the others. Received: {sorted(pushes)} pushes"
                )
            if any(worker.in_flight for worker in workers):
                reductions += 1
                self._complete(workers)
            running = interrupted
        return results, waited, reductions

    def _complete(self, workers: Sequence[SynchronousWorker]) -> None:
        # A new array: what workers pulled before must not change.
        self.value = self.value + self._sum
        self._sum[:] = 0
        for worker in workers:
            worker.in_flight = False

    def add(self, push: np.ndarray, block: slice) -> None:
        """Adds to the sum of the reduction under way."""
        self._sum[block] += push


class _Interrupted(BaseException):
    """A worker waits for a reduction. No Exception, which an algorithm might catch."""


class SynchronousWorker:
    """A synchronous center as one worker sees it in one exchange; see `hvdkeras.algorithm.Center`.

    Attributes:
        size: number of workers.
        in_flight: whether the worker takes part in a reduction that is not complete.
        pushes: its calls of `push` and `exchange`.
    """

    def __init__(self, center: SynchronousCenter, size: int) -> None:
        self._center, self.size = center, size
        self._returned: list[np.ndarray | None] = []
        self._position = 0
        self.in_flight, self.pushes = False, 0

    def restart(self) -> None:
        """Has the next verbs return what those so far returned."""
        self._position = 0

    def pull(self) -> np.ndarray:
        return self._verb(lambda: self._center.value).copy()

    def push(self, update: np.ndarray) -> None:
        vector("update", update, self._center.value.size)
        self._verb(lambda: self._push(update))

    def exchange(self, rule: Rule, local: np.ndarray, *vectors: np.ndarray) -> np.ndarray:
        check_operands(local, vectors, self._center.value.size)
        return self._verb(lambda: self._exchange(rule, local, *vectors)).copy()

    def staleness(self) -> int:
        return 0

    def _verb(self, call: Callable[[], Any]) -> Any:
        """Calls what a verb does, once; returns its result again when the exchange runs once more."""
        if self._position == len(self._returned):
            if self.in_flight:
                raise _Interrupted
            self._returned.append(call())
        self._position += 1
        return self._returned[self._position - 1]

    def _push(self, update: np.ndarray) -> None:
        self.in_flight = True
        self.pushes += 1
        self._center.add(update, slice(None))

    def _exchange(self, rule: Rule, local: np.ndarray, *vectors: np.ndarray) -> np.ndarray:
        value, kept = self._center.value, np.empty_like(local)
        for block in blocks(0, value.size):
            results = rule(local[block], read_only(value[block]), *(each[block] for each in vectors))
            kept[block], push = checked(results, 2, local[block].shape)
            self._center.add(push, block)
        self.in_flight = True
        self.pushes += 1
        return kept
