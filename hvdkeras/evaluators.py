"""Spark ML evaluators: metrics of a DataFrame's predictions."""

from __future__ import annotations

from pyspark.ml.evaluation import Evaluator
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from hvdkeras.ml import expressions as sql
from hvdkeras.ml.stage import Stage, a_name, param


class AccuracyEvaluator(Stage, Evaluator):
    """The share of the rows whose prediction is of the label's class.

    Both columns may hold class numbers, or vectors or arrays: one-hot labels, probabilities, logits. The
    class of several values is the index of the highest. A single value in a vector is a probability, and its
    class is 1 above 0.5, as in Keras's binary accuracy. (`pyspark.ml`'s MulticlassClassificationEvaluator
    and BinaryClassificationEvaluator compute other metrics, see docs/pipelines.md.)

    A null or NaN prediction counts as wrong.

    Args:
        label_col: column of labels.
        prediction_col: column of predictions.
    """

    label_col = param("label_col", "column of labels", a_name)
    prediction_col = param("prediction_col", "column of predictions", a_name)

    def __init__(self, label_col: str = "label", prediction_col: str = "prediction") -> None:
        super().__init__(label_col=label_col, prediction_col=prediction_col)

    def isLargerBetter(self) -> bool:
        """Returns True: a higher accuracy is better."""
        return True

    def _evaluate(self, dataset: DataFrame) -> float:
        label = self._class(dataset, "label_col")
        right = label.eqNullSafe(self._class(dataset, "prediction_col")) & label.isNotNull()
        row = dataset.agg(
            F.count(F.lit(1)).alias("rows"),
            F.count(label).alias("labels"),
            F.sum(F.when(right, 1).otherwise(0)).alias("right"),
        ).first()
        column = self.getOrDefault("label_col")
        if not row["rows"]:
            raise ValueError(f"{self.uid}: the DataFrame must have at least one row. Received: none")
        if row["labels"] < row["rows"]:
            missing = row["rows"] - row["labels"]
            raise ValueError(
                f"{self.uid}: column {column!r} must hold a label in every row. Received: {missing} null"
            )
        return row["right"] / row["rows"]

    def _class(self, dataset: DataFrame, argument: str) -> Column:
        """The class number of each row of a column, as a double; null for null or NaN."""
        name = self.getOrDefault(argument)
        dtype = self._type_of(dataset, name, argument)
        value = sql.column(name)
        if sql.is_scalar(dtype):
            number = value.cast("double")
            return F.when(~F.isnan(number), number)
        if not (sql.is_vector(dtype) or sql.is_array(dtype)):
            raise self._wrong_type(name, "class numbers, or vectors or arrays of numbers", dtype)
        values = sql.flat(value, dtype)
        single = F.when(~F.isnan(values[0]), (values[0] > 0.5).cast("double"))
        several = sql.argmax(values, default=-1)
        return F.when(F.size(values) == 1, single).otherwise(F.when(several >= 0, several))
