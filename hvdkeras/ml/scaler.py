"""Standardisation: the one transformer of dist-keras whose parameters come from the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pyspark.ml import Estimator, Model
from pyspark.ml.stat import Summarizer
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DataType

from hvdkeras.ml import expressions as sql
from hvdkeras.ml.stage import Stage, new_names, param


class StandardTransformer(Stage, Estimator):
    """Centers columns to mean 0 and scales them to standard deviation 1.

    `StandardTransformer(columns).fit(train)` computes the statistics of all columns in one pass, and the
    model that it returns scales every DataFrame by them. dist-keras's class of this name is a transformer: it
    scales each DataFrame, test data too, by that DataFrame's own statistics. A `Pipeline` with it needs no
    change.

    The standard deviation is the population's, as in dist-keras and scikit-learn;
    `pyspark.ml.feature.StandardScaler`, for one vector column, uses the sample's. Columns without any spread
    become 0. Nulls are left out of the statistics.

    Args:
        columns: columns to scale, a name or a list: numbers, or vectors or arrays, each element of
            which has statistics of its own.
        suffix: text after a column's name that makes the name of its result's column.
    """

    columns = param("columns", "names of the columns to scale", new_names)
    suffix = param("suffix", "end of the names of the columns to add", str)

    def __init__(self, columns: str | Sequence[str], suffix: str = "_normalized") -> None:
        super().__init__(columns=columns, suffix=suffix)

    def _fit(self, dataset: DataFrame) -> StandardTransformerModel:
        columns = self.getOrDefault("columns")
        types = dict(zip(columns, self._types_of(dataset, columns, "columns"), strict=True))
        row = dataset.agg(*(self._statistics(name, types[name]).alias(name) for name in columns)).first()
        means, deviations = [], []
        for name, statistics in zip(columns, row, strict=True):
            if not statistics["count"]:
                raise ValueError(f"{self.uid}: column {name!r} must hold at least one value. Received: none")
            if sql.is_scalar(types[name]):
                means.append(statistics["mean"])
                deviations.append(statistics["std"])
            else:
                # Summarizer divides by count - 1.
                population = math.sqrt((statistics["count"] - 1) / statistics["count"])
                means.append(statistics["mean"].toArray().tolist())
                deviations.append((statistics["std"].toArray() * population).tolist())
        model = StandardTransformerModel(columns, self.getOrDefault("suffix"), means, deviations)
        return model._resetUid(self.uid)

    def _statistics(self, name: str, dtype: DataType) -> Column:
        value = sql.column(name)
        if sql.is_scalar(dtype):
            value = value.cast("double")
            return F.struct(
                F.count(value).alias("count"), F.mean(value).alias("mean"), F.stddev_pop(value).alias("std")
            )
        if sql.is_vector(dtype) or sql.is_array(dtype):
            vectors = value if sql.is_vector(dtype) else sql.vector(sql.flat(value, dtype))
            # Summarizer reads rows of weight 0, too, and fails at a null.
            placeholder = sql.vector(F.array(F.lit(0.0)))
            weight = F.when(value.isNull(), 0.0).otherwise(1.0)
            return Summarizer.metrics("count", "mean", "std").summary(
                F.coalesce(vectors, placeholder), weight
            )
        raise self._wrong_type(name, "numbers, or vectors or arrays of numbers", dtype)

    def transform(self, dataset: DataFrame) -> DataFrame:
        """Refuses: the statistics must be fitted first.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{self.uid} must be fitted first: StandardTransformer(columns).fit(df).transform(df)"
        )


class StandardTransformerModel(Stage, Model):
    """Computes (x - mean) / deviation for each column; `StandardTransformer.fit` returns it.

    Args:
        columns: columns to scale.
        suffix: text after a column's name that makes the name of its result's column. Numbers give doubles,
            vectors give vectors, and arrays give arrays of doubles.
        means: for each column its mean, a number, or a list of them for vectors and arrays.
        deviations: for each column its standard deviation, likewise.
    """

    columns = param("columns", "names of the columns to scale", new_names)
    suffix = param("suffix", "end of the names of the columns to add", str)
    means = param("means", "mean of each column", list)
    deviations = param("deviations", "standard deviation of each column", list)

    def __init__(self, columns: Sequence[str], suffix: str, means: list[Any], deviations: list[Any]) -> None:
        super().__init__(columns=columns, suffix=suffix, means=means, deviations=deviations)

    def _transform(self, dataset: DataFrame) -> DataFrame:
        columns, suffix = self.getOrDefault("columns"), self.getOrDefault("suffix")
        types, new = self._types_of(dataset, columns, "columns"), [name + suffix for name in columns]
        self._check_all_new(dataset, new, "suffix", () if suffix else set(columns))
        scales = zip(self.getOrDefault("means"), self.getOrDefault("deviations"), strict=True)
        expressions = [
            self._expression(name, dtype, *scale)
            for name, dtype, scale in zip(columns, types, scales, strict=True)
        ]
        return dataset.withColumns(dict(zip(new, expressions, strict=True)))

    def _expression(self, name: str, dtype: DataType, mean: Any, deviation: Any) -> Column:
        value = sql.column(name)
        if not isinstance(mean, list):
            if not sql.is_scalar(dtype):
                raise self._wrong_type(name, "numbers", dtype)
            return (value.cast("double") - mean) * _inverse(deviation)
        if not (sql.is_vector(dtype) or sql.is_array(dtype)):
            raise self._wrong_type(name, f"vectors or arrays of {len(mean)} numbers", dtype)
        message = f"{self.uid}: column {name!r} must hold {len(mean)} numbers a row"
        values = sql.checked_size(sql.flat(value, dtype), len(mean), message)
        means, scales = F.lit(mean), F.lit([_inverse(one) for one in deviation])
        scaled = F.transform(values, lambda x, index: (x.cast("double") - means[index]) * scales[index])
        return sql.vector(scaled) if sql.is_vector(dtype) else scaled


def _inverse(deviation: float) -> float:
    return 1.0 / deviation if deviation > 0 else 0.0
