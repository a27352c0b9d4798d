"""What `fit` takes beside the features and labels, and what its fitted model adds, on a real local Spark."""

import decimal

import keras
import numpy as np
import pytest
from pyspark.ml.evaluation import BinaryClassificationEvaluator, MulticlassClassificationEvaluator

import hvdkeras
from hvdkeras import ModelPredictor
from hvdkeras.data.columns import Column, DataError
from hvdkeras.data.rows import read_column
from hvdkeras.data.writing import write_dataframe

pytestmark = pytest.mark.spark

ROWS = 80


def two_columns() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, 2)).astype("float32")


@pytest.fixture(scope="module")
def dataframe(spark):
    rows = [(a, b, int(a > b), number % 4 == 1) for number, (a, b) in enumerate(two_columns().tolist())]
    return spark.createDataFrame(rows, "a float, b double, label int, held boolean").repartition(3).cache()


def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def test_fit_takes_what_train_takes_and_its_model_what_evaluators_need(dataframe, tmp_path):
    trainer = hvdkeras.SynchronousSGD(
        model(),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)],
        features_col=["a", "b"],
        output_col="scores",
        prediction_col="prediction",
        probability_col="probability",
        raw_prediction_col="rawPrediction",
        validation_indicator_col="held",
        shuffle=True,
        checkpoint=tmp_path / "checkpoint",
        learning_rate=1.0,
        batch_size=10,
        num_epoch=5,
        verbose=0,
    )
    trainer.write().save(f"{tmp_path}/trainer")
    trainer = hvdkeras.SynchronousSGD.load(f"{tmp_path}/trainer")
    fitted = trainer.fit(dataframe)
    assert trainer.history.rows_seen() == [60] * 5
    assert len(trainer.history.center) == 5
    fitted.write().save(f"{tmp_path}/fitted")
    for predictor in (fitted, ModelPredictor.load(f"{tmp_path}/fitted")):
        scored = predictor.transform(dataframe).cache()
        accuracy = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(scored)
        assert accuracy > 0.9
        assert BinaryClassificationEvaluator().evaluate(scored) > 0.97
        rows = scored.select("a", "b", "held", "label", "scores", "prediction", "probability").collect()
        scores = fitted.keras_model.predict(np.array([(row.a, row.b) for row in rows]), verbose=0)
        np.testing.assert_allclose([row.scores for row in rows], scores, atol=1e-5)
        assert [row.prediction for row in rows] == (scores[:, 0] > 0).astype(float).tolist()
        np.testing.assert_allclose(
            [row.probability[1] for row in rows], 1 / (1 + np.exp(-scores[:, 0])), 1e-4
        )
    held_out = [row for row in rows if row.held]
    right = np.mean([row.prediction == row.label for row in held_out])
    assert trainer.history.center[-1].metrics["val_binary_accuracy"] == pytest.approx(right)
    # Where the folder has a checkpoint, the training resumes; a pandas DataFrame trains on this machine.
    trainer.setParams(resume=True, num_epoch=6)
    trainer.fit(dataframe.toPandas())
    assert trainer.history.rows_seen() == [60] * 6


KINDS = "whole int, byte tinyint, yes boolean, exact decimal(6,2), real double, text string, held boolean"


@pytest.fixture(scope="module")
def kinds(spark):
    rows = [
        (i, i % 5, i % 2 == 0, decimal.Decimal(i) / 4, float("nan") if i == 2 else i / 8, "text", i > 4)
        for i in range(9)
    ]
    return spark.createDataFrame(rows, KINDS).repartition(2)


def stacked(names, dtype="float32", **more) -> Column:
    return Column(", ".join(names), (len(names),), dtype, stacked=tuple(names), **more)


def read(frame, *columns):
    shards = write_dataframe(frame, columns)
    try:
        return sorted(map(tuple, read_column(shards, columns[0]).tolist()))
    finally:
        shards.remove()


def test_columns_of_many_types_are_stacked(kinds):
    wanted = [(float(i), i % 5, i % 2 == 0, i / 4) for i in range(9)]
    assert read(kinds, stacked(["whole", "byte", "yes", "exact"])) == wanted
    assert read(kinds, stacked(["whole", "yes"], "int64")) == [(i, i % 2 == 0) for i in range(9)]
    missing = kinds.selectExpr("real", "if(whole = 3, null, whole) whole")
    found = dict(read(missing, stacked(["real", "whole"], nan=True)))
    assert sum(map(np.isnan, found)) == sum(map(np.isnan, found.values())) == 1
    for names, dtype, message in [
        (["real", "byte"], "float32", "column 'real, byte' must hold 2 finite numbers.*1 row with NaN"),
        (["whole", "exact"], "int32", "'whole, exact' must hold 2 whole numbers.*6 rows with fractions"),
        (["text", "byte"], "float32", "'text' must hold one number .* stacks 2 columns.* Received: string"),
    ]:
        with pytest.raises(DataError, match=message):
            read(kinds, stacked(names, dtype))
    with pytest.raises(DataError, match="'whole, byte' must hold 2 finite numbers.*1 row with null values"):
        read(kinds.selectExpr("if(whole = 3, null, whole) whole", "byte"), stacked(["whole", "byte"]))


def test_a_predictor_stacks_columns(spark, kinds):
    dense = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    predictor = ModelPredictor(dense, ["whole", "yes", "exact"], handle_invalid="keep")
    frame = kinds.selectExpr("if(whole = 3, null, whole) whole", "yes", "exact", "text")
    rows = predictor.transform(frame).collect()
    values = np.array([(row.whole or 0, row.yes, float(row.exact)) for row in rows], "float32")
    expected = dense.predict(values, verbose=0)
    for row, wanted in zip(rows, expected, strict=True):
        if row.whole is None:
            assert row.prediction is None
        else:
            np.testing.assert_allclose(row.prediction, wanted, rtol=1e-5)
    with pytest.raises(Exception, match="column 'whole, yes, exact' must hold finite numbers"):
        predictor.copy({predictor.handle_invalid: "error"}).transform(frame).collect()
    predictor.udf(spark, "score")
    frame.where("whole is not null").createOrReplaceTempView("stacked")
    made = spark.sql("SELECT whole, score(array(whole, int(yes), exact)) AS score FROM stacked").collect()
    by_number = {row.whole: row.prediction for row in rows}
    for row in made:
        np.testing.assert_allclose(row.score, by_number[row.whole], rtol=1e-6)
    with pytest.raises(ValueError, match="'text' must hold numbers, of which 3 are the model's input"):
        ModelPredictor(dense, ["whole", "yes", "text"]).transform(kinds)
    with pytest.raises(ValueError, match="only input, or 3 columns of one number: a row of .* has shape"):
        ModelPredictor(dense, ["whole", "yes"])
