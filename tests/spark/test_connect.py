"""Predictors and evaluators on a Spark Connect session, which has neither a JVM nor a SparkContext.

`make test-connect` runs this file, in an environment of its own (launch/with_connect.sh): a process is either
a client of Spark Connect or has a Spark of its own.
"""

import os

import numpy as np
import pytest

from hvdkeras.evaluators import AccuracyEvaluator
from hvdkeras.ml import files
from hvdkeras.predictors import ModelPredictor
from hvdkeras.transformers import LabelIndexTransformer, StandardTransformer

pytestmark = [
    pytest.mark.connect,
    pytest.mark.skipif(
        not os.environ.get("HVDKERAS_CONNECT"), reason="needs Spark Connect: `make test-connect` runs it"
    ),
]

VALUES = np.random.default_rng(7).normal(size=(9, 2))


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    from connect_server import connect_server
    from pyspark.sql import SparkSession

    with connect_server(tmp_path_factory.mktemp("server") / "log") as url:
        session = SparkSession.builder.remote(url).getOrCreate()
        yield session
        session.stop()


@pytest.fixture(scope="module")
def data(session):
    rows = [(i, float(i % 3), row.tolist()) for i, row in enumerate(VALUES)]
    return session.createDataFrame(rows, "id int, label double, features array<double>")


@pytest.fixture(scope="module")
def model():
    import keras

    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])


@pytest.fixture(scope="module")
def predictor(model):
    return ModelPredictor(
        model, output_col="scores", prediction_col="prediction", probability_col="probability"
    )


def collected(frame, column="scores"):
    rows = [row[column] for row in frame.select("id", column).orderBy("id").collect()]
    return np.array([row.toArray() if hasattr(row, "toArray") else row for row in rows])


def test_transform_equals_model_predict(session, data, model, predictor):
    wanted = model.predict(VALUES, verbose=0)
    scored = predictor.transform(data)
    np.testing.assert_allclose(collected(scored), wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(collected(scored, "probability"), wanted, rtol=0, atol=1e-6)
    standard = StandardTransformer("features", "").fit(data).transform(data)
    deviations = (VALUES - VALUES.mean(axis=0)) / VALUES.std(axis=0)
    np.testing.assert_allclose(collected(standard, "features"), deviations, atol=1e-9)
    predictor.udf(session, "score")
    data.createOrReplaceTempView("rows")
    in_sql = session.sql("SELECT id, score(features) AS scores FROM rows")
    np.testing.assert_allclose(collected(in_sql), wanted, rtol=0, atol=1e-6)


def test_saved_and_loaded(session, data, predictor, tmp_path):
    path = str(tmp_path / "predictor")
    predictor.save(path)
    with pytest.raises(Exception, match="PATH_ALREADY_EXISTS"):
        predictor.save(path)
    predictor.write().overwrite().save(path)
    loaded = ModelPredictor.load(path)
    assert loaded.extractParamMap() == predictor.extractParamMap()
    np.testing.assert_array_equal(collected(loaded.transform(data)), collected(predictor.transform(data)))
    with pytest.raises(
        FileNotFoundError, match="ModelPredictor: there is no saved stage. Received: .*/nothing"
    ):
        ModelPredictor.load(str(tmp_path / "nothing"))


def test_a_file_that_a_classic_session_wrote_is_read_in_chunks(session, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 1000)
    content = np.random.default_rng(1).bytes(12_345)
    (tmp_path / "model.keras").write_bytes(content)
    assert files.read_bytes(session, str(tmp_path / "model.keras")) == content
    files.write_bytes(session, str(tmp_path / "other.keras"), content, overwrite=False)
    assert files.read_bytes(session, str(tmp_path / "other.keras")) == content


def test_a_pipeline_and_evaluators(data, predictor, tmp_path):
    from pyspark.ml import Pipeline, PipelineModel

    pipeline = Pipeline(stages=[predictor, LabelIndexTransformer(3, "scores", "index")]).fit(data)
    pipeline.save(str(tmp_path / "pipeline"))
    scored = PipelineModel.load(str(tmp_path / "pipeline")).transform(data)
    np.testing.assert_array_equal(collected(scored, "index"), collected(scored).argmax(axis=1))
    AccuracyEvaluator(prediction_col="scores").save(str(tmp_path / "evaluator"))
    evaluator = AccuracyEvaluator.load(str(tmp_path / "evaluator"))
    accuracy = (collected(scored).argmax(axis=1) == np.arange(len(VALUES)) % 3).mean()
    assert evaluator.evaluate(scored) == pytest.approx(accuracy)
