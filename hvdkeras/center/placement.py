"""Where the chunks of an asynchronous center are: in the memory of rank 0, or spread over the hosts."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from hvdkeras.center.chunks import CHUNK_BYTES, hosts_of, on_one_host
from hvdkeras.center.window import WindowCenter
from hvdkeras.history.saturation import knee
from hvdkeras.mpi.collectives import gathered

logger = logging.getLogger("hvdkeras")

# Between H hosts with equally many ranks the busiest link carries 2 / H of the bytes if the center is spread:
# with two hosts nothing is gained.
FEWEST_HOSTS = 3
# Below it there are too few chunks to spread.
SMALLEST_BYTES = 4 * CHUNK_BYTES
# Seconds of a step, as long as no step has been measured: a small convolutional network on a few cores.
PRESUMED_STEP = 0.02
# Exchanges that measure the link; the first, which opens connections, does not count.
MEASURED = 4


@dataclass(frozen=True)
class Demand:
    """What a training asks of an asynchronous center, as far as it is known before the first step.

    Attributes:
        size: numbers of the center.
        parts: 1 + slots.
        steps: batches of a window.
        exchange_dtype: as of WindowCenter.
    """

    size: int
    parts: int
    steps: int
    exchange_dtype: str | None = None

    @property
    def bytes(self) -> int:
        """The bytes of the center and its slots."""
        return 4 * self.size * self.parts


def decide(comm: MPI.Comm, demand: Demand, wanted: bool | None, timeout: float) -> bool:
    """Decides whether the center is spread over the hosts, and logs it at rank 0. Collective.

    Args:
        comm: the ranks of the training.
        demand: what they ask of the center.
        wanted: the user's choice; None for ours.
        timeout: seconds that a wait may take.

    Returns:
        Whether the center is spread; the same on every rank.
    """
    hosts = hosts_of(comm, timeout)
    reason = without_measuring(demand, hosts, wanted)
    sharded = bool(wanted)
    if reason is None:
        service = link_seconds(comm, demand, hosts, timeout)
        sharded, reason = by_service(demand, hosts, service)
    if comm.rank == 0 and reason:
        where = "spread over the hosts" if sharded else "in the memory of rank 0"
        logger.info("the center (%.1f MB) is %s: %s", demand.bytes / 1e6, where, reason)
    return sharded


def log_conversion(comm: MPI.Comm, dtype: str) -> None:
    """Logs at rank 0 whether weights travel in half precision, as the user has asked for. Collective."""
    what = "nothing is converted on one host" if on_one_host(comm) else "weights travel so between hosts"
    if comm.rank == 0:
        logger.info("exchange_dtype=%r: %s", dtype, what)


def without_measuring(demand: Demand, hosts: Sequence[int], wanted: bool | None) -> str | None:
    """Returns why the center is where the user wants it, or at rank 0, if that needs no measurement.

    Args:
        demand: what the ranks ask of the center.
        hosts: for each rank the number of its host.
        wanted: as in `decide`.

    Returns:
        The reason, empty where there is nothing to say; None where the link must be measured.
    """
    if wanted is not None:
        return f"center_sharded={wanted}"
    number = len(set(hosts))
    if number == 1:
        return ""
    if number < FEWEST_HOSTS:
        return f"between {number} hosts as many bytes cross the link if it is spread"
    if demand.bytes < SMALLEST_BYTES:
        return f"below {SMALLEST_BYTES / 1e6:.1f} MB one link carries it"
    return None


def by_service(demand: Demand, hosts: Sequence[int], service: float) -> tuple[bool, str]:
    """Decides by the seconds of an exchange.

    Args:
        demand: what the ranks ask of the center.
        hosts: for each rank the number of its host.
        service: seconds for which an exchange of a rank of another host occupies the link of rank 0's host.

    Returns:
        Whether the center is spread, and the reason.
    """
    remote = sum(host != hosts[0] for host in hosts)
    carried = knee(demand.steps * PRESUMED_STEP, service)
    text = (
        f"an exchange occupies the link of rank 0 for {service:.2g} s, so that with steps of "
        f"{1000 * PRESUMED_STEP:.0f} ms it carries {carried:.0f} workers of other hosts. There are {remote}"
    )
    return remote > carried, text


def link_seconds(comm: MPI.Comm, demand: Demand, hosts: Sequence[int], timeout: float) -> float:
    """Measures for how long an exchange with a center at rank 0 occupies the link. Collective.

    One rank of another host exchanges a megabyte with rank 0, a few times; the other ranks wait.

    Args:
        comm: the ranks, on two hosts or more.
        demand: what they ask of the center.
        hosts: for each rank the number of its host.
        timeout: seconds that a wait may take.

    Returns:
        Seconds for the whole center; the same on every rank.
    """
    probe = np.zeros(min(demand.size, CHUNK_BYTES // 4), np.float32)
    acting = next(rank for rank, host in enumerate(hosts) if host != hosts[0])
    center = WindowCenter(comm, probe, timeout=timeout, exchange_dtype=demand.exchange_dtype)
    seconds = []
    if comm.rank == acting:
        for _ in range(MEASURED):
            begin = time.perf_counter()
            center.exchange(lambda local, center: (local, center), probe)
            seconds.append(time.perf_counter() - begin)
    center.free()
    own = np.array(min(seconds[1:], default=0.0))
    measured = gathered(comm, own, timeout, "the measurement of the link")[acting]
    return float(measured) * demand.size * demand.parts / probe.size
