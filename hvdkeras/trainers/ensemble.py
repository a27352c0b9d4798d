"""Ensembles: several models that never exchange, as a list or merged into one."""

from __future__ import annotations

from typing import Any

from hvdkeras.algorithm import Mode
from hvdkeras.arguments import argument, flag, positive
from hvdkeras.driver.training import Outcome
from hvdkeras.models.merging import merged
from hvdkeras.spec import EnsembleSpec
from hvdkeras.trainers.trainer import Trainer


class EnsembleTrainer(Trainer):
    """Trains several models in parallel, each from initial weights of its own.

    `train` returns a list of Keras models; with `merge_models=True` one Keras model whose outputs are the
    means of theirs. `history` has one entry for each model.

    Args:
        keras_model: the architecture; each member draws its own initial weights from the layers'
            initializers. See `Trainer` for the arguments that all trainers share.
        num_models: members of the ensemble.
        merge_models: return one model that averages its members' outputs.
        partition: True: each member has a part of the rows to itself, as in dist-keras. False: each is
            trained on all rows, in an order of its own.
        num_workers: ranks. Default: one for each member. With fewer the members train in turns.

    References:
        Hansen, Salamon, [Neural Network Ensembles](https://doi.org/10.1109/34.58871), 1990.
        Lakshminarayanan, Pritzel, Blundell, [Simple and Scalable Predictive Uncertainty Estimation using
        Deep Ensembles](https://arxiv.org/abs/1612.01474), 2017.
    """

    mode = Mode.INDEPENDENT

    num_models: int = argument(2, positive(int))
    merge_models: bool = argument(False, flag)
    partition: bool = argument(True, flag)

    def check(self, num_workers: int) -> None:
        super().check(num_workers)
        if num_workers > self.num_models:
            raise ValueError(
                f"num_workers must be at most num_models, {self.num_models}. Received: {num_workers}"
            )

    @property
    def default_workers(self) -> int:
        return self.num_models

    @property
    def ensemble(self) -> EnsembleSpec:
        return EnsembleSpec(self.num_models, self.partition)

    def result(self, outcome: Outcome) -> Any:
        return outcome.recipe.compile(merged(outcome.models)) if self.merge_models else outcome.models
