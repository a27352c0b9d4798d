"""Trainers, predictors and evaluators on a Spark Connect session, which has neither a JVM nor a SparkContext.

`make test-connect` runs this file, in an environment of its own (launch/with_connect.sh): a process is either
a client of Spark Connect or has a Spark of its own.
"""

import os

import numpy as np
import pytest

import hvdkeras
from hvdkeras.data.columns import DataError
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


ROWS = np.random.default_rng(5).normal(size=(240, 4)).astype("float32")
ARRAYS = {"features": ROWS, "label": ROWS[:, :3].argmax(axis=1), "held_out": np.arange(len(ROWS)) % 5 == 0}


@pytest.fixture(scope="module")
def frame(session):
    """The rows of ARRAYS in their order, with vectors as features."""
    from pyspark.ml.linalg import Vectors

    rows = [
        (i, Vectors.dense(row), int(label), bool(held_out))
        for i, (row, label, held_out) in enumerate(zip(*ARRAYS.values(), strict=True))
    ]
    return session.createDataFrame(rows, ["id", "features", "label", "held_out"])


def trainer(**arguments):
    import keras

    keras.utils.set_random_seed(3)
    layers = [keras.Input((4,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3, "softmax")]
    found = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], "num_workers": 2}
    found |= {"batch_size": 8, "learning_rate": 0.2, "communication_window": 4, "rho": 1.0, "verbose": 0}
    return hvdkeras.EASGD(keras.Sequential(layers), **{**found, **arguments})


def assert_same_weights(model, other):
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_training_without_a_store_is_refused_at_once(session, frame):
    for call in (trainer().fit, trainer().train, lambda data: trainer().train(ARRAYS, validation_data=data)):
        with pytest.raises(ValueError, match="store must be .* Spark Connect.* Received: store=None"):
            call(frame)
    with pytest.raises(ValueError, match="spark must be a classic session"):
        hvdkeras.Workers(2, spark=session)


def test_fit_trains_here_on_what_the_executors_write(frame, tmp_path, caplog):
    store = tmp_path / "store"
    used = trainer(num_epoch=8, store=str(store), output_col="scores", prediction_col="prediction")
    fitted = used.fit(frame)
    assert f"Spark Connect has no SparkContext; the executors write the rows to {store}" in caplog.text
    assert os.listdir(store) == []
    assert used.history.rows_seen() == [len(ROWS)] * 8
    assert {rank.host for rank in used.history.ranks} == {os.uname().nodename}
    assert AccuracyEvaluator().evaluate(fitted.transform(frame)) > 0.9
    wanted = fitted.keras_model.predict(ROWS, verbose=0)
    np.testing.assert_allclose(collected(fitted.transform(frame)), wanted, rtol=0, atol=1e-6)
    assert_same_weights(fitted.keras_model, trainer(num_epoch=8).train(ARRAYS))


def test_validation_checkpoints_and_candidates(frame, tmp_path):
    store = tmp_path / "store"
    marked = {"validation_indicator_col": "held_out"}
    with hvdkeras.Workers(2, verbose=0):
        whole = trainer(num_epoch=4, **marked)
        wanted = whole.train(ARRAYS)
        saved = {"store": str(store), "checkpoint": str(tmp_path / "run"), **marked}
        trainer(num_epoch=2, **saved).fit(frame)
        resumed = trainer(num_epoch=4, resume=True, **saved)
        assert_same_weights(resumed.fit(frame).keras_model, wanted)
        assert [each.metrics for each in resumed.history.center] == [
            each.metrics for each in whole.history.center
        ]

        used = trainer(num_epoch=2, store=str(store))
        received = used.train(frame, shuffle=True, validation_data=frame.where("held_out"))
        other = trainer(num_epoch=2)
        held_out = {name: values[ARRAYS["held_out"]] for name, values in ARRAYS.items()}
        assert_same_weights(received, other.train(ARRAYS, shuffle=True, validation_data=held_out))
        assert used.history.center[-1].metrics == other.history.center[-1].metrics

        with pytest.raises(DataError, match="column 'label' must hold .* 240 rows"):
            used.train(frame.withColumn("label", frame["label"] * 0.5 + 0.25))
        grid = [{used.rho_param: 1.0}, {used.rho_param: 2.0}]
        fitted = dict(used.fitMultiple(frame, grid))
        assert_same_weights(fitted[1].keras_model, trainer(num_epoch=2, rho=2.0).train(ARRAYS))
    assert os.listdir(store) == []


def test_a_saved_pipeline_is_tuned(frame, tmp_path):
    from pyspark.ml import Pipeline, PipelineModel
    from pyspark.ml.tuning import CrossValidator, ParamGridBuilder

    used = trainer(
        num_epoch=3, store=str(tmp_path / "store"), output_col="scores", prediction_col="prediction"
    )
    used.save(str(tmp_path / "trainer"))
    used = hvdkeras.EASGD.load(str(tmp_path / "trainer"))
    grid = ParamGridBuilder().addGrid(used.num_epoch_param, [1, 6]).build()
    tuned = CrossValidator(estimator=used, estimatorParamMaps=grid, evaluator=AccuracyEvaluator(), numFolds=2)
    with hvdkeras.Workers(2, verbose=0):
        fitted = Pipeline(stages=[tuned]).fit(frame)
    few, many = fitted.stages[0].avgMetrics
    assert few < many
    fitted.stages[0].bestModel.save(str(tmp_path / "model"))
    best = PipelineModel(stages=[ModelPredictor.load(str(tmp_path / "model"))])
    assert AccuracyEvaluator().evaluate(best.transform(frame)) > 0.8
    assert os.listdir(tmp_path / "store") == []
