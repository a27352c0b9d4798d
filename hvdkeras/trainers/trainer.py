"""The base of all trainers: a configuration, an algorithm, a `pyspark.ml` estimator, a history."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hvdkeras.algorithm import Algorithm, check_contract
from hvdkeras.arguments import declared_arguments
from hvdkeras.data import sources
from hvdkeras.driver import checks, training
from hvdkeras.driver.candidates import Candidate, Candidates, named
from hvdkeras.driver.configuration import Configuration
from hvdkeras.driver.inputs import build_from_data, closed, input_shapes
from hvdkeras.driver.tracking import tracked
from hvdkeras.driver.workers import Workers, open_workers
from hvdkeras.history.questions import HistoryQuestions
from hvdkeras.launch.standing import StandingRanks
from hvdkeras.ml.estimator import TunableEstimator
from hvdkeras.models import schema
from hvdkeras.models.serialization import own_parts
from hvdkeras.spec import EnsembleSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pyspark.ml.param import Param
    from pyspark.sql import DataFrame

    from hvdkeras.predictors import ModelPredictor

# What the rule on a rank never needs: the user's objects, and what pyspark keeps in each of its stages.
_STAYS_ON_THE_DRIVER = {"keras_model", "history", "uid", "_params", "_given", "_is_candidate"}


class Trainer(HistoryQuestions, Configuration, TunableEstimator, Algorithm):
    """What the user constructs. A new algorithm is a subclass; see `Algorithm` for what it may define.

    See `Configuration` for the arguments that all trainers share.

    Attributes:
        history: a `History` after `train`, None before.
    """

    _is_candidate = False

    def train(
        self,
        data: Any,
        shuffle: bool | None = None,
        *,
        validation_data: Any = None,
        resume: bool | None = None,
    ) -> Any:
        """Trains a copy of the model.

        Args:
            data: a Spark DataFrame (ranks run on the executors); or, with ranks on this machine, a DataFrame
                of Spark Connect, a pandas DataFrame, a dict of NumPy arrays by column name, the path of
                Parquet files, or `Shards` that were written before. In a script that runs under `horovodrun`
                or `mpirun` nothing is launched: each rank of the job takes its part, and all get the result.
            shuffle: as of the trainer, for this call. Default: the trainer's.
            validation_data: more data, of one of these kinds, on which the ranks together evaluate the
                center after each epoch.
            resume: as of the trainer, for this call. Default: the trainer's.

        Returns:
            The trained Keras model, compiled with the trainer's loss and metrics. Its optimizer has the
            state of rank 0's, which is that of all ranks in `SynchronousSGD`; where ranks keep optimizers of
            their own, it is one of them. An ensemble's members have optimizers that begin anew.

        Raises:
            TypeError: if the class does not keep the contract of an algorithm.
            ValueError: if an argument, a column or the data does not fit; nothing was launched then.
            TrainingError: if a rank failed.
        """
        data, validation_data = sources.by_column(data), sources.by_column(validation_data)
        shuffle = self.shuffle if shuffle is None else shuffle
        resume = self.resume if resume is None else resume
        request = training.Request(data, shuffle, validation_data, resume, self._open_workers(data))
        return self._trained(request, self.result)

    def copy(self, extra: Mapping[Param, Any] | None = None) -> Trainer:
        """Returns a copy in which params have the values in `extra`, as `CrossValidator` makes of a grid.

        Raises:
            ValueError: a value does not fit; or `learning_rate` is among them and is not the optimizer's, so
                that the candidates of a grid would be alike; or each of them would resume the one before.
        """
        result = super().copy(extra)
        own = {self.resume_param, self.checkpoint_param} & set(extra or {})
        if extra is not None and result.resume and (self._is_candidate or not own):
            raise self._resumes_others()
        # A stage that holds the trainer, a Pipeline, is copied with an empty map before it fits candidates.
        result._is_candidate = self._is_candidate or extra == {}
        rates = [
            param
            for param in extra or {}
            if param.parent == self.uid and self._argument(param.name) == "learning_rate"
        ]
        if rates and not result.names_its_optimizer:
            raise ValueError(
                "learning_rate can't be tuned beside an optimizer that has a rate of its own: give "
                "worker_optimizer by its name, or tune the param worker_optimizer itself. Received: "
                f"worker_optimizer={result.worker_optimizer!r}"
            )
        return result

    @property
    def default_workers(self) -> int:
        """How many ranks are launched where `num_workers` is not given."""
        return 2

    @property
    def ensemble(self) -> EnsembleSpec | None:
        """What to train instead of one model; None for one model."""
        return None

    def result(self, outcome: training.Outcome) -> Any:
        """Returns what `train` returns, made from the outcome of the training.

        It is called before the training, too, with models that did not train: what it raises is known then.
        """
        return outcome.models[0]

    def algorithm(self) -> Algorithm:
        """Returns what travels to the ranks: this trainer without the user's model, data and callbacks."""
        shared = declared_arguments(Configuration)
        rule = object.__new__(type(self))
        rule.__dict__.update(
            {
                name: value
                for name, value in vars(self).items()
                if name not in _STAYS_ON_THE_DRIVER
                and (name not in shared or isinstance(value, bool | int | float | str | None))
            }
        )
        return rule

    def _fit(self, dataset: DataFrame) -> ModelPredictor:
        dataset = sources.by_column(dataset)
        request = training.Request(dataset, self.shuffle, None, self.resume, self._open_workers(dataset))
        return self._trained(request, self._predictor(dataset))

    def fitMultiple(
        self, dataset: DataFrame, paramMaps: Sequence[Mapping[Param, Any]]
    ) -> Iterator[tuple[int, ModelPredictor]]:
        """Fits a copy of the trainer for each param map, as `CrossValidator` does.

        The shards are written once and the ranks are launched once, for all candidates that need the same
        columns and the same number of ranks. See `hvdkeras.driver.candidates.Candidates`.

        Returns:
            An iterator over pairs of the index of a param map and the fitted model. All are trained when the
            first is asked for.

        Raises:
            ValueError: a value of a param does not fit; nothing was trained then.
        """
        dataset = sources.by_column(dataset)
        candidates = [self._candidate(dataset, params) for params in paramMaps]
        if any(one.configuration.resume for one in candidates):
            raise self._resumes_others()
        _check_checkpoints([one.configuration.checkpoint for one in candidates])
        return Candidates(candidates, dataset, open_workers())

    def _candidate(self, dataset: DataFrame, params: Mapping[Param, Any]) -> Candidate:
        one = self.copy(params)
        values = {one._argument(param.name): value for param, value in params.items()}
        return Candidate(
            configuration=one,
            num_workers=one._num_workers(one._open_workers(dataset)),
            params=named(values),
            train=lambda request: one._trained(request, one._predictor(request.data)),
        )

    def _resumes_others(self) -> ValueError:
        return ValueError(
            "resume must be left out of a trainer that is tuned: each candidate, and each fold, would resume "
            "the one before. Give it with the other values of one training, fit(data, {..., "
            f"trainer.resume_param: True}}). Received: resume=True, checkpoint={self.checkpoint!r}"
        )

    def _predictor(self, dataset: Any) -> Callable[[training.Outcome], ModelPredictor]:
        """What makes the fitted model of an outcome."""
        from hvdkeras.predictors import ModelPredictor

        build_from_data(self, dataset)
        features = schema.input_columns(self.keras_model, self.features_col)
        shapes = input_shapes(self, dataset)

        def predictor(outcome: training.Outcome) -> ModelPredictor:
            made = ModelPredictor(
                closed(self.result(outcome), shapes),
                features_col=features,
                output_col=self.output_col,
                custom_objects={**own_parts(self.keras_model), **(self.custom_objects or {})},
                decode={name: function for name, function in self.decode.items() if name in features},
                padding={name: number for name, number in self.padding.items() if name in features},
                nan_cols=self.nan_cols,
                prediction_col=self.prediction_col,
                probability_col=self.probability_col,
                raw_prediction_col=self.raw_prediction_col,
                from_logits=self.gives_logits,
            )
            _ = made.keras_model  # the executors must be able to load it
            return made

        return predictor

    def _open_workers(self, data: Any) -> Workers | None:
        """The ranks that the user keeps, once they are found fit for a training on this data."""
        ranks = open_workers()
        if ranks is not None:
            ranks.check(self, self._num_workers(ranks), data)
        return ranks

    def _num_workers(self, ranks: StandingRanks | None) -> int:
        default = self.default_workers if ranks is None else ranks.num_proc
        return checks.number_of_workers(self.num_workers, default)

    def _trained(self, request: training.Request, finish: Callable[[training.Outcome], Any]) -> Any:
        """Trains; returns what `finish`, which is tried before, makes of the outcome."""
        check_contract(self)
        self.check_together()  # arguments may have been set since the construction
        num_workers = self._num_workers(request.ranks)
        self.check(num_workers)
        with tracked(self, self.ensemble, num_workers, request) as run:
            outcome = training.train(
                self, self.algorithm(), self.ensemble, num_workers, request, finish, run.on_message
            )
            self.history = outcome.history
            run.finish(outcome.history, lambda: schema.as_list(self.result(outcome)))
        return finish(outcome)


def _check_checkpoints(folders: Sequence[str | None]) -> None:
    """Raises ValueError where two candidates would save their checkpoints in one folder."""
    given = [folder for folder in folders if folder is not None]
    if twice := [folder for folder in given if given.count(folder) > 1]:
        raise ValueError(f"checkpoint must be a folder of its own for each candidate. Received: {twice[0]!r}")
