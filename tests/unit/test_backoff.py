"""How often ranks that wait for a ticket lock poll it, and what their pauses cost; in simulated seconds."""

import heapq
import itertools
import random

import pytest

from hvdkeras.center.backoff import pause

TICKETS = 600
# A poll by RMA, and the shortest sleep of Linux.
POLL, SLEEP = 20e-6, 60e-6


def without_places(elapsed, served, ahead):
    """A pause that does not depend on the place in the queue."""
    return min(0.001, elapsed / 10)


def queue(pause, ranks, held, seed):
    """Ranks that want a lock all the time, and hold it for `held` seconds on average.

    Returns the seconds of a ticket and its polls, means.
    """
    draw = random.Random(seed)
    served, polls, now, tickets = 0, 0, 0.0, itertools.count()
    events = [(draw.random() * POLL, rank, None) for rank in range(ranks)]
    heapq.heapify(events)
    while served < TICKETS:
        now, rank, waiting = heapq.heappop(events)
        if waiting == "holds":
            served += 1
            waiting = None
        begin, ticket, first = waiting or (now, next(tickets), served)
        polls += 1
        if ticket == served:
            heapq.heappush(events, (now + POLL + draw.expovariate(1 / held), rank, "holds"))
        else:
            sleep = pause(now + POLL - begin, served - first, ticket - served)
            heapq.heappush(events, (now + POLL + max(SLEEP, sleep), rank, (begin, ticket, first)))
    return now / TICKETS, polls / TICKETS


@pytest.mark.parametrize("held", [1e-4, 3e-4, 3e-3])
def test_a_long_queue_neither_floods_the_host_nor_moves_more_slowly(held):
    for seed in range(2):
        seconds, polls = queue(pause, 64, held, seed)
        seconds_without, polls_without = queue(without_places, 64, held, seed)
        assert seconds < 1.05 * seconds_without
        assert polls < polls_without / 3
        # Hardly more than what a queue of four ranks costs.
        assert polls < 3 * queue(pause, 4, held, seed)[1]


def test_the_next_in_line_sleeps_a_millisecond_at_most_and_nobody_long():
    for elapsed, served, place in itertools.product((0.0, 1e-5, 0.1, 600.0), (0, 3, 1000), (1, 2, 9, 10_000)):
        seconds = pause(elapsed, served, place)
        assert 0 <= seconds <= (0.001 if place == 1 else 0.05)
        assert seconds <= pause(elapsed, served, place + 1)
