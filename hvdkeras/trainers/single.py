"""The baseline: one rank, no exchange."""

from __future__ import annotations

from typing import Any

from hvdkeras.trainers.trainer import Trainer


class SingleTrainer(Trainer):
    """Trains on one rank, with all of the machine's cores or one GPU: what the others are measured against.

    Args:
        keras_model: the model to train; see `Trainer` for the arguments that all trainers share.
            `num_workers` is always 1.
    """

    def __init__(self, keras_model: Any, **arguments: Any) -> None:
        if arguments.setdefault("num_workers", 1) != 1:
            raise ValueError(f"num_workers must be 1 for SingleTrainer. Received: {arguments['num_workers']}")
        super().__init__(keras_model, **arguments)
