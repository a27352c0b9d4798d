"""The accuracy of class numbers, probabilities and one-hot labels, in any pair of them."""

import numpy as np
import pytest
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.linalg import Vectors

from hvdkeras.evaluators import AccuracyEvaluator

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def data(spark):
    generator = np.random.default_rng(5)
    rows = [
        {
            "label": float(label),
            "whole": int(label),
            "one_hot": Vectors.sparse(3, {int(label): 1.0}),
            "vector": Vectors.dense(scores),
            "array": scores.tolist(),
            "prediction": float(scores.argmax()),
        }
        for label, scores in zip(generator.integers(0, 3, 40), generator.random((40, 3)), strict=True)
    ]
    return spark.createDataFrame(rows).cache()


@pytest.mark.parametrize(("label", "prediction"), [
    ("label", "prediction"), ("whole", "array"), ("one_hot", "vector"), ("one_hot", "prediction"),
])  # fmt: skip
def test_equals_sparks_own_accuracy(data, label, prediction):
    own = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(data)
    assert 0 < own < 1
    assert AccuracyEvaluator(label, prediction).evaluate(data) == pytest.approx(own)


def test_one_value_is_a_probability(spark):
    frame = spark.createDataFrame(
        [(1, [0.9]), (0, [0.4]), (1, [0.5]), (0, [0.8])], "label int, prediction array<float>"
    )
    assert AccuracyEvaluator().evaluate(frame) == 0.5
    assert AccuracyEvaluator().isLargerBetter()


def test_predictions_without_an_answer_are_wrong(spark):
    nan = float("nan")
    frame = spark.createDataFrame(
        [(1.0, 1.0, [0.0, 1.0]), (1.0, None, None), (0.0, nan, [nan, nan])],
        "label double, n double, prediction array<double>",
    )
    assert AccuracyEvaluator().evaluate(frame) == pytest.approx(1 / 3)
    assert AccuracyEvaluator(prediction_col="n").evaluate(frame) == pytest.approx(1 / 3)


def test_bad_input(spark):
    frame = spark.createDataFrame(
        [(None, 1.0, "a"), (1.0, 1.0, "b")], "label double, prediction double, name string"
    )
    for evaluator, message in [
        (
            AccuracyEvaluator(),
            r"AccuracyEvaluator_\w+: column 'label' must hold a label in every row. Received: 1 null",
        ),
        (AccuracyEvaluator("lable"), "label_col must name a column.*Did you mean 'label'"),
        (AccuracyEvaluator(prediction_col="name"), "'name' must hold class numbers.*Received: string"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluator.evaluate(frame)
    with pytest.raises(ValueError, match="the DataFrame must have at least one row. Received: none"):
        AccuracyEvaluator().evaluate(frame.where("false"))


def test_saved_and_loaded(spark, tmp_path):
    AccuracyEvaluator("a", "b").save(str(tmp_path / "evaluator"))
    assert AccuracyEvaluator.load(str(tmp_path / "evaluator")).getOrDefault("label_col") == "a"
