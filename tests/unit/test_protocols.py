"""The two protocols that could deadlock, tried in every order in which their steps can happen.

`explore` visits all states that can be reached: a state is data, and a step leads to another state. The real
`Coordinator` leads the rounds. Its messages arrive at a rank in their order, at any time; those of ranks
arrive at once, because a late message is the same as a slow rank. The counters of the ticket locks are in
MPI's memory, so their steps are repeated here.
"""

import pickle
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from hvdkeras.coordination.coordinator import Coordinator
from hvdkeras.coordination.messages import Arrival, Contribution, Occasion, Round

RANKS = 3


def explore(first, steps, check_end):
    """Visits every state; calls `check_end` for those in which nothing can happen any more."""
    found, ends, stack = {first}, 0, [first]
    while stack:
        state = stack.pop()
        following = list(steps(state))
        if not following:
            check_end(state)
            ends += 1
        for each in following:
            if each not in found:
                found.add(each)
                stack.append(each)
    return len(found), ends


@dataclass(frozen=True)
class Locked:
    """A ticket lock, the sum that it protects, and what each rank does."""

    next: int = 0
    served: int = 0
    total: int = 0
    doing: tuple = ("idle",) * RANKS  # idle, a ticket (int), ("read", total), "added"
    pushes: tuple = (2,) * RANKS  # that each rank has still to make
    dead: int | None = None

    def of(self, rank, doing, **changes):
        return replace(self, doing=(*self.doing[:rank], doing, *self.doing[rank + 1 :]), **changes)


def lock_steps(state, can_die=False):
    holders = [
        rank
        for rank, doing in enumerate(state.doing)
        if doing == "added" or isinstance(doing, tuple) or doing == state.served
    ]
    assert len(holders) <= 1  # no second turn
    for rank, doing in enumerate(state.doing):
        if state.dead == rank:
            continue
        if can_die and state.dead is None:
            yield replace(state, dead=rank)
        if doing == "idle" and state.pushes[rank]:
            yield state.of(rank, state.next, next=state.next + 1)
        elif doing == "added":
            left = tuple(each - (number == rank) for number, each in enumerate(state.pushes))
            yield state.of(rank, "idle", served=state.served + 1, pushes=left)
        elif isinstance(doing, tuple):
            yield state.of(rank, "added", total=doing[1] + 1)
        elif doing == state.served:
            # Reading and writing are two steps: without the lock, pushes would be lost between them.
            yield state.of(rank, ("read", state.total))


def test_ticket_locks_lose_no_push_and_let_every_rank_through():
    def check_end(state):
        assert state.pushes == (0,) * RANKS
        assert state.total == 2 * RANKS

    states, ends = explore(Locked(), lock_steps, check_end)
    assert states > 100
    assert ends == 1


def test_a_holder_that_dies_leaves_the_others_waiting_with_a_bound():
    stuck = 0

    def check_end(state):
        nonlocal stuck
        for rank, doing in enumerate(state.doing):
            if rank != state.dead:
                # Done, or waiting for a ticket, which `acquire` does for `timeout` seconds.
                assert not state.pushes[rank] or isinstance(doing, int)
                stuck += isinstance(doing, int)

    explore(Locked(), lambda state: lock_steps(state, can_die=True), check_end)
    assert stuck


@dataclass
class Center:
    """What the coordinator asks of the center; an evaluation may ask for the end of the training."""

    stops_at: int | None
    evaluations: int = 0
    wants_stop: bool = False

    def evaluated(self, totals, arrivals):
        assert len(totals) == RANKS
        self.evaluations += 1
        self.wants_stop = self.wants_stop or self.evaluations == self.stops_at
        return {"val_loss": float(self.evaluations)}

    def learning_rates(self):
        return []


def no_weights():
    return None


def never():
    return False


@dataclass
class Rank:
    """A participant: the epochs that it has trained, and what it waits for."""

    epochs: int = 0
    waits_for: str = ""  # "a decision", "the last decision"
    stopped: bool = False
    begun: bool = False
    left: bool = False
    asked: bool = False


@dataclass
class Training:
    """All ranks of a training, the messages on their way, and the coordinator."""

    epochs: int
    waits: bool
    asks: int | None  # a rank that asks for the end after its first epoch
    coordinator: Coordinator
    ranks: list = field(default_factory=lambda: [Rank() for _ in range(RANKS)])
    to_rank: list = field(default_factory=lambda: [[] for _ in range(RANKS)])
    cut_off: int | None = None

    def report(self, number, occasion):
        arrival = Arrival(occasion, float(self.ranks[number].epochs), np.zeros(0, np.float32))
        self.coordinator.receive(number, arrival)

    def advance(self, number):
        """The rank's own training: its next report."""
        rank = self.ranks[number]
        if not rank.begun:
            rank.begun = True
            self.report(number, Occasion.BEGIN)
        elif rank.stopped or rank.epochs == self.epochs:
            rank.waits_for = "the last decision"
            self.report(number, Occasion.END)
        elif self.asks == number and rank.epochs == 1 and not rank.asked:
            rank.asked = True
            self.report(number, Occasion.STOP)
        else:
            rank.epochs += 1
            rank.waits_for = "a decision" if self.waits else ""
            self.report(number, Occasion.EVALUATE)

    def attend(self, number, count):
        """The rank handles the first `count` messages for it; the newest decision counts."""
        rank, newest = self.ranks[number], None
        arrived, self.to_rank[number] = self.to_rank[number][:count], self.to_rank[number][count:]
        for message in arrived:
            if isinstance(message, Round):
                totals = np.ones(1) if message.evaluate else None
                assert self.coordinator._round is not None
                assert number not in self.coordinator._contributions
                self.coordinator.receive(number, Contribution(totals))
            else:
                newest = message
        if newest is None:
            return
        assert not rank.left
        rank.stopped = rank.stopped or newest.stop
        rank.left = newest.is_last
        if rank.waits_for == "a decision" or newest.is_last:
            rank.waits_for = ""

    def proceed(self):
        """Rank 0 opens or closes a round, if one is due. Returns whether it did."""
        answer = self.coordinator.proceed()
        for messages in self.to_rank if answer else ():
            messages.append(answer)
        return answer is not None


def training_steps(state, may_be_cut_off=False):
    def after(action, *arguments):
        training = pickle.loads(state)
        done = getattr(training, action)(*arguments)
        training.coordinator._newest = dict(sorted(training.coordinator._newest.items()))
        training.coordinator._contributions = dict(sorted(training.coordinator._contributions.items()))
        return None if done is False else pickle.dumps(training)

    training = pickle.loads(state)
    for number, rank in enumerate(training.ranks):
        if number == training.cut_off:
            continue
        if may_be_cut_off and training.cut_off is None and number:
            cut = pickle.loads(state)
            cut.cut_off = number
            yield pickle.dumps(cut)
        if not rank.left and not rank.waits_for:
            yield after("advance", number)
        for count in range(1, len(training.to_rank[number]) + 1):
            yield after("attend", number, count)
    proceeded = after("proceed")
    if proceeded is not None:
        yield proceeded


def first_state(epochs, waits, stops_at, asks):
    coordinator = Coordinator(RANKS, Center(stops_at), no_weights, None, False, never, {})
    return pickle.dumps(Training(epochs, waits, asks, coordinator))


@pytest.mark.parametrize(
    ("epochs", "waits", "stops_at", "asks", "evaluations"),
    [
        (2, True, None, None, {2}),
        (2, True, 1, None, {1}),
        (1, False, None, None, {1}),
        # Where all ranks have ended before rank 0 opens a round, one evaluation does for all that were due.
        (2, False, None, None, {1, 2}),
        (2, False, 1, None, {1}),
        (2, False, None, 2, {1, 2}),
    ],
)
def test_rounds_end_in_every_order_of_their_messages(epochs, waits, stops_at, asks, evaluations):
    seen = set()

    def check_end(state):
        training = pickle.loads(state)
        assert all(rank.left and not rank.waits_for for rank in training.ranks)
        assert training.to_rank == [[]] * RANKS
        assert training.coordinator._round is None
        seen.add(training.coordinator._center.evaluations)

    explore(first_state(epochs, waits, stops_at, asks), training_steps, check_end)
    assert seen == evaluations


def test_a_rank_that_is_cut_off_leaves_the_others_waiting_with_a_bound():
    waiting = set()

    def check_end(state):
        training = pickle.loads(state)
        for number, rank in enumerate(training.ranks):
            if number != training.cut_off and not rank.left:
                # `Participant.decision` waits for `timeout` seconds.
                assert rank.waits_for
                waiting.add(rank.waits_for)

    explore(first_state(1, True, None, None), lambda s: training_steps(s, may_be_cut_off=True), check_end)
    assert waiting == {"a decision", "the last decision"}
