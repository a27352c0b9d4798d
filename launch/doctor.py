"""Looks at everything that training needs on this machine, and tells how to mend what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hvdkeras.launch import checks, libraries
from hvdkeras.launch.checks import WRONG, Check

CHECKS: tuple[Callable[[], Check], ...] = (
    checks.check_python,
    checks.check_cores,
    checks.check_shared_memory,
    libraries.check_packages,
    checks.check_java,
    checks.check_spark,
    checks.check_mpirun,
)


def examine() -> Iterator[Check]:
    """Makes all checks, the slow ones last."""
    for check in CHECKS:
        yield check()
    yield from libraries.check_libraries()
    yield libraries.check_ranks()


def report() -> bool:
    """Prints the table as it comes. Returns whether training could start."""
    good = True
    for check in examine():
        print(f"{check.state:6}{check.name:14}{check.found}", flush=True)
        if check.remedy:
            print(f"{'':20}-> {check.remedy}", flush=True)
        good = good and check.state != WRONG
    return good
