"""The columns that Spark's classifiers add, as Spark SQL expressions over a model's scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.ml.param import Params
from pyspark.sql import Column
from pyspark.sql import functions as F

from hvdkeras.ml import expressions as sql
from hvdkeras.ml.stage import a_name, or_none, param
from hvdkeras.models.saved import Tensor
from hvdkeras.naming import listed, shown


@dataclass(frozen=True)
class ClassColumns:
    """What a classifier predicts for a row: doubles and arrays of doubles, null where the scores are null.

    Attributes:
        prediction: number of the most probable class; null where all scores are NaN.
        probability: the classes' probabilities.
        raw_prediction: the model's scores, one for each class.
    """

    prediction: Column
    probability: Column
    raw_prediction: Column

    @classmethod
    def of(cls, scores: Column, classes: int, from_logits: bool) -> ClassColumns:
        """Returns the columns of an array of `classes` scores, or of a single score for two classes.

        Args:
            scores: array of numbers.
            classes: how many numbers it holds.
            from_logits: whether the scores are logits instead of probabilities.
        """
        values = scores.cast("array<double>")
        if classes == 1:
            return cls._of_two(scores.isNotNull(), values[0], from_logits)
        best = sql.argmax(values, default=-1)
        return cls(F.when(best >= 0, best), sql.softmax(values) if from_logits else values, values)

    @classmethod
    def _of_two(cls, known: Column, score: Column, from_logits: bool) -> ClassColumns:
        one = F.lit(1.0)
        probability = one / (one + F.exp(-score)) if from_logits else score
        both = F.when(known, F.array(one - probability, probability))
        raw = F.when(known, F.array(-score, score)) if from_logits else both
        above = (score > (0.0 if from_logits else 0.5)).cast("double")
        return cls(F.when(~F.isnan(score), above), both, raw)


class HasClassColumns(Params):
    """The params of the class columns, and the columns of those that are asked for."""

    prediction_col = param("prediction_col", "column of the most probable class", or_none(a_name))
    probability_col = param("probability_col", "column of the classes' probabilities", or_none(a_name))
    raw_prediction_col = param("raw_prediction_col", "column of the classes' scores", or_none(a_name))
    from_logits = param("from_logits", "whether the first output holds logits", bool)

    def _class_names(self, output_col: Sequence[str], scores: Tensor) -> dict[str, str]:
        """Returns the names of the columns that are asked for, by argument.

        Args:
            output_col: names of the other columns that the stage adds.
            scores: the model's output that holds the classes' scores.

        Raises:
            ValueError: the output has more than one axis, or two columns have one name.
        """
        arguments = ("prediction_col", "probability_col", "raw_prediction_col")
        found = {name: self.getOrDefault(name) for name in arguments if self.getOrDefault(name) is not None}
        if found and len(scores.shape) > 1:
            raise ValueError(
                f"{self.uid}: {listed(found)} must be left out unless the model's first output has one "
                f"axis, the classes. Received: output {scores.name!r} of shape {scores.shape}"
            )
        names = [*output_col, *found.values()]
        if len({name.lower() for name in names}) < len(names):
            raise ValueError(
                f"{self.uid}: {', '.join(['output_col', *found])} must be names of different columns, which "
                f"case alone does not make different. Received: {shown(names)}"
            )
        return found

    def _class_columns(self, scores: Column, output: Tensor) -> dict[str, Column]:
        """Returns the columns that are asked for by name; `scores` is the array of the output's numbers."""
        made = ClassColumns.of(scores, output.size, self.getOrDefault("from_logits"))
        columns = {
            self.getOrDefault("prediction_col"): made.prediction,
            self.getOrDefault("probability_col"): sql.vector(made.probability),
            self.getOrDefault("raw_prediction_col"): sql.vector(made.raw_prediction),
        }
        return {name: column for name, column in columns.items() if name is not None}
