"""Spark SQL expressions over columns of vectors, arrays and numbers: all of it runs in the JVM."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.mllib.linalg import VectorUDT as OldVectorUDT
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DataType,
    DecimalType,
    NumericType,
    StringType,
)


def column(name: str) -> Column:
    """Returns the top-level column of that name, which may contain dots."""
    return F.col("`" + name.replace("`", "``") + "`")


def is_vector(dtype: DataType) -> bool:
    """Returns whether a column holds Spark's vectors, those of pyspark.ml or of pyspark.mllib."""
    return isinstance(dtype, VectorUDT | OldVectorUDT)


def is_scalar(dtype: DataType) -> bool:
    """Returns whether a column holds plain numbers or booleans."""
    return isinstance(dtype, NumericType | BooleanType)


def is_array(dtype: DataType) -> bool:
    """Returns whether a column holds arrays of numbers, nested or not."""
    while isinstance(dtype, ArrayType):
        dtype = dtype.elementType
        if is_scalar(dtype):
            return True
    return False


def is_text(dtype: DataType) -> bool:
    """Returns whether a column holds strings, bytes, or arrays of them."""
    while isinstance(dtype, ArrayType):
        dtype = dtype.elementType
    return isinstance(dtype, StringType | BinaryType)


def is_binary(dtype: DataType) -> bool:
    """Returns whether a column holds bytes."""
    return isinstance(dtype, BinaryType)


def flat(value: Column, dtype: DataType, vectors_as: str = "float64", uneven: str = "") -> Column:
    """Returns a vector's or an array's numbers as one array; numbers, bytes and nulls stay as they are.

    Booleans become 0 and 1, and decimals doubles, since NumPy reads neither from Arrow.

    Args:
        value: the column.
        dtype: its type.
        vectors_as: "float64" or "float32", the type of a vector's numbers in the array.
        uneven: a message with which the job ends where nested arrays of one level have unequal lengths.
            Default: they are not checked.
    """
    if is_vector(dtype):
        # vector_to_array raises for a null.
        return F.when(value.isNotNull(), vector_to_array(value, vectors_as))
    nested = ""
    while isinstance(dtype, ArrayType):
        dtype = dtype.elementType
        if nested:
            value = _even(value, uneven) if uneven else F.flatten(value)
        nested = "array"
    plain = (
        "tinyint" if isinstance(dtype, BooleanType) else "double" if isinstance(dtype, DecimalType) else ""
    )
    if not plain:
        return value
    return value.cast(f"array<{plain}>" if nested else plain)


def _even(value: Column, message: str) -> Column:
    """Returns an array of arrays as one array; ends the job where their lengths differ; null for a null."""

    def check(lengths: Column) -> Column:
        wrong = F.array_min(lengths) != F.array_max(lengths)
        return F.when(wrong, F.raise_error(F.lit(message)).cast("int")).otherwise(0)

    joined = F.flatten(value)
    # flatten gives null where one of the arrays is null.
    checked = let(F.transform(value, lambda inner: F.size(inner)), check)
    return F.when(joined.isNotNull() & ((F.size(value) == 0) | (checked == 0)), joined)


def vector(values: Column) -> Column:
    """Returns an array of numbers as a dense vector; null for null."""
    return F.when(values.isNotNull(), array_to_vector(values.cast("array<double>")))


def let(value: Column, body: Callable[[Column], Column]) -> Column:
    """Returns `body(value)`, in which `value` is a variable that Spark SQL computes one time a row.

    A lambda of Spark SQL computes every expression in it again for each element of its array. Only the
    variables of an enclosing lambda are not computed again.
    """
    return F.transform(F.array(value), body)[0]


def softmax(values: Column) -> Column:
    """Returns an array of doubles that sum to 1, exp(x) / sum(exp(x)); null for null."""

    def powers(highest: Column) -> Column:
        return F.transform(values, lambda x: F.exp(x - highest))

    def shares(exponents: Column) -> Column:
        total = F.aggregate(exponents, F.lit(0.0), lambda added, x: added + x)
        return let(total, lambda known: F.transform(exponents, lambda x: x / known))

    return F.when(values.isNotNull(), let(let(F.array_max(values), powers), shares))


def reshape(values: Column, shape: Sequence[int]) -> Column:
    """Returns a flat array as nested arrays of a shape of at least one axis; null for null.

    `values` must hold prod(shape) numbers.
    """
    count = math.prod(shape)
    for length in reversed(shape[1:]):
        count //= length
        values = _cut(values, count, length)
    return values


def _cut(values: Column, count: int, length: int) -> Column:
    """Cuts an array into `count` arrays."""
    indexes = F.sequence(F.lit(0), F.lit(count - 1))

    def pieces(whole: Column) -> Column:
        return F.transform(indexes, lambda index: F.slice(whole, index * length + 1, F.lit(length)))

    return F.when(values.isNotNull(), let(values, pieces))


def checked_size(values: Column, size: int, message: str) -> Column:
    """Returns the array, or fails the job where it does not hold `size` numbers; null for null."""
    wrong = values.isNotNull() & (F.size(values) != size)
    received = F.concat(F.lit(f"{message}. Received: "), F.size(values).cast("string"))
    return F.when(wrong, F.raise_error(received)).otherwise(values)


def argmax(values: Column, default: int) -> Column:
    """Returns the first index of the highest number, as a double; null for null.

    NaN and null elements count as the lowest. An array without any other element gives `default`.
    """

    def found(best: Column) -> Column:
        return F.when(best["value"] == -math.inf, F.lit(default)).otherwise(-best["negated"]).cast("double")

    return F.when(values.isNotNull(), let(_best(values), found))


def first_above(values: Column, threshold: float, default: int) -> Column:
    """Returns the first index whose number reaches a threshold, as a double; null for null.

    If none does, the index of the highest positive number; without a positive number, `default`.
    """
    reached = F.transform(values, lambda x: _comparable(x) >= threshold)

    def found(best: Column) -> Column:
        positive = F.when(best["value"] > 0, -best["negated"]).otherwise(F.lit(default))
        # array_position counts from 1 and returns 0 where no element is True.
        first = F.array_position(reached, True)
        return F.when(first > 0, first - 1).otherwise(positive).cast("double")

    return F.when(values.isNotNull(), let(_best(values), found))


def _best(values: Column) -> Column:
    """The highest number and its negated index: of equal numbers the first compares as the highest."""
    return F.array_max(
        F.transform(values, lambda x, i: F.struct(_comparable(x).alias("value"), (-i).alias("negated")))
    )


def _comparable(number: Column) -> Column:
    """Minus infinity for NaN and null: Spark sorts NaN above all numbers."""
    return F.coalesce(F.nanvl(number.cast("double"), F.lit(-math.inf)), F.lit(-math.inf))
