"""What ranks get of a training: plain data, made by the driver and read by every room below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hvdkeras.algorithm import Algorithm
from hvdkeras.data.decoding import Decoder
from hvdkeras.data.shards import Shards
from hvdkeras.data.split import MarkedSplit, Split
from hvdkeras.models.recipe import Recipe
from hvdkeras.models.targets import Batch


@dataclass(frozen=True)
class DataSpec:
    """The rows of a training.

    Attributes:
        shards: the rows to train on and, with `split`, to evaluate on.
        validation: the rows to evaluate the center on, where they are data of their own.
        split: the rows of `shards` that are evaluated on and not trained on; None without.
        batch_size: rows of one step of one rank.
        seed: of the order of the rows.
        shuffle: whether each epoch deals all rows out anew.
        decode: by column name, the function from a row's bytes to its array.
        class_weight: as in `keras.Model.fit`; None without.
        batch: how the columns make up a batch.
    """

    shards: Shards
    validation: Shards | None
    split: Split | MarkedSplit | None
    batch_size: int
    seed: int
    shuffle: bool
    decode: Mapping[str, Decoder]
    class_weight: Mapping[int, float] | None
    batch: Batch

    @property
    def is_evaluated(self) -> bool:
        """Whether there are rows to evaluate the center on."""
        return self.validation is not None or self.split is not None

    def order(self, communication_window: int | None) -> dict[str, Any]:
        """Returns what decides which rows make up which batch.

        With another order an epoch can't be resumed in its middle.
        """
        return {
            "rows": self.shards.rows if self.split is None else self.split.training_rows,
            "batch_size": self.batch_size,
            "communication_window": communication_window,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }


@dataclass(frozen=True)
class OversightSpec:
    """What is done beside the training: evaluations, callbacks, logs.

    Attributes:
        callbacks: Keras callbacks of every rank.
        center_callbacks: Keras callbacks of the center.
        evaluates_average: whether the moving average of the weights is evaluated, in the center's place.
        keeps_average: whether the center's callbacks get it, too.
        center_window: communication windows between two evaluations of the center; None: one an epoch.
        stop_at: metrics of the center and the values at which the training ends.
        tensorboard: a folder for TensorBoard's logs; None without.
        keeps_events: whether ranks keep events for a timeline.
        verbose: as of a trainer.
    """

    callbacks: Sequence[Any]
    center_callbacks: Sequence[Any]
    evaluates_average: bool
    keeps_average: bool
    center_window: int | None
    stop_at: Mapping[str, float]
    tensorboard: str | None
    keeps_events: bool
    verbose: int


@dataclass(frozen=True)
class CheckpointSpec:
    """Where and how often a training is saved.

    Attributes:
        url: a folder or URL that the driver and all ranks see.
        minutes: minutes between two checkpoints; None: one with each evaluation of the center.
        kept: how many complete checkpoints remain.
        resume: whether to resume from the newest intact one.
    """

    url: str
    minutes: float | None
    kept: int
    resume: bool


@dataclass(frozen=True)
class EnsembleSpec:
    """Several models that never exchange.

    Attributes:
        members: how many.
        partition: whether each member has a part of the rows to itself; otherwise all train on all rows.
    """

    members: int
    partition: bool


@dataclass(frozen=True)
class TrainingSpec:
    """A training.

    Attributes:
        algorithm: the rule, when it is called, and the numbers that it calculates with.
        recipe: the model and what it is compiled with.
        data: the rows.
        oversight: what is done beside the training.
        checkpoint: where the training is saved; None: it is not.
        ensemble: the ensemble to train; None for one model.
        num_workers: ranks that train.
        num_epoch: passes over the rows.
        threads: TensorFlow threads of one rank; None: the machine's cores divided by its ranks.
        timeout: seconds that a rank waits for another.
        center_sharded: whether an asynchronous center is spread over the hosts; None: the ranks decide.
        exchange_dtype: in which weights travel between hosts; None: float32.
    """

    algorithm: Algorithm
    recipe: Recipe
    data: DataSpec
    oversight: OversightSpec
    checkpoint: CheckpointSpec | None
    ensemble: EnsembleSpec | None
    num_workers: int
    num_epoch: int
    threads: int | None
    timeout: float
    center_sharded: bool | None
    exchange_dtype: str | None

    @property
    def has_rounds(self) -> bool:
        """Whether ranks take part in rounds: the center is evaluated or saved, or callbacks run."""
        oversight = self.oversight
        return bool(
            self.data.is_evaluated
            or self.checkpoint
            or oversight.callbacks
            or oversight.center_callbacks
            or oversight.center_window
            or oversight.tensorboard
        )
