"""Several trainings of one estimator on the same data: shards are written and ranks are launched once."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from hvdkeras.data import sources
from hvdkeras.driver.configuration import Configuration
from hvdkeras.driver.inputs import build_from_data
from hvdkeras.driver.layout import laid_out, required_columns
from hvdkeras.driver.training import Request
from hvdkeras.launch import cluster, environment
from hvdkeras.launch.standing import StandingRanks
from hvdkeras.naming import cut, shown

logger = logging.getLogger("hvdkeras")


@dataclass
class Candidate:
    """One training among several.

    Attributes:
        configuration: of the training.
        num_workers: its ranks.
        params: what is particular to it, as text.
        train: trains it, and returns what is made of the outcome.
    """

    configuration: Configuration
    num_workers: int
    params: str
    train: Callable[[Request], Any]


@dataclass
class Group:
    """Candidates that train on the same shards, by the same ranks."""

    layout: tuple[Any, ...]
    candidates: list[tuple[int, Candidate]] = field(default_factory=list)


class Candidates(Iterator[tuple[int, Any]]):
    """Trains all candidates when the first result is asked for, and hands out the results one by one.

    They are trained before anything is done with a result: the ranks have ended then, and their slots are
    free for the Spark jobs that evaluate the models. Several threads may ask; they get different results.
    Where threads wait for the first result, as those of a `CrossValidator` with `parallelism`, as many
    candidates train side by side as Spark has slots for, each on ranks of its own.

    A candidate that fails does not keep the others from being trained: its error, which names its params, is
    in the log at once and is raised in the place of its result.

    Args:
        candidates: what to train.
        data: as in `train`.
        ranks: those that the user keeps; None: candidates with the same shards share a launch of their own.
    """

    def __init__(self, candidates: Sequence[Candidate], data: Any, ranks: StandingRanks | None) -> None:
        self._candidates, self._data, self._ranks = candidates, data, ranks
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._asking = 0
        self._results: deque[tuple[int, Any]] | None = None

    def __next__(self) -> tuple[int, Any]:
        with self._counting:
            self._asking += 1
        with self._lock:
            if self._results is None:
                self._results = deque(sorted(self._trained(), key=lambda result: result[0]))
            if not self._results:
                raise StopIteration
            index, result = self._results.popleft()
        if isinstance(result, Exception):
            raise result
        return index, result

    def _trained(self) -> list[tuple[int, Any]]:
        failed: list[tuple[int, Any]] = []
        groups: list[Group] = []
        for index, candidate in enumerate(self._candidates):
            try:
                layout = self._layout(candidate)
            except Exception as error:
                failed.append((index, _told(candidate, error)))
                continue
            group = next((each for each in groups if each.layout == layout), None)
            if group is None:
                groups.append(group := Group(layout))
            group.candidates.append((index, candidate))
        return [*failed, *(result for group in groups for result in self._trained_group(group))]

    def _layout(self, candidate: Candidate) -> tuple[Any, ...]:
        """What decides the shards and the launch of a candidate."""
        configuration = candidate.configuration
        build_from_data(configuration, self._data)
        names = ("validation_indicator_col", "store", "threads", "timeout", "verbose", "launch_options")
        columns = required_columns(configuration, self._data)
        return (columns, candidate.num_workers, *(getattr(configuration, name) for name in names))

    def _trained_group(self, group: Group) -> list[tuple[int, Any]]:
        _, first = group.candidates[0]
        waiting, results = deque(group.candidates), []

        def train() -> None:
            with self._launched(first) as ranks:
                while waiting:
                    try:
                        index, candidate = waiting.popleft()
                    except IndexError:  # another thread took the last one
                        return
                    own = candidate.configuration
                    request = Request(shards, own.shuffle, None, own.resume, ranks)
                    results.append((index, _outcome(candidate, request)))

        try:
            with laid_out(first.configuration, self._data) as shards:
                _in_threads(train, min(self._side_by_side(first), len(group.candidates)))
        except Exception as error:
            # Without shards there is no result of any of them.
            known = {index for index, _ in results}
            missing = [each for each in group.candidates if each[0] not in known]
            results += [(index, _told(candidate, error)) for index, candidate in missing]
        return results

    def _side_by_side(self, candidate: Candidate) -> int:
        """How many candidates may train at once: as many as threads ask, and as Spark has slots for."""
        if self._ranks is not None or environment.job() or not sources.has_executors(self._data):
            return 1
        room = cluster.slots(cluster.active_context()) // candidate.num_workers
        return max(1, min(self._asking, room))

    def _launched(self, candidate: Candidate) -> Any:
        """Ranks for a group, launched by its first training; None in a running job, which has its own."""
        if self._ranks is not None or environment.job() is not None:
            return nullcontext(self._ranks)
        configuration = candidate.configuration
        return StandingRanks(
            candidate.num_workers,
            on_spark=sources.has_executors(self._data),
            timeout=configuration.timeout,
            verbose=configuration.verbose,
            **configuration.launch_options,
        )


def named(values: Mapping[str, Any]) -> str:
    """Returns the values of params as text."""
    return ", ".join(f"{name}={cut(shown(value), 100)}" for name, value in values.items()) or "no params"


def _in_threads(work: Callable[[], None], count: int) -> None:
    """Calls a function in this thread and in so many less one others, and waits for all.

    Raises:
        Exception: the first that the function raised.
    """
    from pyspark import InheritableThread

    errors: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)

    others = [InheritableThread(target=run, name=f"candidates-{number}") for number in range(1, count)]
    for thread in others:
        thread.start()
    run()
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]


def _outcome(candidate: Candidate, request: Request) -> Any:
    """What is made of a candidate's training; the exception of one that failed."""
    try:
        return candidate.train(request)
    except Exception as error:
        return _told(candidate, error)


def _told(candidate: Candidate, error: Exception) -> Exception:
    """The error of a candidate with its params, which is logged."""
    message = f"the candidate with {candidate.params} failed: {error}"
    logger.warning("%s", message.splitlines()[0])
    error.args = (message, *error.args[1:])
    return error
