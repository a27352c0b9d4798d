"""Whole trainings from a Spark DataFrame, on a real local Spark."""

import keras
import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.linalg import Vectors
from pyspark.ml.tuning import CrossValidator, CrossValidatorModel, ParamGridBuilder
from pyspark.sql import functions as F

import hvdkeras
from hvdkeras.launch import spark as ranks_on_spark
from hvdkeras.transformers import LabelIndexTransformer

import digits

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def dataframe(spark):
    learn, _ = digits.data()
    rows = [
        (
            features.tolist(),
            Vectors.dense(features),
            Vectors.sparse(64, list(enumerate(features))),
            int(label),
        )
        for features, label in zip(learn["features"], learn["label"], strict=True)
    ]
    # 1,437 rows in five partitions, one of them empty.
    frame = spark.createDataFrame(rows, ["features", "dense", "sparse", "label"]).repartition(4)
    return frame.union(frame.limit(0)).cache()


@keras.saving.register_keras_serializable("tests")
class Halved(keras.layers.Layer):
    def call(self, inputs):
        return inputs / 2


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["SingleTrainer", "EASGD", "AsynchronousEASGD", "DOWNPOUR"])
def test_algorithms_learn_the_digits(dataframe, algorithm):
    _, held_out = digits.data()
    trainer = digits.trainer(algorithm, 2)
    assert digits.accuracy(trainer.train(dataframe), held_out) >= 0.95
    assert set(trainer.history.rows_seen()) == {1437}
    assert trainer.get_training_time() > 0


@pytest.mark.slow
def test_the_other_asynchronous_algorithms_learn_the_digits(dataframe, spark):
    names = ["EAMSGD", "AdaptiveDOWNPOUR", "DynSGD", "ADAG"]
    results = ranks_on_spark.run(digits.train_all, (names, 2), num_proc=2)
    assert {name: value for name, (value, _) in results[0].items() if value < 0.95} == {}


@pytest.mark.slow
def test_sparse_and_dense_vectors_give_the_same_model(dataframe):
    def train(column):
        inputs = keras.Input((64,))
        keras.utils.set_random_seed(1)
        outputs = keras.layers.Dense(10, "softmax")(keras.layers.BatchNormalization()(Halved()(inputs)))
        trainer = hvdkeras.EASGD(
            keras.Model(inputs, outputs), features_col=column, num_epoch=2, batch_size=32, **digits.FOUND
        )
        return trainer.train(dataframe).get_weights()

    for dense, sparse in zip(train("dense"), train("sparse"), strict=True):
        np.testing.assert_array_equal(dense, sparse)


def test_columns_by_the_names_of_inputs_and_outputs(dataframe):
    b, a = keras.Input((64,), name="b"), keras.Input((1,), name="a")
    one = 1.0
    # A function with a variable of its surroundings: no file holds it, the fitted model has it nevertheless.
    joined = keras.layers.Lambda(lambda numbers: one * numbers)(keras.layers.Concatenate()([a, b]))
    kind = keras.layers.Dense(10, "softmax")(joined)
    trainer = hvdkeras.EASGD(
        keras.Model({"b": b, "a": a}, {"kind": kind}),
        features_col={"a": "bias", "b": "dense"},
        label_col={"kind": "label"},
        sample_weight_col={"kind": "weight"},
        loss={"kind": "sparse_categorical_crossentropy"},
        batch_size=64,
        verbose=0,
    )
    # Rows of weight 0 teach nothing: there are no others of the digits from 5 on.
    weight = F.when(F.col("label") < 5, 1.0).otherwise(0.0)
    weighted = dataframe.withColumn("bias", F.lit(1.0)).withColumn("weight", weight)
    trainer.num_epoch, trainer.learning_rate = 5, 0.1
    fitted = trainer.fit(weighted)
    assert fitted.keras_model.count_params() == 660
    rows = fitted.transform(weighted).select("label", "prediction").collect()
    predicted = np.array([np.argmax(row.prediction) for row in rows])
    labels = np.array([row.label for row in rows])
    assert np.mean(predicted == labels) < 0.55
    assert np.mean((predicted == labels)[labels < 5]) > 0.7


def test_a_pipeline_tunes_saves_and_loads(dataframe, tmp_path, monkeypatch):
    launched, start = [], ranks_on_spark.start
    monkeypatch.setattr(
        ranks_on_spark, "start", lambda *args, **more: launched.append(1) or start(*args, **more)
    )
    trainer = digits.trainer("EASGD", 2)
    trainer.setParams(
        num_epoch=1, output_col="scores", prediction_col="prediction", probability_col="probability"
    )
    scored = LabelIndexTransformer(10, input_col="scores", output_col="class")
    validator = CrossValidator(
        estimator=trainer,
        estimatorParamMaps=ParamGridBuilder().addGrid(trainer.rho_param, [0.1, 2.0]).build(),
        evaluator=MulticlassClassificationEvaluator(metricName="accuracy"),
        numFolds=2,
        seed=0,
        parallelism=2,
    )
    validator.write().save(str(tmp_path / "validator"))
    tuned = CrossValidator.load(str(tmp_path / "validator")).fit(dataframe)
    assert len(launched) == 3  # one for each fold, and one for the model of all rows
    tuned.write().save(str(tmp_path / "tuned"))
    fitted = CrossValidatorModel.load(str(tmp_path / "tuned"))
    # In one epoch the weaker force hardly moves the center.
    loose, tight = fitted.avgMetrics
    assert tight > max(loose, 0.3)
    evaluated = MulticlassClassificationEvaluator(metricName="logLoss").evaluate(fitted.transform(dataframe))
    assert 0 < evaluated < np.log(10)
    PipelineModel([fitted.bestModel, scored]).write().overwrite().save(str(tmp_path / "pipeline"))
    loaded = PipelineModel.load(str(tmp_path / "pipeline"))
    wanted = [row.scores for row in fitted.bestModel.transform(dataframe).select("scores").collect()]
    received = [row.scores for row in loaded.transform(dataframe).select("scores").collect()]
    np.testing.assert_allclose(received, wanted, atol=1e-6)
    assert trainer.rho == 1.25  # tuning works on copies


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda df: df.withColumnRenamed("features", "feature"), "'features'.*Did you mean 'feature'"),
        (lambda df: df.withColumn("features", F.lit("abc")), "'features'.*string"),
        (lambda df: df.withColumn("features", F.slice("features", 1, 63)), "'features'.*64.*63"),
        (lambda df: df.withColumn("label", F.col("label") + 1), "'label'.*0 to 9"),
        (lambda df: df.withColumn("label", F.expr("if(label = 3, null, label)")), "'label'.*null"),
        (lambda df: df.withColumn("label", F.expr("if(label = 3, double('nan'), label)")), "'label'.*NaN"),
        (lambda df: df.limit(0), "rows"),
        (lambda df: df.limit(1), "num_workers must be at most the number of rows, 1. Received: 2"),
    ],
)
def test_bad_data_is_named_before_anything_is_launched(dataframe, change, message):
    with pytest.raises(ValueError, match=message):
        digits.trainer("EASGD", 2).train(change(dataframe))


def test_too_few_slots_are_named(dataframe):
    trainer = digits.trainer("AsynchronousEASGD", 3)
    with pytest.raises(ValueError, match="slots"):
        trainer.train(dataframe)


def test_a_store_that_cannot_be_written_is_named(dataframe, tmp_path):
    (tmp_path / "file").write_text("")
    trainer = digits.trainer("EASGD", 2)
    trainer.store = str(tmp_path / "file" / "store")
    with pytest.raises(ValueError, match="store"):
        trainer.train(dataframe)


@pytest.mark.slow
def test_a_layer_that_raises_on_a_rank_is_one_error(dataframe):
    class Raises(keras.layers.Layer):
        def call(self, inputs):
            import os

            import tensorflow as tf

            def fail(values):
                if "OMPI_COMM_WORLD_RANK" not in os.environ:
                    return values  # the driver tries a step first
                raise RuntimeError("on purpose")

            return tf.ensure_shape(tf.numpy_function(fail, [inputs], tf.float32), (None, 64))

        def compute_output_shape(self, shape):
            return shape

    layers = [keras.Input((64,)), Raises(), keras.layers.Dense(10, "softmax")]
    trainer = hvdkeras.EASGD(keras.Sequential(layers), custom_objects={"Raises": Raises}, **digits.FOUND)
    with pytest.raises(hvdkeras.TrainingError, match="on purpose") as caught:
        trainer.train(dataframe)
    assert caught.value.rank in (0, 1)
    assert "on purpose" in caught.value.remote_traceback
