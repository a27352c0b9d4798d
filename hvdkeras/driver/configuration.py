"""The user's configuration of a training: the arguments that all trainers share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from hvdkeras.arguments import (
    Declared,
    argument,
    dict_by_name,
    flag,
    fraction,
    one_of,
    optional,
    path,
    positive,
    whole,
)
from hvdkeras.data.decoding import Decoder
from hvdkeras.driver import argument_checks
from hvdkeras.models import schema
from hvdkeras.models.compiled import compiled_with
from hvdkeras.models.labels import losses_of
from hvdkeras.models.recipe import Recipe
from hvdkeras.models.signature import has_inputs
from hvdkeras.models.targets import Targets, complete_losses, targets
from hvdkeras.naming import listed, shown

_COMPILED = ("loss", "metrics", "weighted_metrics", "loss_weights")


class Configuration(Declared):
    """What the user asks for. Every argument is checked whenever it is set, also after the construction.

    Args:
        keras_model: a Keras model. Its weights are not changed by training. A subclassed model, or a
            Sequential one without an Input, is built from the shapes of the data's first row; a class of
            your own must be registered with Keras, or be among `custom_objects`, and its `train_step` is
            what trains.
        worker_optimizer: a Keras optimizer or its name, one copy for each rank, which begins with the state
            that the optimizer has. Default: the model's own if it is compiled, otherwise SGD at
            `learning_rate`.
        loss: a Keras loss, its name, a function, or a list or dict of them for several outputs, which may
            have None for some, or leave them out of a dict. Default: the model's own if it is compiled;
            models that compute a loss of their own, by `add_loss` or a `compute_loss`, need none.
        metrics: as in `keras.Model.compile`. Default: the model's own if it is compiled.
        weighted_metrics: as in `keras.Model.compile`. Default: the model's own if it is compiled.
        loss_weights: as in `keras.Model.compile`.
        num_workers: ranks to train with. Default: 2, or all ranks of the job in which the script runs.
        batch_size: rows of one step of one rank.
        num_epoch: passes over the data.
        features_col: the column of the model's input; a list with one column for each input, or a dict by
            the inputs' names: those of the Input layers, or the keys of a model that takes a dict. A model
            with one input of shape (n,) takes a list of n columns, too, with a number each.
        label_col: the column of the labels; a list with one column for each output, or a dict by the
            outputs' names. Outputs without a loss may be left out, or have None. None: no labels, for
            models that compute a loss of their own. Integer labels fit the sparse losses, and the
            categorical ones too: they are one-hot encoded by the output's size. Losses of the user's own
            get labels as the data has them.
        sample_weight_col: the column of the rows' weights in the loss, a number or a list (for time steps)
            in each row; a list with one column for each output, or a dict by the outputs' names. Default:
            all rows count the same.
        class_weight: weights of the classes in the loss by class number, as in `keras.Model.fit`; classes
            without an entry count 1. For models with one output, and not beside `sample_weight_col`.
        decode: by column name, functions that turn the bytes in a row (an image's file, say) into a NumPy
            array of the shape that the model wants there. The data then holds bytes of any length in these
            columns: BinaryType, Parquet's binary, a list of bytes. The ranks call them ahead of the training,
            `threads` at once, each epoch anew. Integers are cast to the input's dtype as they are, not
            rescaled. The fitted model of `fit` calls them, too.
        padding: by column name, the value with which lists of unequal lengths are made equally long in each
            batch, at their end, such as `{"tokens": 0}`; for columns whose first axis the model leaves open.
            Default: all rows have the length of the first one.
        nan_cols: a column of features, or a list of them, in which NaN, or null in place of a number, is a
            value like others, because the model itself replaces it. Default: NaN is refused.
        output_col: the column that the fitted model of `fit` adds, or a list with one for each output.
        prediction_col: column that the fitted model adds with the number of the most probable class, which
            Spark's evaluators read, as those of Spark's own classifiers. The model's first output must have
            a number for each class, or a single one, that of class 1 of two. Default: none.
        probability_col: column that it adds with the vector of the classes' probabilities. Default: none.
        raw_prediction_col: column that it adds with the vector of the classes' scores. Default: none.
        from_logits: whether the first output holds logits instead of probabilities. Default: as its loss
            has it.
        learning_rate: step size of the default optimizer, and of one that is given by its name; some
            algorithms use it in their rule, too. An optimizer that is given as an object keeps its own.
            Default: 0.01, but for an optimizer that is given by its name Keras's default.
        shuffle: False: each rank keeps its share of the rows and visits them in a new order each epoch. True:
            each epoch deals all rows out anew.
        seed: of the shuffling and of the ranks' random layers.
        validation_split: the part of the rows, drawn by `seed`, that is not trained on: after each epoch the
            ranks evaluate the center on it together. Default: none. `train` takes other data for it.
        validation_indicator_col: column of booleans: the rows with true are not trained on, and the ranks
            evaluate the center on them, as with `validation_split`. Default: none.
        callbacks: Keras callbacks. Those of Keras that decide by metrics or write files (EarlyStopping,
            ModelCheckpoint, ReduceLROnPlateau, LearningRateScheduler, TensorBoard, CSVLogger, ...), and
            subclasses of them, run as `center_callbacks`. All others run on every rank, with the rank's
            model; their `params` have `rank` and `num_workers`, and the logs of an epoch's end have the
            center's newest metrics, too.
        center_callbacks: Keras callbacks that run once, at rank 0, with the center as their model: after each
            evaluation of the center Keras calls their `on_epoch_end`, with the center's metrics and the mean
            of the ranks' logs. The `model.optimizer.learning_rate` and `model.stop_training` that they set
            apply to all ranks. The weights that they leave in the model are the result.
        center_window: communication windows between two evaluations of the center. Default: one an epoch.
        stop_at: metrics of the center with values, such as `{"val_accuracy": 0.95}`: the training ends as
            soon as an evaluation reaches one. Metrics with "loss" or "error" in their names must fall to the
            value, others rise to it.
        checkpoint: a folder or URL that the driver and all ranks see, where the training is saved so that
            `resume=True` can resume it. Default: nothing is saved.
        resume: resume from the newest intact checkpoint in `checkpoint`, or begin if there is none. A
            synchronous training then reaches the weights that it would have reached without the
            interruption, given the same rows in the same order. An asynchronous one loses no rows; those
            between its last checkpoint and its end are trained on again. With another number of ranks
            or another order of the rows the epoch under way begins anew, from the center and the mean of the
            optimizers' states. Another optimizer or learning rate is refused. The state of callbacks is
            not in a checkpoint.
        checkpoint_minutes: minutes between two checkpoints. Default: one with each evaluation of the center.
        checkpoints_kept: how many checkpoints remain; older ones are deleted. The default, 3, leaves two
            where the newest holds a model that has diverged.
        max_restarts: how often a training that lost a rank resumes by itself from its newest intact
            checkpoint.
        tensorboard: a folder for TensorBoard's logs of the center and of each rank.
        store: a folder or URL (anything that pyarrow or fsspec opens) that the driver and all ranks see. The
            data is laid out for the ranks in a new folder in it, which is removed after the training.
            Default: a temporary folder of this machine. A DataFrame of Spark Connect needs a store.
        center_sharded: for asynchronous algorithms, whether the center is spread over the hosts (True) or is
            in the memory of rank 0 (False). Default: at rank 0, unless the ranks are on three hosts or more,
            the center has 4 MB or more, and a measurement at the start finds rank 0's link too slow. The log
            says what was chosen.
        exchange_dtype: for algorithms whose ranks exchange weights, `"float16"` or `"bfloat16"` to send what
            they push and pull between hosts in half precision. What is rounded off of a push is added to the
            next; the center and the sums stay float32, and on one host nothing is converted. A training
            that resumes begins without what was rounded off last. Default: float32.
        custom_objects: classes and functions by name that the model needs and that are not registered
            with Keras.
        threads: TensorFlow threads of one rank. Default: the machine's cores divided by its ranks.
        timeout: seconds that a rank waits for another before it raises an error that names what it waited
            for; also the seconds without a sign of life of a rank after which the job is ended.
        verbose: 0 is silent; 1 shows the progress on stderr, as a bar in terminals and notebooks, elsewhere
            as a line an epoch and a minute; 2 also prints a line an epoch from each rank and
            mpirun's output.
        timeline: a path or URL (anything that fsspec opens) on the driver's side, where a timeline of what
            each rank did is written after the training, for chrome://tracing and https://ui.perfetto.dev.
            Default: none. A rank keeps its first 20,000 events, two or three for each window.
        launch_options: further arguments for `hvdkeras.launch.spark.run` or `hvdkeras.launch.local.run`:
            `start_timeout`, `env`, `mpi_args`.

    Raises:
        TypeError: for an argument that the class does not have; the message has the nearest names.
        ValueError: for a count that is not a positive integer, a rate that is not a positive number, or
            arguments that make no sense without each other.
    """

    worker_optimizer: Any = argument(None)
    loss: Any = argument(None)
    metrics: Sequence[Any] | Mapping[str, Any] | None = argument(None)
    weighted_metrics: Sequence[Any] | Mapping[str, Any] | None = argument(None)
    loss_weights: Sequence[float] | Mapping[str, float] | None = argument(None)
    num_workers: int | None = argument(None, optional(positive(int)))
    batch_size: int = argument(32, positive(int))
    num_epoch: int = argument(1, positive(int))
    features_col: schema.Names = argument("features", argument_checks.columns)
    label_col: schema.Names | None = argument("label", optional(argument_checks.label_columns))
    sample_weight_col: schema.Names | None = argument(None, optional(argument_checks.label_columns))
    class_weight: Mapping[int, float] | None = argument(None, optional(argument_checks.class_weight))
    decode: Mapping[str, Decoder] | None = argument(None, argument_checks.decoders)
    padding: Mapping[str, float] | None = argument(None, argument_checks.padding)
    nan_cols: str | Sequence[str] | None = argument(None, argument_checks.column_names)
    output_col: str | Sequence[str] = argument("prediction", argument_checks.columns)
    prediction_col: str | None = argument(None, optional(argument_checks.column))
    probability_col: str | None = argument(None, optional(argument_checks.column))
    raw_prediction_col: str | None = argument(None, optional(argument_checks.column))
    from_logits: bool | None = argument(None, optional(flag))
    learning_rate: float = argument(0.01, positive(float))
    shuffle: bool = argument(False, flag)
    seed: int = argument(0, whole)
    validation_split: float | None = argument(None, optional(fraction()))
    validation_indicator_col: str | None = argument(None, optional(argument_checks.column))
    callbacks: Sequence[Any] | None = argument(None, argument_checks.keras_callbacks)
    center_callbacks: Sequence[Any] | None = argument(None, argument_checks.keras_callbacks)
    center_window: int | None = argument(None, optional(positive(int)))
    stop_at: Mapping[str, float] | None = argument(None, argument_checks.metric_targets)
    checkpoint: str | os.PathLike | None = argument(None, optional(path))
    resume: bool = argument(False, flag)
    checkpoint_minutes: float | None = argument(None, optional(positive(float)))
    checkpoints_kept: int = argument(3, positive(int))
    max_restarts: int = argument(0, whole)
    tensorboard: str | os.PathLike | None = argument(None, optional(path))
    store: str | os.PathLike | None = argument(None, optional(path))
    center_sharded: bool | None = argument(None, optional(flag))
    exchange_dtype: str | None = argument(None, one_of(None, "float16", "bfloat16"))
    custom_objects: Mapping[str, Any] | None = argument(None, dict_by_name)
    threads: int | None = argument(None, optional(positive(int)))
    timeout: float = argument(600.0, positive(float))
    verbose: int = argument(1, one_of(0, 1, 2))
    timeline: str | os.PathLike | None = argument(None, optional(path))
    launch_options: Mapping[str, Any] | None = argument(None, argument_checks.launch_options)

    uses_compiled_optimizer = True
    """Whether the optimizer of a compiled model is used where `worker_optimizer` is not given."""

    def __init__(self, keras_model: Any, **arguments: Any) -> None:
        super().__init__()
        self.keras_model = keras_model
        self.set_arguments(arguments)
        self._take_what_the_model_is_compiled_with()
        self.check_together()

    def check_together(self) -> None:
        """Raises ValueError where arguments make no sense without each other."""
        for name in ("checkpoint_minutes", "max_restarts"):
            if getattr(self, name) and self.checkpoint is None:
                raise ValueError(f"{name} needs checkpoint. Received: checkpoint=None")
        if self.validation_split is not None and self.validation_indicator_col is not None:
            raise ValueError(
                "validation_indicator_col must be left out where validation_split is given. "
                f"Received: {self.validation_indicator_col!r}, validation_split={self.validation_split}"
            )
        self._check_decode()

    @property
    def holds_rows_out(self) -> bool:
        """Whether some rows of the data are evaluated on and not trained on."""
        return self.validation_split is not None or self.validation_indicator_col is not None

    def default_optimizer(self) -> Any:
        """Returns the optimizer of ranks, or its configuration, where `worker_optimizer` is not given."""
        return {"class_name": "SGD", "config": {"learning_rate": self.learning_rate}}

    def recipe(self) -> Recipe:
        """Returns the recipe of `recipe_with_copy`, without the copy."""
        return self.recipe_with_copy()[0]

    def recipe_with_copy(self) -> tuple[Recipe, Any]:
        """Returns the model and what it is compiled with, as they travel to ranks, and a copy made of them.

        Raises:
            ValueError: something of them can't be rebuilt on the ranks.
        """
        optimizer = self.default_optimizer() if self.worker_optimizer is None else self.worker_optimizer
        compiled = compiled_with(self.keras_model)
        return Recipe.with_copy(
            self.keras_model,
            optimizer,
            self.learning_rate if self.is_given("learning_rate") else None,
            self.custom_objects,
            metrics=self.metrics,
            weighted_metrics=self.weighted_metrics,
            **complete_losses(self.keras_model, self.loss, self.loss_weights),
            **{name: compiled[name] for name in ("run_eagerly", "jit_compile") if name in compiled},
        )

    @property
    def names_its_optimizer(self) -> bool:
        """Whether `learning_rate` is the rate of the optimizer: it was given by its name, or not at all."""
        return self.worker_optimizer is None or isinstance(self.worker_optimizer, str)

    @property
    def gives_logits(self) -> bool:
        """Whether the model's first output holds logits: `from_logits`, or what its loss says of it."""
        if self.from_logits is not None:
            return self.from_logits
        loss = losses_of(self.loss, schema.output_names(self.keras_model))[0]
        return getattr(loss, "from_logits", False) is True

    def targets(self) -> Targets:
        """Returns what a training reads beside the inputs."""
        return targets(self.keras_model, self.loss, self.label_col, self.sample_weight_col)

    def _check_decode(self) -> None:
        decode = self.decode
        if not decode:
            return
        names = self._names_of_columns()
        fits = isinstance(decode, Mapping) and all(map(callable, decode.values()))
        if not fits or decode.keys() - names:
            raise ValueError(
                f"decode must be a dict of functions by the names of columns that are read, {listed(names)}. "
                f"Received: {shown(decode)}"
            )

    def _names_of_columns(self) -> list[str]:
        """The columns of the model's inputs and of labels."""
        features = argument_checks.names_of(self.features_col)
        if has_inputs(self.keras_model):
            features = [
                column.name
                for column in schema.feature_columns(self.keras_model, self.features_col)
                if not column.stacked
            ]
        return [*features, *filter(None, argument_checks.names_of(self.label_col))]

    def _take_what_the_model_is_compiled_with(self) -> None:
        compiled = compiled_with(self.keras_model)
        for name in _COMPILED:
            if getattr(self, name) is None and compiled.get(name) is not None:
                setattr(self, name, compiled[name])
        if self.worker_optimizer is None and self.uses_compiled_optimizer and "optimizer" in compiled:
            self.worker_optimizer = compiled["optimizer"]
