"""How long a rank that waits for a ticket lock sleeps before it polls the lock again."""

from __future__ import annotations

# The longest pauses, in seconds: of the rank that is next in line, for each place that a rank is behind that
# one, and of all ranks. The second bounds what a queue loses that suddenly moves faster than before.
NEXT_PAUSE = 0.001
PLACE_PAUSE = 0.005
LONGEST_PAUSE = 0.05


def pause(elapsed: float, served: int, ahead: int) -> float:
    """Returns the seconds between two polls.

    The next in line polls often, so that it has the lock soon after its release. A rank further back sleeps
    for a quarter of the time that the ranks before it are expected to need: then a lock with a long queue is
    polled little more often than one with a short queue. With half of the time, ranks that overslept their
    turns made the time look longer to those behind them, who then overslept, too.

    Args:
        elapsed: seconds that the rank has waited.
        served: tickets that were served in this time.
        ahead: tickets that must be served before the rank's own; 1 for the next in line.
    """
    # The seconds for which a rank holds the lock; too few rather than too many, the holder is not done yet.
    held = elapsed / (1 + served)
    if ahead == 1:
        return min(NEXT_PAUSE, held / 10)
    return min(LONGEST_PAUSE, (ahead - 1) * PLACE_PAUSE, (ahead - 1) * held / 4)
