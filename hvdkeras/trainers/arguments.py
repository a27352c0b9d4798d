"""The arguments that all trainers share, their checks, and what ranks make of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from hvdkeras.data.decoding import Decoder
from hvdkeras.ml.estimator import TunableEstimator, require_positive, require_positive_or_none
from hvdkeras.models import schema as signature
from hvdkeras.models.compiled import compiled_with
from hvdkeras.models.recipe import Recipe


class Arguments(TunableEstimator):
    """What a training is to be like. It pickles: Keras's objects travel as files and configurations.

    Args:
        keras_model: a built Functional or Sequential Keras model. It is not changed by training.
        worker_optimizer: a Keras optimizer or its name, one copy for each rank, which begins with the state
            that the optimizer has. Default: the model's own if it is compiled, otherwise SGD at
            `learning_rate`.
        loss: a Keras loss, its name, a function, or a list or dict of them for several outputs. Default:
            the model's own if it is compiled.
        metrics: as in `keras.Model.compile`. Default: the model's own if it is compiled.
        weighted_metrics: as in `keras.Model.compile`. Default: the model's own if it is compiled.
        loss_weights: as in `keras.Model.compile`.
        num_workers: ranks to train with. Default: 2, or all ranks of the job in which the script runs.
        batch_size: rows of one step of one rank.
        num_epoch: passes over the data.
        features_col: the column of the model's input; a list with one column for each input, or a dict by
            the inputs' names: those of the Input layers, or the keys of a model that takes a dict.
        label_col: the column of the labels; a list with one column for each output, or a dict by the
            outputs' names. Integer labels fit the sparse losses, and the categorical ones too: they are
            one-hot encoded by the output's size.
        sample_weight_col: the column of the rows' weights in the loss; a list with one column for each
            output, or a dict by the outputs' names. Default: all rows count the same.
        class_weight: weights of the classes in the loss by class number, as in `keras.Model.fit`; classes
            without an entry count 1. For models with one output, and not beside `sample_weight_col`.
        decode: by column name, functions that turn the bytes in a row (an image's file, say) into a NumPy
            array of the shape that the model wants there. The data then holds bytes of any length in these
            columns: BinaryType, Parquet's binary, a list of bytes. The ranks call them ahead of the training,
            `threads` at once, each epoch anew. Integers are cast to the input's dtype as they are, not
            rescaled. Not with `fit`, whose fitted model reads numbers.
        output_col: the column that the fitted model of `fit` adds, or a list with one for each output.
        learning_rate: step size of the default optimizer, and of one that is given by its name; some
            algorithms use it in their rule, too. An optimizer that is given as an object keeps its own.
            Default: 0.01, but for an optimizer that is given by its name Keras's default.
        seed: of the shuffling and of the ranks' random layers.
        validation_split: the part of the rows, drawn by `seed`, that is not trained on: after each epoch the
            ranks evaluate the center on it together. Default: none. `train` takes other data for it.
        callbacks: Keras callbacks that run on every rank, with the rank's model. Their
            `params["rank"]` and `params["num_workers"]` tell where they are. In the logs of an epoch's end
            they see the center's newest metrics, too.
        center_callbacks: Keras callbacks that run once, at rank 0, with the center as their model: after each
            look at the center they get `on_epoch_end`, with the center's metrics and the mean of the ranks'
            logs. What they do to `model.optimizer.learning_rate` and `model.stop_training` counts for all
            ranks, and the weights that they leave in the model are the result.
        center_window: communication windows between two looks at the center. Default: one look an epoch.
        stop_at: metrics of the center with values, such as `{"val_accuracy": 0.95}`: the training ends as
            soon as a look finds one reached. Names with "loss" or "error" in them are reached from above.
        checkpoint: a folder or URL that the driver and all ranks see, where the training is saved so that
            `train(..., resume=True)` can go on with it. Default: nothing is saved.
        checkpoint_minutes: minutes between two checkpoints. Default: one with each look at the center.
        checkpoints_kept: how many checkpoints stay; older ones are deleted. The default, 3, leaves two if the
            newest turns out to hold a model that has diverged.
        max_restarts: how often a training that lost a rank goes on by itself from its last checkpoint.
        tensorboard: a folder for TensorBoard's logs of the center and of each rank.
        store: a folder or URL (anything that fsspec opens) that the driver and all ranks see. The data is
            laid out for the ranks in a new folder in it, which is removed after the training. Default: a
            temporary folder of this machine.
        custom_objects: classes and functions by name that the model needs and that are not registered
            with Keras.
        threads: TensorFlow threads of one rank. Default: the machine's cores divided by its ranks.
        timeout: seconds that a rank waits for another before it gives up with an error that says so.
        verbose: 0 is silent; 1 shows the progress on stderr, as a bar in terminals and notebooks, elsewhere
            as a line an epoch and a minute; 2 also prints a line an epoch from each rank and what mpirun
            says.
        timeline: a path or URL (anything that fsspec opens) on the driver's side, where a timeline of what
            each rank did is written after the training, for chrome://tracing and https://ui.perfetto.dev.
            Default: none. A rank keeps its first 20,000 events, two or three for each window.
        launch_options: further arguments for `hvdkeras.launch.spark.run` or `hvdkeras.launch.local.run`:
            `start_timeout`, `env`, `mpi_args`.

    Raises:
        ValueError: for a count that is not a positive integer, a rate that is not a positive number, or
            arguments that make no sense without each other.
    """

    def __init__(
        self,
        keras_model: Any,
        *,
        worker_optimizer: Any = None,
        loss: Any = None,
        metrics: Sequence[Any] | Mapping[str, Any] | None = None,
        weighted_metrics: Sequence[Any] | Mapping[str, Any] | None = None,
        loss_weights: Sequence[float] | Mapping[str, float] | None = None,
        num_workers: int | None = None,
        batch_size: int = 32,
        num_epoch: int = 1,
        features_col: signature.Names = "features",
        label_col: signature.Names = "label",
        sample_weight_col: signature.Names | None = None,
        class_weight: Mapping[int, float] | None = None,
        decode: Mapping[str, Decoder] | None = None,
        output_col: str | Sequence[str] = "prediction",
        learning_rate: float | None = None,
        seed: int = 0,
        validation_split: float | None = None,
        callbacks: Sequence[Any] = (),
        center_callbacks: Sequence[Any] = (),
        center_window: int | None = None,
        stop_at: Mapping[str, float] | None = None,
        checkpoint: str | os.PathLike | None = None,
        checkpoint_minutes: float | None = None,
        checkpoints_kept: int = 3,
        max_restarts: int = 0,
        tensorboard: str | None = None,
        store: str | None = None,
        custom_objects: Mapping[str, Any] | None = None,
        threads: int | None = None,
        timeout: float = 600.0,
        verbose: int = 1,
        timeline: str | None = None,
        launch_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.keras_model = keras_model
        self._recipe: Recipe | None = None
        compiled = compiled_with(keras_model)
        self._compile_options = {
            name: compiled[name] for name in ("run_eagerly", "jit_compile") if name in compiled
        }
        self.worker_optimizer = compiled.get("optimizer") if worker_optimizer is None else worker_optimizer
        self.loss = compiled.get("loss") if loss is None else loss
        self.metrics = compiled.get("metrics") if metrics is None else metrics
        weighted = compiled.get("weighted_metrics")
        self.weighted_metrics = weighted if weighted_metrics is None else weighted_metrics
        self.loss_weights = compiled.get("loss_weights") if loss_weights is None else loss_weights
        self.num_workers = require_positive_or_none("num_workers", num_workers, int)
        self.batch_size = require_positive("batch_size", batch_size, int)
        self.num_epoch = require_positive("num_epoch", num_epoch, int)
        self.features_col = features_col
        self.label_col = label_col
        self.sample_weight_col = sample_weight_col
        self.class_weight = class_weight
        self.decode = self._checked_decode(decode) if decode else {}
        self.output_col = output_col
        self._has_rate = learning_rate is not None
        self.learning_rate = require_positive(
            "learning_rate", learning_rate if self._has_rate else 0.01, float
        )
        self.seed = seed
        self.validation_split = validation_split
        self.callbacks = _checked_callbacks("callbacks", callbacks)
        self.center_callbacks = _checked_callbacks("center_callbacks", center_callbacks)
        self.center_window = require_positive_or_none("center_window", center_window, int)
        self.stop_at = dict(stop_at or {})
        self.checkpoint = None if checkpoint is None else os.fspath(checkpoint)
        self.checkpoint_minutes = require_positive_or_none("checkpoint_minutes", checkpoint_minutes, float)
        self.checkpoints_kept = require_positive("checkpoints_kept", checkpoints_kept, int)
        self.max_restarts = max_restarts
        self.tensorboard = tensorboard
        self.store = store
        self.custom_objects = dict(custom_objects or {})
        self.threads = require_positive_or_none("threads", threads, int)
        self.timeout = require_positive("timeout", timeout, float)
        self.verbose = verbose
        self.timeline = timeline
        self.launch_options = dict(launch_options or {})
        self._check_oversight()

    @property
    def is_watched(self) -> bool:
        """Whether anybody looks at the training while it runs."""
        return bool(
            self.validation_split
            or self.callbacks
            or self.center_callbacks
            or self.center_window
            or self.checkpoint
            or self.tensorboard
        )

    def models_trained(self, num_workers: int) -> int:
        """Returns how many models train and tell their progress: one on each rank."""
        return num_workers

    def callbacks_of_rank(self, name: str) -> list[Any]:
        """Returns the Keras callbacks that run on a rank, whose TensorBoard logs are called `name`."""
        return [*self.callbacks, *self._tensorboard(name)]

    def callbacks_of_center(self, name: str) -> list[Any]:
        """Returns the Keras callbacks that run on the center, whose TensorBoard logs are called `name`."""
        return [*self.center_callbacks, *self._tensorboard(name)]

    @property
    def recipe(self) -> Recipe:
        """The model with what it is compiled with, as it is when a training begins.

        Raises:
            ValueError: what of them can't be rebuilt on the ranks.
        """
        if self._recipe is None:
            optimizer = self.default_optimizer() if self.worker_optimizer is None else self.worker_optimizer
            self._recipe = Recipe.of(
                self.keras_model,
                optimizer,
                self.learning_rate if self._has_rate else None,
                self.custom_objects,
                loss=self.loss,
                metrics=self.metrics,
                weighted_metrics=self.weighted_metrics,
                loss_weights=self.loss_weights,
                **self._compile_options,
            )
        return self._recipe

    def compiled_model(
        self, fresh: bool = False, steps_per_execution: int = 1, rank: int | None = None
    ) -> Any:
        """Returns a copy of the model, compiled with the trainer's arguments; see `Recipe.build`."""
        return self.recipe.build(steps_per_execution, rank, fresh)

    def default_optimizer(self) -> dict[str, Any]:
        """Returns the configuration of the optimizer that ranks use where `worker_optimizer` is not given."""
        return {"class_name": "SGD", "config": {"learning_rate": self.learning_rate}}

    def __getstate__(self) -> dict[str, Any]:
        """Returns the configuration with everything that is Keras's in the recipe, which pickles."""
        keras_own = (
            "keras_model",
            "worker_optimizer",
            "loss",
            "metrics",
            "weighted_metrics",
            "custom_objects",
        )
        return {**self.__dict__, **dict.fromkeys(keras_own), "history": None, "_recipe": self.recipe}

    def _restore(self) -> None:
        """Takes from its recipe what a trainer that was pickled does not have."""
        self.keras_model, self.custom_objects = self._recipe.build(), self._recipe.objects
        compiled = compiled_with(self.keras_model)
        self.worker_optimizer = compiled["optimizer"]
        self.loss, self.metrics = compiled["loss"], compiled["metrics"]
        self.weighted_metrics = compiled["weighted_metrics"]

    def _tensorboard(self, run: str) -> list[Any]:
        if self.tensorboard is None:
            return []
        import keras

        return [keras.callbacks.TensorBoard(os.path.join(self.tensorboard, run))]

    def _checked_decode(self, decode: Mapping[str, Decoder]) -> dict[str, Decoder]:
        names = [
            *signature.input_columns(self.keras_model, self.features_col),
            *signature.output_columns(self.keras_model, self.label_col),
        ]
        fits = isinstance(decode, Mapping) and all(map(callable, decode.values()))
        if not fits or decode.keys() - names:
            raise ValueError(
                f"decode must be a dict of functions by the names of columns that are read, {names}. "
                f"Received: {decode!r}"
            )
        return dict(decode)

    def _check_oversight(self) -> None:
        split, restarts = self.validation_split, self.max_restarts
        if split is not None and not 0 < split < 1:
            raise ValueError(f"validation_split must lie between 0 and 1. Received: {split!r}")
        if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 0:
            raise ValueError(f"max_restarts must be an integer from 0. Received: {restarts!r}")
        for name in ("checkpoint_minutes", "max_restarts"):
            if getattr(self, name) and self.checkpoint is None:
                raise ValueError(f"{name} needs checkpoint. Received: checkpoint=None")
        for name, value in self.stop_at.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"stop_at must map metrics to numbers. Received: {name!r}: {value!r}")


def _checked_callbacks(name: str, callbacks: Sequence[Any]) -> list[Any]:
    import keras

    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            raise ValueError(f"{name} must hold Keras callbacks. Received: {callback!r}")
    return list(callbacks)
