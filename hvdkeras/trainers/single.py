"""The baseline: one rank, no exchange."""

from __future__ import annotations

from hvdkeras.algorithm import Mode
from hvdkeras.arguments import argument, one_of
from hvdkeras.trainers.trainer import Trainer


class SingleTrainer(Trainer):
    """Trains on one rank, with all of the machine's cores or one GPU: what the others are measured against.

    Args:
        keras_model: the model to train; see `Trainer` for the arguments that all trainers share.
        num_workers: always 1.
    """

    mode = Mode.INDEPENDENT

    num_workers: int = argument(1, one_of(1, None))

    @property
    def default_workers(self) -> int:
        return 1
