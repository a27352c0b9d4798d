"""The driver's warning that more ranks train than an asynchronous center at rank 0 carries."""

from __future__ import annotations

import logging
import threading
from typing import Any

from hvdkeras.history.saturation import Load, Saturation

logger = logging.getLogger("hvdkeras")


class SaturationLog:
    """Receives the ranks' `Load`, on any thread, and warns once where the center is saturated.

    Args:
        num_workers: ranks that train. In a running job messages don't leave their rank: then the loads of
            all are not known, and there is no warning.
    """

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._loads: dict[int, Load] = {}
        self._lock = threading.Lock()

    def on_message(self, rank: int, message: Any) -> None:
        """Takes the `Load` of a rank; ignores other messages."""
        if not isinstance(message, Load):
            return
        with self._lock:
            is_last = rank not in self._loads and len(self._loads) == self._num_workers - 1
            self._loads[rank] = message
            found = Saturation.of(list(self._loads.values()))
        if is_last and found.is_reached:
            logger.warning(
                "the center at rank 0 carries %.1f workers such as these before it saturates, and %d train: "
                "in a window they compute for %.2g s, wait for %.2g s and exchange for %.2g s. A longer "
                "communication_window helps, and with ranks on three hosts or more center_sharded=True",
                found.workers,
                found.ranks,
                found.mean.between,
                found.mean.waiting,
                found.mean.service,
            )
