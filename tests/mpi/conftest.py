"""Fixtures of the tests that run on real ranks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ranks


@pytest.fixture
def on_new_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list]:
    """`on_new_ranks(size, fn, *args)` starts `size` ranks that call `fn(*args)`; returns the results by rank.

    It takes the keyword arguments of `ranks.run` and raises its RanksFailed.
    """

    def run(size: int, fn: Callable[..., Any], *args: Any, **options: Any) -> list:
        return ranks.run(tmp_path_factory.mktemp("ranks"), size, fn, args, **options)

    return run


@pytest.fixture(scope="session")
def crews(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], ranks.Crew]]:
    """The ranks that stay from one test to the next, by their number."""
    made: dict[int, ranks.Crew] = {}

    def crew(size: int) -> ranks.Crew:
        return made.setdefault(size, ranks.Crew(size, lambda: tmp_path_factory.mktemp("crew")))

    yield crew
    for each in made.values():
        each.end()


@pytest.fixture
def on_ranks(crews: Callable[[int], ranks.Crew]) -> Callable[..., list]:
    """As `on_new_ranks`, on ranks that may have served other tests before, and without other options.

    So the tests share what a process does once, as loading TensorFlow, for which each would need seconds.
    Those that fail on purpose, set the environment or leave something behind take new ranks.
    """

    def run(size: int, fn: Callable[..., Any], *args: Any, timeout: float = 120.0) -> list:
        return crews(size).call(fn, args, timeout)

    return run
