"""ModelPredictor: a Keras model as a Spark ML model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cloudpickle
import pandas as pd
from pyspark import SparkContext
from pyspark.ml import Model
from pyspark.ml.param import Param
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DataType

from hvdkeras.ml import expressions as sql
from hvdkeras.ml.scoring import Scoring, content_key, fed_dtype, spark_type
from hvdkeras.ml.stage import Stage, StageReader, StageWriter, at_least, names, new_names, one_of, param
from hvdkeras.models.merging import merged
from hvdkeras.models.saved import SavedModel, Tensor
from hvdkeras.models.schema import as_list
from hvdkeras.models.vector import model_from_bytes

FORMS = ("array", "vector", "scalar")


class ModelPredictor(Stage, Model):
    """Adds a Keras model's predictions to a DataFrame, and keeps its rows and columns.

    The executors compute, in batches of Arrow, on the GPU that Spark assigns to the task, else on a GPU of
    the host, else on the task's cores. The model is sent to them once, as `.keras` bytes; a Python worker
    loads it once and keeps it for later partitions and jobs. Loading and transforming import no TensorFlow on
    the driver. Memory of a worker depends on spark.sql.execution.arrow.maxRecordsPerBatch (10,000 rows by
    default; lower it where a row is large), not on the size of a partition.

    As with any Python UDF, Spark computes the prediction for a filter on it, and a second time for the rows
    that pass the filter. Where most rows pass, `cache()` before the filter.

    A features column holds vectors (dense or sparse), arrays, nested or not, or plain numbers. A row must
    hold as many numbers as the model's input, in any nesting.

    Args:
        keras_model: built Functional or Sequential model with fixed shapes. Custom layers and functions must
            be registered with Keras or be among `custom_objects`. A list of models with the same inputs and
            outputs, an ensemble's members, predicts their mean.
        features_col: column for each of the model's inputs, in their order: a name or a list.
        output_col: column to add for each of the model's outputs, in their order: a name or a list.
        output_type: form of a prediction: "array" (nested as the output's shape, of the output's dtype),
            "vector" (dense, doubles, flat) or "scalar" (for outputs of one number); one for all outputs or a
            list with one for each.
        batch_size: rows a call of the model. Above 1,024, the default, small models are no faster on a CPU;
            GPUs and tiny models may be faster with more, and big models on small GPUs may need fewer.
        handle_invalid: what becomes of a row with a null or NaN among its features: "error" ends the job,
            "keep" predicts null.
        custom_objects: classes and functions by name that are not registered with Keras.
        disagreement_col: for a list of models, a column to add for each output with the members' standard
            deviation. Default: none.

    Raises:
        ValueError: the model has no known inputs, shapes differ from row to row, or the numbers of columns
            and of inputs or outputs differ.
    """

    features_col = param("features_col", "column for each of the model's inputs", names)
    output_col = param("output_col", "column to add for each of the model's outputs", new_names)
    output_type = param("output_type", "form of a prediction", lambda value: form_names(value))
    batch_size = param("batch_size", "rows a call of the model", at_least(1))
    handle_invalid = param(
        "handle_invalid", "what becomes of a row with null or NaN", one_of("error", "keep")
    )

    def __init__(
        self,
        keras_model: Any,
        features_col: str | Sequence[str] = "features",
        output_col: str | Sequence[str] = "prediction",
        output_type: str | Sequence[str] = "array",
        batch_size: int = 1024,
        handle_invalid: str = "error",
        custom_objects: Mapping[str, Any] | None = None,
        disagreement_col: str | Sequence[str] | None = None,
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
        )
        self._saved = keras_model if isinstance(keras_model, SavedModel) else SavedModel.of(keras_model)
        self._custom_objects = dict(custom_objects or {})
        self._shipment: tuple[SparkContext, str, Any] | None = None
        self._one_for_each(self.features_col, self._saved.inputs, "inputs")
        self._forms()

    @property
    def keras_model(self) -> Any:
        """The Keras model, not compiled, loaded anew on each access."""
        return model_from_bytes(self._saved.content, self._custom_objects)

    def predict(self, dataset: DataFrame) -> DataFrame:
        """Returns `transform(dataset)`; the name is dist-keras's."""
        return self.transform(dataset)

    @classmethod
    def load(cls, path: str, custom_objects: Mapping[str, Any] | None = None) -> ModelPredictor:
        """Loads a predictor. Python code in the model, such as Lambda layers, is refused on the executors.

        Args:
            path: folder on any file system that Spark's Hadoop knows.
            custom_objects: classes and functions by name that are not registered with Keras.

        Raises:
            FileNotFoundError: nothing was saved there, or a file is missing.
            ValueError: a newer hvdkeras saved it, or it is damaged.
        """
        return cls.read(custom_objects=custom_objects).load(path)

    def _save_more(self, writer: StageWriter, path: str) -> dict[str, Any]:
        writer.write_bytes(f"{path}/model.keras", self._saved.content)
        return self._saved.metadata

    @classmethod
    def _load_more(cls, reader: StageReader, path: str, metadata: dict[str, Any]) -> dict[str, Any]:
        content = reader.read_bytes(f"{path}/model.keras")
        try:
            saved = SavedModel.from_metadata(content, metadata)
        except ValueError as error:
            raise ValueError(f"{metadata['uid']}: {error}. Received: {path + '/model.keras'!r}") from None
        return {"keras_model": saved, **reader.options}

    def _transform(self, dataset: DataFrame) -> DataFrame:
        features, outputs = self.getOrDefault("features_col"), self.getOrDefault("output_col")
        forms = self._forms()
        self._one_for_each(self.features_col, self._saved.inputs, "inputs")
        arguments = [
            self._argument(dataset, name, tensor)
            for name, tensor in zip(features, self._saved.inputs, strict=True)
        ]
        for name in outputs:
            self._check_new(dataset, name, "output_col")
        tensors = self._saved.outputs
        types = [
            spark_type(tensor) if form == "scalar" else f"array<{spark_type(tensor)}>"
            for tensor, form in zip(tensors, forms, strict=True)
        ]
        returned = types[0] if len(types) == 1 else ", ".join(f"_{i} {kind}" for i, kind in enumerate(types))
        # A column of its own: the expressions below read it several times, and Spark computes it once.
        raw = f"{self.uid}_raw"
        scored = dataset.withColumn(raw, _udf(self._scoring(dataset, forms), returned)(*arguments))
        made = {}
        for i, (name, tensor, form) in enumerate(zip(outputs, tensors, forms, strict=True)):
            flat = sql.column(raw) if len(types) == 1 else sql.column(raw)[f"_{i}"]
            made[name] = self._formed(flat, tensor, form)
        return scored.withColumns(made).drop(raw)

    def _argument(self, dataset: DataFrame, name: str, tensor: Tensor) -> Column:
        """The expression of a features column that is sent to the executors' Python."""
        dtype: DataType = self._type_of(dataset, name, "features_col")
        if not (sql.is_vector(dtype) or sql.is_array(dtype) or (sql.is_scalar(dtype) and tensor.size == 1)):
            expected = f"vectors or arrays of {tensor.size} numbers, for the model's input {tensor.name!r}"
            raise self._wrong_type(name, expected, dtype)
        # A vector's doubles are rounded before they are sent, which halves the bytes.
        vectors_as = "float32" if fed_dtype(tensor) == "float32" else "float64"
        return sql.flat(sql.column(name), dtype, vectors_as)

    @staticmethod
    def _formed(flat: Column, tensor: Tensor, form: str) -> Column:
        if form == "vector":
            return sql.vector(flat)
        return sql.reshape(flat, tensor.shape) if form == "array" and len(tensor.shape) > 1 else flat

    def _scoring(self, dataset: DataFrame, forms: Sequence[str]) -> Scoring:
        key, broadcast = self._ship(dataset.sparkSession.sparkContext)
        return Scoring(
            stage=self.uid,
            columns=tuple(self.getOrDefault("features_col")),
            inputs=self._saved.inputs,
            outputs=self._saved.outputs,
            scalar=tuple(form == "scalar" for form in forms),
            batch_size=self.getOrDefault("batch_size"),
            keep_invalid=self.getOrDefault("handle_invalid") == "keep",
            key=key,
            shipment=broadcast,
        )

    def _ship(self, context: SparkContext) -> tuple[str, Any]:
        """Broadcasts the model once for each Spark context."""
        if self._shipment is None or self._shipment[0] is not context:
            pickled = cloudpickle.dumps(self._all_custom_objects())
            key = content_key(self._saved.content, pickled)
            self._shipment = (context, key, context.broadcast((self._saved.content, pickled)))
        return self._shipment[1:]

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
                f"{len(tensors)} {what} ({', '.join(tensor.name for tensor in tensors)}). Received: {columns}"
            )

    def _forms(self) -> list[str]:
        """The form of each output."""
        tensors = self._saved.outputs
        self._one_for_each(self.output_col, tensors, "outputs")
        forms = self.getOrDefault("output_type")
        forms = forms * len(tensors) if len(forms) == 1 else forms
        if len(forms) != len(tensors):
            raise ValueError(
                f"{self.uid}: output_type must have one entry, or one for each of the model's {len(tensors)} "
                f"outputs. Received: {forms}"
            )
        for tensor, form in zip(tensors, forms, strict=True):
            if form == "scalar" and tensor.size != 1:
                raise ValueError(
                    f"{self.uid}: output_type 'scalar' must be for an output of one number. Received: output "
                    f"{tensor.name!r} of shape {tensor.shape}"
                )
        return forms


def _udf(scoring: Scoring, returned: str) -> Any:
    def score(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        return scoring(batches)

    # Spark reads the kind of function from its annotations, which are strings in this module.
    result = pd.DataFrame if ", " in returned else pd.Series
    score.__annotations__ = {"batches": Iterator[tuple[pd.Series, ...]], "return": Iterator[result]}
    return F.pandas_udf(score, returned)


def form_names(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not values or not set(values) <= set(FORMS):
        raise ValueError(f"one of {', '.join(map(repr, FORMS))} or a list of them")
    return list(values)
