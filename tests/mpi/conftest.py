"""Fixtures of the tests that run on real ranks."""

from collections.abc import Callable
from typing import Any

import pytest

import ranks


@pytest.fixture
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list]:
    """`on_ranks(size, fn, *args)` calls `fn(*args)` on each of `size` ranks; returns the results by rank.

    It takes the keyword arguments of `ranks.run` and raises its RanksFailed.
    """

    def run(size: int, fn: Callable[..., Any], *args: Any, **options: Any) -> list:
        return ranks.run(tmp_path_factory.mktemp("ranks"), size, fn, args, **options)

    return run
