"""The contract of an algorithm: all that its author must read.

An algorithm is a subclass of `hvdkeras.Trainer` that sets a mode and, where its ranks exchange weights, calls
a rule in `exchange`. A rule is a pure function of float32 vectors; `Center` carries it between ranks. To try
one without ranks, use `hvdkeras.center.local.LocalCenter`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np

State = Mapping[str, np.ndarray | float | int]
"""What a rank keeps from one exchange to the next, by name; checkpoints hold it."""


class Mode(Enum):
    """When the ranks of a training exchange, and over what."""

    INDEPENDENT = "independent"
    """Ranks never exchange."""

    GRADIENTS = "gradients"
    """Every step of the optimizer uses the mean gradient of all ranks, which so have equal weights at all
    times. There is no center and no rule; see `Algorithm.gradient_averaging`."""

    SYNCHRONOUS = "synchronous"
    """All ranks exchange together, by MPI collectives; each rank holds a copy of the center."""

    ASYNCHRONOUS = "asynchronous"
    """Each rank exchanges at its own pace, by one-sided MPI, with a center in the memory of rank 0."""

    @property
    def has_center(self) -> bool:
        """Whether ranks exchange weights with a center, by a rule."""
        return self in (Mode.SYNCHRONOUS, Mode.ASYNCHRONOUS)


class Rule(Protocol):
    """The one form of a rule: a pure, elementwise function of float32 vectors of one length.

    The center calls it on one block of the vectors after the other, so that temporaries stay in the cache.
    """

    def __call__(self, local: np.ndarray, center: np.ndarray, *vectors: np.ndarray) -> Sequence[np.ndarray]:
        """Returns `(kept, push, *slot_pushes)`.

        Args:
            local: the rank's weights, shape `(n,)`, float32.
            center: the center, shape `(n,)`, float32, read-only.
            *vectors: the center's slots, if it has any, then the vectors that were given to `exchange`,
                each of shape `(n,)`.

        Returns:
            kept: what `Center.exchange` returns to this rank: in most rules its new weights.
            push: what is added to the center. Where ranks exchange together, their pushes are summed.
            slot_pushes: for each slot what is added to it.
            Each has the shape of `local`.
        """
        ...


class Center(Protocol):
    """The center variable, as a rank sees it.

    Attributes:
        size: number of ranks that share the center.
    """

    size: int

    def pull(self) -> np.ndarray:
        """Returns a copy of the center, shape `(n,)`, float32."""
        ...

    def push(self, update: np.ndarray) -> None:
        """Adds `update`, shape `(n,)`, to the center; where ranks exchange together, the sum of theirs."""
        ...

    def exchange(self, rule: Rule, local: np.ndarray, *vectors: np.ndarray) -> np.ndarray:
        """Applies a rule to the rank's weights and the center in one indivisible step.

        Args:
            rule: see `Rule`.
            local: the rank's weights, shape `(n,)`.
            *vectors: more vectors of the rule, each of shape `(n,)`.

        Returns:
            What the rule keeps, shape `(n,)`.
        """
        ...

    def staleness(self) -> int:
        """Counts the updates of other ranks since this rank's last pull or exchange.

        0 where ranks exchange together.
        """
        ...


@dataclass(frozen=True)
class GradientAveraging:
    """How gradients are averaged in `Mode.GRADIENTS`.

    Attributes:
        compression: None, or `"fp16"` to send gradients in half precision.
        accumulation: batches of each rank whose mean gradient makes one step of the optimizer.
    """

    compression: str | None = None
    accumulation: int = 1


class Algorithm:
    """What an algorithm may define. On ranks these methods are called on a copy of the trainer.

    The copy has the attributes that a subclass sets and the plain numbers and strings of the trainer's other
    arguments, such as `learning_rate`; the user's model, data and callbacks are not in it.
    """

    mode: Mode = Mode.INDEPENDENT

    communication_window: int | None = 16
    """Batches between two exchanges; also the steps that one call into TensorFlow runs. None: an epoch."""

    center_slots: int = 0
    """How many vectors of the weights' size lie beside an asynchronous center, for the rule's own use. They
    start with zeros."""

    settles: bool = False
    """Whether an exchange leaves each weight at rest: until this rank or another one changes the weight, a
    further exchange changes nothing, neither the weight nor the center, its slots or the state. Then an
    asynchronous exchange leaves out the rows of large embeddings that are at rest, and the vectors of
    `exchange` have the other weights only. False, the default, is right for every algorithm. A subclass does
    not inherit it, because its rule may be another one."""

    @property
    def gradient_averaging(self) -> GradientAveraging:
        """How gradients are averaged, where the mode is `Mode.GRADIENTS`."""
        return GradientAveraging()

    def begin(self, center: np.ndarray) -> State:
        """Returns the state for a rank's first exchange.

        Args:
            center: the weights that all ranks start from, shape `(n,)`, float32.
        """
        return {}

    def exchange(
        self, local: np.ndarray, center: Center, state: State, steps: int
    ) -> tuple[np.ndarray, State]:
        """The algorithm: what a rank does after `communication_window` batches.

        Args:
            local: the rank's trainable weights, shape `(n,)`, float32, read-only.
            center: the center.
            state: what `begin` or the exchange before returned.
            steps: batches since then: `communication_window`, or fewer at the end of an epoch.

        Returns:
            The rank's new weights, shape `(n,)`, and the state for the next exchange.
        """
        raise NotImplementedError(f"{type(self).__name__} has {self.mode}, so it must define exchange")

    def learning_rate_factor(self, epochs: float, num_workers: int) -> float:
        """Returns the factor of the optimizer's learning rate after `epochs` epochs of training."""
        return 1.0

    def check(self, num_workers: int) -> None:
        """Raises ValueError where the arguments contradict each other or the algorithm's theory.

        It is called on the driver, before anything is launched.
        """


def settles(algorithm: Algorithm) -> bool:
    """Returns whether the algorithm's own class says that its exchange settles."""
    return bool(vars(type(algorithm)).get("settles", False))


def check_contract(algorithm: Algorithm) -> None:
    """Raises where a class does not keep the contract; called on the driver, before anything is launched.

    Raises:
        TypeError: the mode is none, `exchange` is missing, `settles` is no bool, or there are slots without a
            center that has them.
    """
    kind = type(algorithm)
    if not isinstance(algorithm.mode, Mode):
        modes = ", ".join(map(str, Mode))
        raise TypeError(f"{kind.__name__}.mode must be one of {modes}. Received: {algorithm.mode!r}")
    defines_exchange = kind.exchange is not Algorithm.exchange
    if algorithm.mode.has_center != defines_exchange:
        needed = "must define exchange"
        if defines_exchange:
            needed = "must not define exchange, or set another mode, such as Mode.SYNCHRONOUS"
        raise TypeError(f"{kind.__name__} {needed}. Received: mode={algorithm.mode}")
    if not isinstance(algorithm.settles, bool):
        raise TypeError(f"{kind.__name__}.settles must be True or False. Received: {algorithm.settles!r}")
    slots = algorithm.center_slots
    if isinstance(slots, bool) or not isinstance(slots, int) or slots < 0:
        raise TypeError(f"{kind.__name__}.center_slots must be an integer from 0. Received: {slots!r}")
    if slots and algorithm.mode is not Mode.ASYNCHRONOUS:
        raise TypeError(
            f"{kind.__name__}.center_slots must be 0: only an asynchronous center has slots. "
            f"Received: center_slots={slots}, mode={algorithm.mode}"
        )
