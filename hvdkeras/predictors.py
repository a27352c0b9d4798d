"""ModelPredictor: a Keras model as a Spark ML model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyspark.ml import Model
from pyspark.ml.param import Param
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DataType

from hvdkeras.data.frames import stacked_width
from hvdkeras.ml import expressions as sql
from hvdkeras.ml.classes import HasClassColumns
from hvdkeras.ml.rows import UNEVEN, fed_dtype
from hvdkeras.ml.scoring import Scoring, spark_type
from hvdkeras.ml.stage import (
    Stage,
    StageReader,
    StageWriter,
    at_least,
    names,
    new_names,
    numbers_by_name,
    one_of,
    or_no_names,
    param,
)
from hvdkeras.ml.transport import Shipment, bound_batches, score_udf
from hvdkeras.models.merging import merged
from hvdkeras.models.saved import SavedModel, Tensor
from hvdkeras.models.schema import are_stacked, as_list, check_nan_cols, check_stacked
from hvdkeras.models.serialization import model_from_bytes
from hvdkeras.naming import listed, shown

FORMS = ("array", "vector", "scalar")


class ModelPredictor(HasClassColumns, Stage, Model):
    """Adds a Keras model's predictions to a DataFrame, and keeps its rows and columns.

    The executors compute, in batches of Arrow, on the GPU that Spark assigns to the task, else on a GPU of
    the host, else on the task's cores. The model is sent to them once, as `.keras` bytes; a Python worker
    loads it once and keeps it for later partitions and jobs. Loading and transforming import no TensorFlow on
    the driver. A batch has at most 64 MB of features and predictions: where a row has more than 838 numbers,
    `transform` lowers the session's spark.sql.execution.arrow.maxRecordsPerBatch and logs it.

    As with any Python UDF, Spark computes the prediction for a filter on it, and a second time for the rows
    that pass the filter. Where most rows pass, `cache()` before the filter.

    A features column holds vectors (dense or sparse), arrays, nested or not, bytes, or plain numbers. A row
    must hold as many numbers as the model's input, in any nesting. For an input of strings it holds strings,
    arrays of them, or bytes.

    For a classifier, `prediction_col`, `probability_col` and `raw_prediction_col` add the columns of Spark's
    own classifiers, which its evaluators read. They are computed from the model's first output: a number for
    each class, or a single one, that of class 1 of two classes.

    Args:
        keras_model: Functional or Sequential model, or a subclassed one that was trained here. Of an input at
            most one axis is open, beside that of the batch; outputs have fixed shapes. Custom layers and
            functions must be registered with Keras or be among `custom_objects`; those of Lambda layers
            travel along. A list of models with the same inputs and outputs, an ensemble's members, predicts
            their mean.
        features_col: column for each of the model's inputs, in their order: a name or a list. A model with
            one input of shape (n,) takes a list of n columns, too, with a number each.
        output_col: column to add for each of the model's outputs, in their order: a name or a list.
        output_type: form of a prediction: "array" (nested as the output's shape, of the output's dtype),
            "vector" (dense, doubles, flat) or "scalar" (for outputs of one number); one for all outputs or a
            list with one for each.
        batch_size: rows a call of the model. Above 1,024, the default, small models are no faster on a CPU;
            GPUs and tiny models may be faster with more, and big models on small GPUs may need fewer.
        handle_invalid: what becomes of a row that training refuses, with a null, NaN or an infinite value
            among its features, or for an input of integers a fraction or a number out of its range: "error"
            ends the job, "keep" predicts null.
        custom_objects: classes and functions by name that are not registered with Keras.
        decode: by features column, functions that turn the bytes in a row (an image's file, say) into a NumPy
            array of the input's shape, as in training. They are not saved: `load` takes them again.
        padding: by features column, the value with which lists of unequal lengths are made equally long in
            each batch, for inputs with an open first axis. Default: the rows of a batch have one length.
        nan_cols: features columns in which NaN, or null in place of a number, is a value like others, which
            the model itself replaces: a name or a list. Default: none.
        disagreement_col: for a list of models, a column to add for each output with the members' standard
            deviation. Default: none.
        prediction_col: column to add with the number of the most probable class, a double. Default: none.
        probability_col: column to add with the vector of the classes' probabilities. Default: none.
        raw_prediction_col: column to add with the vector of the classes' scores as the model gives them.
            Default: none.
        from_logits: whether the first output holds logits instead of probabilities; as in Keras's losses.

    Raises:
        ValueError: the model has no known inputs, shapes differ from row to row, or the numbers of columns
            and of inputs or outputs differ; or class columns are asked of a model whose first output is not
            one axis of numbers.
    """

    features_col = param("features_col", "column for each of the model's inputs", names)
    output_col = param("output_col", "column to add for each of the model's outputs", new_names)
    output_type = param("output_type", "form of a prediction", lambda value: form_names(value))
    batch_size = param("batch_size", "rows a call of the model", at_least(1))
    handle_invalid = param(
        "handle_invalid", "what becomes of a row that training refuses", one_of("error", "keep")
    )

    padding = param("padding", "value behind shorter lists, by features column", numbers_by_name)
    nan_cols = param("nan_cols", "features columns in which NaN is a value", or_no_names)

    def __init__(
        self,
        keras_model: Any,
        features_col: str | Sequence[str] = "features",
        output_col: str | Sequence[str] = "prediction",
        output_type: str | Sequence[str] = "array",
        batch_size: int = 1024,
        handle_invalid: str = "error",
        custom_objects: Mapping[str, Any] | None = None,
        decode: Mapping[str, Callable[[bytes], Any]] | None = None,
        padding: Mapping[str, float] | None = None,
        nan_cols: str | Sequence[str] = (),
        disagreement_col: str | Sequence[str] | None = None,
        prediction_col: str | None = None,
        probability_col: str | None = None,
        raw_prediction_col: str | None = None,
        from_logits: bool = False,
    ) -> None:
        if isinstance(keras_model, list | tuple):
            keras_model = merged(keras_model, disagreement=disagreement_col is not None)
            output_col = [*as_list(output_col), *as_list(disagreement_col or [])]
        elif disagreement_col is not None:
            raise ValueError(
                "disagreement_col must be left out unless keras_model is a list of models. Received: "
                f"{disagreement_col!r}"
            )
        super().__init__(
            features_col=features_col,
            output_col=output_col,
            output_type=output_type,
            batch_size=batch_size,
            handle_invalid=handle_invalid,
            padding=padding or {},
            nan_cols=nan_cols,
            prediction_col=prediction_col,
            probability_col=probability_col,
            raw_prediction_col=raw_prediction_col,
            from_logits=from_logits,
        )
        self._saved = keras_model if isinstance(keras_model, SavedModel) else SavedModel.of(keras_model)
        self._custom_objects = {**self._saved.functions, **(custom_objects or {})}
        self._decode = dict(decode or {})
        self._shipment = Shipment(self._saved.loadable)
        self._forms()
        self._class_names(self.getOrDefault("output_col"), self._saved.outputs[0])

    @property
    def keras_model(self) -> Any:
        """The Keras model, not compiled, loaded anew on each access."""
        return model_from_bytes(self._saved.loadable, self._custom_objects)

    def predict(self, dataset: DataFrame) -> DataFrame:
        """Returns `transform(dataset)`; the name is dist-keras's."""
        return self.transform(dataset)

    @classmethod
    def load(
        cls,
        path: str,
        custom_objects: Mapping[str, Any] | None = None,
        decode: Mapping[str, Callable[[bytes], Any]] | None = None,
    ) -> ModelPredictor:
        """Loads a predictor. Python code in the file, such as Lambda layers, is refused on the executors.

        Args:
            path: folder on any file system that Spark's Hadoop knows.
            custom_objects: classes and functions by name that are not registered with Keras.
            decode: the functions that the predictor was made with, by features column.

        Raises:
            FileNotFoundError: nothing was saved there, or a file is missing.
            ValueError: a newer hvdkeras saved it, it is damaged, or it needs `decode`.
        """
        return cls.read(custom_objects=custom_objects, decode=decode).load(path)

    def _save_more(self, writer: StageWriter, path: str) -> dict[str, Any]:
        writer.write_bytes(f"{path}/model.keras", self._saved.content)
        return {**self._saved.metadata, "decode": sorted(self._decode)}

    @classmethod
    def _load_more(cls, reader: StageReader, path: str, metadata: dict[str, Any]) -> dict[str, Any]:
        content = reader.read_bytes(f"{path}/model.keras")
        try:
            saved = SavedModel.from_metadata(content, metadata)
        except ValueError as error:
            raise ValueError(f"{metadata['uid']}: {error}. Received: {path + '/model.keras'!r}") from None
        needed, given = metadata.get("decode", []), reader.options.get("decode") or {}
        if set(needed) != set(given):
            raise ValueError(
                f"{metadata['uid']}: decode must have the functions that the predictor was made with, for "
                f"{listed(needed) or 'no columns'}: ModelPredictor.load(path, decode=...). "
                f"Received: {listed(given) or 'none'}"
            )
        return {"keras_model": saved, **reader.options}

    def udf(self, spark: SparkSession, name: str) -> Any:
        """Registers the model as a function of Spark SQL: `SELECT score(features) FROM t`.

        It takes the features columns, in the order of `features_col`; an array, `score(array(a, b))`, where
        several columns are one input. It returns a number for an output of type "scalar", else a flat array,
        and for several outputs a struct whose fields are `output_col`.

        Args:
            spark: the session whose SQL gets the function.
            name: the function's name.

        Returns:
            The function, for the DataFrame API.
        """
        forms = self._forms()
        return spark.udf.register(name, self._udf(spark, forms, self.getOrDefault("output_col")))

    def _transform(self, dataset: DataFrame) -> DataFrame:
        features, outputs = self.getOrDefault("features_col"), self.getOrDefault("output_col")
        forms, classes = self._forms(), self._class_names(outputs, self._saved.outputs[0])
        if self._are_stacked:
            arguments = [self._stacked(dataset, features)]
        else:
            arguments = [
                self._argument(dataset, *one) for one in zip(features, self._saved.inputs, strict=True)
            ]
        for argument, name in [*(("output_col", name) for name in outputs), *classes.items()]:
            self._check_new(dataset, name, argument)
        types = self._types(forms)
        udf = self._udf(dataset.sparkSession, forms, [f"_{i}" for i in range(len(types))])
        # A column of its own: the expressions below read it several times, and Spark computes it once.
        raw = f"{self.uid}_raw"
        flat = [sql.column(raw) if len(types) == 1 else sql.column(raw)[f"_{i}"] for i in range(len(types))]
        made = {
            name: self._formed(*one)
            for name, *one in zip(outputs, flat, self._saved.outputs, forms, strict=True)
        }
        if classes:
            scores = F.when(flat[0].isNotNull(), F.array(flat[0])) if forms[0] == "scalar" else flat[0]
            made.update(self._class_columns(scores, self._saved.outputs[0]))
        return dataset.withColumn(raw, udf(*arguments)).withColumns(made).drop(raw)

    def _argument(self, dataset: DataFrame, name: str, tensor: Tensor) -> Column:
        """The expression of a features column that is sent to the executors' Python."""
        dtype: DataType = self._type_of(dataset, name, "features_col")
        if tensor.is_string:
            if not sql.is_text(dtype):
                raise self._wrong_type(name, f"strings, for the model's input {tensor.name!r}", dtype)
            return sql.column(name)
        if name in self._decode and not sql.is_binary(dtype):
            raise self._wrong_type(name, "bytes, for decode", dtype)
        fits = sql.is_vector(dtype) or sql.is_array(dtype) or sql.is_binary(dtype)
        if not (fits or (sql.is_scalar(dtype) and tensor.size == 1)):
            expected = f"vectors or arrays of {tensor.size} numbers, for the model's input {tensor.name!r}"
            raise self._wrong_type(name, expected, dtype)
        # A vector's doubles are rounded before they are sent, which halves the bytes.
        vectors_as = "float32" if fed_dtype(tensor) == "float32" else "float64"
        uneven = f"{self.uid}: column {name!r} must hold {UNEVEN}"
        return sql.flat(sql.column(name), dtype, vectors_as, uneven)

    @property
    def _are_stacked(self) -> bool:
        """Whether the features columns have one number each of the model's only input."""
        return are_stacked(self.getOrDefault("features_col"), [one.shape for one in self._saved.inputs])

    def _stacked(self, dataset: DataFrame, names: Sequence[str]) -> Column:
        """The expression of several columns of numbers as one of arrays."""
        kinds = self._types_of(dataset, names, "features_col")
        for name, kind in zip(names, kinds, strict=True):
            if not sql.is_scalar(kind):
                raise self._wrong_type(name, f"numbers, of which {len(names)} are the model's input", kind)
        width = stacked_width(kinds, fed_dtype(self._saved.inputs[0]))
        return F.array(*(sql.column(name).cast(width) for name in names))

    @staticmethod
    def _formed(flat: Column, tensor: Tensor, form: str) -> Column:
        if form == "vector":
            return sql.vector(flat)
        return sql.reshape(flat, tensor.shape) if form == "array" and len(tensor.shape) > 1 else flat

    def _types(self, forms: Sequence[str]) -> list[str]:
        """Spark's type of each output as the executors return it."""
        return [
            spark_type(tensor) if form == "scalar" else f"array<{spark_type(tensor)}>"
            for tensor, form in zip(self._saved.outputs, forms, strict=True)
        ]

    def _udf(self, session: SparkSession, forms: Sequence[str], fields: Sequence[str]) -> Any:
        """The model as a pandas UDF; a struct of several outputs has these fields."""
        bound_batches(session, sum(tensor.numbers for tensor in (*self._saved.inputs, *self._saved.outputs)))
        columns, nan_cols = self.getOrDefault("features_col"), self.getOrDefault("nan_cols")
        if self._are_stacked:
            stacked = listed(columns)
            columns, nan_cols = [stacked], [stacked] if set(columns) <= set(nan_cols) else []
        key, shipment = self._shipment.send(session, self._all_custom_objects())
        scoring = Scoring(
            stage=self.uid,
            columns=tuple(columns),
            inputs=self._saved.inputs,
            outputs=self._saved.outputs,
            scalar=tuple(form == "scalar" for form in forms),
            batch_size=self.getOrDefault("batch_size"),
            keep_invalid=self.getOrDefault("handle_invalid") == "keep",
            key=key,
            decode=self._decode,
            padding=self.getOrDefault("padding"),
            nan_cols=tuple(nan_cols),
            batch=self._saved.batch,
            shipment=shipment,
        )
        return score_udf(scoring, list(zip(fields, self._types(forms), strict=True)))

    def _all_custom_objects(self) -> dict[str, Any]:
        """Custom objects for the executors: those given, and those registered with Keras on this driver."""
        if not any(">" in name for name in self._saved.registered_names):
            return self._custom_objects
        import keras

        registered = keras.saving.get_custom_objects()
        found = {name: registered[name] for name in self._saved.registered_names if name in registered}
        return {**found, **self._custom_objects}

    def _one_for_each(self, argument: Param, tensors: Sequence[Tensor], what: str) -> None:
        columns = self.getOrDefault(argument)
        if len(columns) != len(tensors):
            raise ValueError(
                f"{self.uid}: {argument.name} must name one column for each of the model's "
                f"{len(tensors)} {what} ({listed(tensor.name for tensor in tensors)}). "
                f"Received: {shown(columns)}"
            )

    def _forms(self) -> list[str]:
        """The form of each output; checks the columns of inputs and outputs."""
        features, inputs = self.getOrDefault("features_col"), self._saved.inputs
        if len(inputs) == 1 and len(features) > 1:
            check_stacked(features, inputs[0].name, inputs[0].shape, inputs[0].dtype)
            check_nan_cols(self.getOrDefault("nan_cols"), features)
        else:
            self._one_for_each(self.features_col, inputs, "inputs")
        tensors = self._saved.outputs
        self._one_for_each(self.output_col, tensors, "outputs")
        forms = self.getOrDefault("output_type")
        forms = forms * len(tensors) if len(forms) == 1 else forms
        if len(forms) != len(tensors):
            raise ValueError(
                f"{self.uid}: output_type must have one entry, or one for each of the model's {len(tensors)} "
                f"outputs. Received: {shown(forms)}"
            )
        for tensor, form in zip(tensors, forms, strict=True):
            if form == "scalar" and tensor.size != 1:
                raise ValueError(
                    f"{self.uid}: output_type 'scalar' must be for an output of one number. Received: output "
                    f"{tensor.name!r} of shape {tensor.shape}"
                )
        return forms


def form_names(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not values or not set(values) <= set(FORMS):
        raise ValueError(f"one of {', '.join(map(repr, FORMS))} or a list of them")
    return list(values)
