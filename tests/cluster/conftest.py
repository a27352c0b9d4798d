"""Two hosts, ranks on both, and a Spark standalone cluster over them."""

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
    """`on_hosts(ranks_each, fn, *args)` calls `fn(*args)` on as many ranks of each of the two hosts."""

    def run(ranks_each: int, fn: Callable[..., Any], *args: Any, **options: Any) -> list:
        return ranks.run(
            tmp_path_factory.mktemp("ranks"),
            2 * ranks_each,
            fn,
            args,
            mpi_args=hosts.mpi_args(ranks_each),
            prefix=hosts.entered(0, []),
            **{**options, "env": {"HVDKERAS_TEST_DOORS": str(hosts.folder), **options.get("env", {})}},
        )

    return run
