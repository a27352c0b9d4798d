"""Ensembles: several models that never exchange, as a list or merged into one."""

from __future__ import annotations

from typing import Any

from hvdkeras.models.merging import merged
from hvdkeras.rank import worker
from hvdkeras.trainers.trainer import Trainer, require_positive


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

    def __init__(
        self,
        keras_model: Any,
        *,
        num_models: int = 2,
        merge_models: bool = False,
        partition: bool = True,
        **arguments: Any,
    ) -> None:
        num_models = require_positive("num_models", num_models, int)
        super().__init__(keras_model, **{"num_workers": num_models, **arguments})
        self.num_models = num_models
        self.merge_models = merge_models
        self.partition = partition

    work = staticmethod(worker.train_members)

    def check(self, num_workers: int) -> None:
        super().check(num_workers)
        if num_workers > self.num_models:
            raise ValueError(
                f"num_workers must be at most num_models, {self.num_models}. Received: {num_workers}"
            )

    def models_trained(self, num_workers: int) -> int:
        return self.num_models

    def _trained(self, result: worker.Result) -> Any:
        members = self._models(result)
        return self.recipe.compile(merged(members)) if self.merge_models else members
