"""Two or three hosts, ranks on them, and a Spark standalone cluster over two."""

from collections.abc import Callable, Iterator
from typing import Any

import hosts as two
import pytest

import ranks


@pytest.fixture(scope="session")
def hosts() -> Iterator[two.Hosts]:
    """Two hosts on this machine; skips where it can't have them."""
    lacking = two.missing()
    if lacking is not None:
        pytest.skip(f"NOT TESTED BETWEEN HOSTS: {lacking}")
    with two.Hosts() as both:
        yield both


@pytest.fixture
def on_hosts(hosts: two.Hosts, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list]:
    """`on_hosts(ranks_each, fn, *args)` calls `fn(*args)` on as many ranks of each of the two hosts.

    The results come by rank; the first half is alpha's. Keyword arguments and errors are as in `ranks.run`.
    """
    return runner(hosts, tmp_path_factory)


@pytest.fixture
def on_three_hosts(
    hosts: two.Hosts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., list]]:
    """As `on_hosts`, on three hosts that are made for one test."""
    with two.Hosts(number=3) as three:
        yield runner(three, tmp_path_factory)


def runner(hosts: two.Hosts, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list]:
    """Returns what `on_hosts` returns, for these hosts."""

    def run(ranks_each: int, fn: Callable[..., Any], *args: Any, **options: Any) -> list:
        return ranks.run(
            tmp_path_factory.mktemp("ranks"),
            len(hosts.names) * ranks_each,
            fn,
            args,
            mpi_args=hosts.mpi_args(ranks_each),
            prefix=hosts.entered(0, []),
            **{**options, "env": {**hosts.environment, **options.get("env", {})}},
        )

    return run


@pytest.fixture(scope="session")
def spark_cluster(hosts: two.Hosts) -> two.Hosts:
    """The two hosts with a Spark standalone master on alpha and a worker of two cores on each."""
    hosts.start_spark()
    return hosts


@pytest.fixture
def on_driver(spark_cluster: two.Hosts, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`on_driver(fn, *args)` calls `fn(session, *args)` in a Spark driver on alpha and returns the result.

    `fn` may be a function of the test's own module. What it raises comes as an AssertionError with the
    driver's output. `timeout` is the seconds for all, default 240. With `unpack` every executor unpacks an
    archive of this environment in its own folder, and runs the Python in it.
    """

    def run(fn: Callable[..., Any], *args: Any, timeout: float = 240.0, unpack: bool = False) -> Any:
        folder = tmp_path_factory.mktemp("driver")
        return two.call_on_driver(spark_cluster, folder, fn, args, timeout, unpack)

    return run
