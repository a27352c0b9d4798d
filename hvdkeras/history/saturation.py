"""How many workers an asynchronous center at rank 0 carries before it saturates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

# Begins the names of a rank's load among its telemetry.
LOAD_PREFIX = "load_"


def knee(between: float, service: float) -> float:
    """Returns how many workers a center serves before it saturates: (T + S) / S.

    It is the knee of a closed queue (Lazowska et al. 1984, chapter 5), `inf` where an exchange takes no time.

    Args:
        between: T, the seconds that a worker spends between two exchanges without the center.
        service: S, the seconds for which one exchange occupies the center.
    """
    return (between + service) / service if service else math.inf


@dataclass(frozen=True)
class Load:
    """What a rank asks of the center, in seconds of an average window.

    Attributes:
        between: seconds from an exchange to the next.
        service: seconds of an exchange.
        waiting: seconds for which the rank waits for its turn.
    """

    between: float
    service: float
    waiting: float

    @classmethod
    def of(cls, telemetry: Mapping[str, float]) -> Load | None:
        """Returns the load that a rank's telemetry has; None where it has none."""
        names = {field.name: LOAD_PREFIX + field.name for field in fields(cls)}
        if not telemetry.keys() >= set(names.values()):
            return None
        return cls(**{name: telemetry[key] for name, key in names.items()})


@dataclass(frozen=True)
class Saturation:
    """How near a center at rank 0 is to its saturation.

    Attributes:
        workers: how many ranks such as these it carries before it saturates; `inf` where exchanges take no
            time. Beyond it further ranks wait, and add nothing.
        ranks: how many ranks train.
        mean: the mean load of the ranks.
    """

    workers: float
    ranks: int
    mean: Load

    @classmethod
    def of(cls, loads: Sequence[Load]) -> Saturation:
        """Returns the saturation by the loads of all ranks."""
        seconds = np.mean([(load.between, load.service, load.waiting) for load in loads], axis=0)
        mean = Load(*seconds.tolist())
        return cls(knee(mean.between, mean.service), len(loads), mean)

    @property
    def is_reached(self) -> bool:
        """Whether there are more ranks than the center carries, and they wait longer than they exchange.

        The second says that they are in each other's way: on one host ranks are in different chunks of the
        center at once, and more of them are carried than the formula says.
        """
        return self.ranks > self.workers and self.mean.waiting > self.mean.service
