"""Spark ML transformers with dist-keras's names and arguments, computed in the JVM by Spark SQL.

Each keeps the rows and the columns of its DataFrame; a null input gives null. An output column must be new,
or be the stage's input, which it then replaces. Vectors may be dense or sparse; arrays of numbers are
accepted too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pyspark.ml import Transformer
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, DataType, NumericType, StringType

from hvdkeras.ml import expressions as sql
from hvdkeras.ml.scaler import StandardTransformer, StandardTransformerModel
from hvdkeras.ml.stage import Stage, a_name, a_number, at_least, param

__all__ = [
    "BinaryLabelTransformer",
    "DenseTransformer",
    "LabelIndexTransformer",
    "MinMaxTransformer",
    "OneHotTransformer",
    "ReshapeTransformer",
    "StandardTransformer",
    "StandardTransformerModel",
]


class _OneColumn(Stage, Transformer):
    """A transformer that reads one column and adds one."""

    input_col = param("input_col", "name of the column to read", a_name)
    output_col = param("output_col", "name of the column to add", a_name)
    expected = "vectors or arrays of numbers"

    def _transform(self, dataset: DataFrame) -> DataFrame:
        source, target = self.getOrDefault("input_col"), self.getOrDefault("output_col")
        dtype = self._type_of(dataset, source, "input_col")
        if not self._accepts(dtype):
            raise self._wrong_type(source, self.expected, dtype)
        self._check_new(dataset, target, "output_col", (source,))
        return dataset.withColumn(target, self._expression(sql.column(source), dtype))

    def _accepts(self, dtype: DataType) -> bool:
        return sql.is_vector(dtype) or sql.is_array(dtype)

    def _expression(self, value: Column, dtype: DataType) -> Column:
        raise NotImplementedError

    def _sized(self, value: Column, dtype: DataType, size: int) -> Column:
        message = f"{self.uid}: column {self.getOrDefault('input_col')!r} must hold {size} numbers a row"
        return sql.checked_size(sql.flat(value, dtype), size, message)


class LabelIndexTransformer(_OneColumn):
    """Turns a prediction into the index of its class, as a double, which Spark's evaluators read.

    That is the index of the highest value, and of the first among equal values. NaN counts as the lowest.

    Args:
        output_dim: number of values of a prediction, at least 2. (For a single sigmoid output use
            `pyspark.ml.feature.Binarizer`.)
        input_col: column of vectors or arrays.
        output_col: column to add.
        default_index: index for a row of NaN only and, with a threshold, for a row without a positive
            value.
        activation_threshold: a number selects dist-keras's rule: the index of the first value that reaches
            it, else that of the highest positive value. dist-keras's 0.55 selects a softmax output's highest
            value. Default: None, the highest value of any output.
    """

    output_dim = param("output_dim", "number of values of a prediction", at_least(2))
    default_index = param("default_index", "index for a row without a highest value", at_least(0))
    activation_threshold = param("activation_threshold", "number that the first value must reach", a_number)

    def __init__(
        self,
        output_dim: int,
        input_col: str = "prediction",
        output_col: str = "prediction_index",
        default_index: int = 0,
        activation_threshold: float | None = None,
    ) -> None:
        super().__init__(
            output_dim=output_dim,
            input_col=input_col,
            output_col=output_col,
            default_index=default_index,
            activation_threshold=activation_threshold,
        )

    def _expression(self, value: Column, dtype: DataType) -> Column:
        values = self._sized(value, dtype, self.getOrDefault("output_dim"))
        default, threshold = self.getOrDefault("default_index"), self.getOrDefault("activation_threshold")
        return (
            sql.argmax(values, default) if threshold is None else sql.first_above(values, threshold, default)
        )


class OneHotTransformer(_OneColumn):
    """Turns a class number into a dense vector with a one at that index.

    `pyspark.ml.feature.OneHotEncoder` learns the number of classes from the data, drops the last class by
    default and returns sparse vectors. Here `output_dim` is that number, and the vector has the form of the
    labels of a loss like categorical_crossentropy. A label that is not a class number ends the job.

    Args:
        output_dim: number of classes.
        input_col: column of whole numbers from 0 to output_dim - 1, of any numeric type.
        output_col: column to add.
    """

    output_dim = param("output_dim", "number of classes", at_least(1))
    expected = "numbers"

    def __init__(self, output_dim: int, input_col: str, output_col: str) -> None:
        super().__init__(output_dim=output_dim, input_col=input_col, output_col=output_col)

    def _accepts(self, dtype: DataType) -> bool:
        return sql.is_scalar(dtype)

    def _expression(self, value: Column, dtype: DataType) -> Column:
        classes = self.getOrDefault("output_dim")
        label = value.cast("double")
        index, zero = label.cast("int"), F.lit(0.0)
        ones = F.concat(
            F.array_repeat(zero, index), F.array(F.lit(1.0)), F.array_repeat(zero, F.lit(classes - 1) - index)
        )
        message = (
            f"{self.uid}: column {self.getOrDefault('input_col')!r} must hold whole numbers from 0 to "
            f"{classes - 1}. Received: "
        )
        wrong = F.raise_error(F.concat(F.lit(message), value.cast("string")))
        valid = (label >= 0) & (label < classes) & (label == F.floor(label))
        return sql.vector(F.when(label.isNull(), F.lit(None)).when(valid, ones).otherwise(wrong))


class MinMaxTransformer(_OneColumn):
    """Maps numbers from a known range to another: n_min + (x - o_min) (n_max - n_min) / (o_max - o_min).

    The range is given, for example 0 to 255 for pixels. `pyspark.ml.feature.MinMaxScaler` learns one for
    each element from the data.

    Args:
        o_min: lowest value of the original range.
        o_max: highest value of the original range. Values outside of it are mapped by the same equation.
        n_min: lowest value of the new range.
        n_max: highest value of the new range.
        input_col: column of vectors or arrays, or of numbers without `is_vector`.
        output_col: column to add, of vectors for vectors, arrays of doubles for arrays, else doubles.
        is_vector: whether a row holds several numbers.
    """

    o_min = param("o_min", "lowest value of the original range", a_number)
    o_max = param("o_max", "highest value of the original range", a_number)
    n_min = param("n_min", "lowest value of the new range", a_number)
    n_max = param("n_max", "highest value of the new range", a_number)
    is_vector = param("is_vector", "whether a row holds several numbers", bool)

    def __init__(
        self,
        o_min: float,
        o_max: float,
        n_min: float,
        n_max: float,
        input_col: str,
        output_col: str,
        is_vector: bool = True,
    ) -> None:
        super().__init__(
            o_min=o_min,
            o_max=o_max,
            n_min=n_min,
            n_max=n_max,
            input_col=input_col,
            output_col=output_col,
            is_vector=is_vector,
        )
        self._line()

    def _accepts(self, dtype: DataType) -> bool:
        return super()._accepts(dtype) if self.getOrDefault("is_vector") else sql.is_scalar(dtype)

    @property
    def expected(self) -> str:
        return "vectors or arrays of numbers" if self.getOrDefault("is_vector") else "numbers"

    def _line(self) -> tuple[float, float]:
        """Slope and intercept of the map."""
        o_min, o_max, n_min, n_max = (self.getOrDefault(n) for n in ("o_min", "o_max", "n_min", "n_max"))
        if not o_max > o_min:
            raise ValueError(f"{self.uid}: o_max must be above o_min. Received: {o_min} to {o_max}")
        slope = (n_max - n_min) / (o_max - o_min)
        return slope, n_min - slope * o_min

    def _expression(self, value: Column, dtype: DataType) -> Column:
        slope, intercept = self._line()

        def scaled(x: Column) -> Column:
            # Spark interprets lambdas, an operation at a time: an addition of 0 is left out.
            product = x.cast("double") * slope
            return product + intercept if intercept else product

        if not self.getOrDefault("is_vector"):
            return scaled(value)
        values = F.transform(sql.flat(value, dtype), scaled)
        return sql.vector(values) if sql.is_vector(dtype) else values


class ReshapeTransformer(_OneColumn):
    """Reshapes vectors or arrays to nested arrays, in row-major order as NumPy's reshape.

    Use it as the last stage before a model: few other stages read nested arrays. Trainers and
    `ModelPredictor` do not need it: they accept flat rows of the size of the model's input.

    Args:
        input_col: column of vectors or of arrays, nested or not.
        output_col: column to add: arrays nested once for each axis.
        shape: sizes of the axes, for example (28, 28, 1). Rows of another size end the job.
    """

    shape = param("shape", "sizes of the axes", lambda value: _shape(value))

    def __init__(self, input_col: str, output_col: str, shape: Sequence[int]) -> None:
        super().__init__(input_col=input_col, output_col=output_col, shape=shape)

    def _expression(self, value: Column, dtype: DataType) -> Column:
        shape = self.getOrDefault("shape")
        return sql.reshape(self._sized(value, dtype, math.prod(shape)), shape)


class DenseTransformer(_OneColumn):
    """Turns sparse vectors into dense ones, and arrays of numbers into dense vectors.

    Args:
        input_col: column of vectors, dense or sparse, or of arrays.
        output_col: column to add, of dense vectors.
    """

    def __init__(self, input_col: str, output_col: str) -> None:
        super().__init__(input_col=input_col, output_col=output_col)

    def _expression(self, value: Column, dtype: DataType) -> Column:
        return sql.vector(sql.flat(value, dtype))


class BinaryLabelTransformer(Stage, Transformer):
    """Turns a label into the vector [1, 0] where it is the given one, and into [0, 1] where it is not.

    `pyspark.ml.feature.StringIndexer` and `OneHotEncoder` do it for more than two classes.

    Args:
        input_column: column of strings, numbers or booleans.
        output_column: column to add, of dense vectors.
        label: value that gives [1, 0], of the column's type.
    """

    input_column = param("input_column", "name of the column to read", a_name)
    output_column = param("output_column", "name of the column to add", a_name)
    label = param("label", "value that gives [1, 0]", lambda value: _label(value))

    def __init__(self, input_column: str, output_column: str, label: str | float | bool) -> None:
        super().__init__(input_column=input_column, output_column=output_column, label=label)

    def _transform(self, dataset: DataFrame) -> DataFrame:
        source, target = self.getOrDefault("input_column"), self.getOrDefault("output_column")
        label = self.getOrDefault("label")
        dtype = self._type_of(dataset, source, "input_column")
        wanted = {str: StringType, bool: BooleanType}.get(type(label), NumericType)
        if not isinstance(dtype, wanted):
            raise self._wrong_type(source, f"values of the type of the label {label!r}", dtype)
        self._check_new(dataset, target, "output_column", (source,))
        value, one, zero = sql.column(source), F.lit(1.0), F.lit(0.0)
        other = F.when(value.isNotNull(), F.array(zero, one))
        return dataset.withColumn(
            target, sql.vector(F.when(value == label, F.array(one, zero)).otherwise(other))
        )


def _shape(value: Any) -> list[int]:
    axes = [value] if isinstance(value, int) else value
    if not isinstance(axes, list | tuple) or not axes:
        raise ValueError("a tuple of positive integers")
    if any(isinstance(axis, bool) or not isinstance(axis, int) or axis < 1 for axis in axes):
        raise ValueError("a tuple of positive integers")
    return list(axes)


def _label(value: Any) -> Any:
    if not isinstance(value, str | bool | int | float):
        raise ValueError("a string, a number or a boolean")
    return value
