"""ModelPredictor gives what model.predict gives, whatever the columns, the partitions and the process."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions

from hvdkeras.ml import scoring
from hvdkeras.predictors import ModelPredictor
from hvdkeras.transformers import (
    BinaryLabelTransformer,
    DenseTransformer,
    LabelIndexTransformer,
    MinMaxTransformer,
    OneHotTransformer,
    ReshapeTransformer,
    StandardTransformer,
)

pytestmark = pytest.mark.spark

ROWS, SIZE = 37, 6
BATCH_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"


@pytest.fixture(scope="module")
def keras():
    # Not at the top: collecting the tests needs no TensorFlow.
    import keras

    keras.utils.set_random_seed(11)
    return keras


@pytest.fixture(scope="module")
def model(keras):
    layers = keras.layers
    return keras.Sequential([keras.Input((SIZE,)), layers.Dense(5, "relu"), layers.Dense(3, "softmax")])


@pytest.fixture(scope="module")
def values():
    made = np.random.default_rng(3).normal(size=(ROWS, SIZE))
    made[made < -0.5] = 0.0
    return made


@pytest.fixture(scope="module")
def data(spark, values):
    rows = []
    for i, row in enumerate(values):
        where = np.flatnonzero(row)
        forms = (Vectors.dense(row), Vectors.sparse(SIZE, where, row[where]), row.tolist())
        nested = row.reshape(2, 3, 1).tolist()
        rows.append((i, *forms, nested, float(row[0]), i % 4, i % 2 == 0))
    columns = ["id", "dense", "sparse", "array", "nested", "number", "whole", "flag"]
    return spark.createDataFrame(rows, columns).repartition(3).cache()


def collected(frame, column="prediction"):
    rows = [row[column] for row in frame.select("id", column).orderBy("id").collect()]
    return np.array([row.toArray() if hasattr(row, "toArray") else row for row in rows])


@pytest.mark.parametrize("form", ["dense", "sparse", "array", "nested"])
@pytest.mark.parametrize("output_type", ["array", "vector"])
def test_equals_model_predict(data, model, values, form, output_type):
    frame = ModelPredictor(model, form, output_type=output_type).transform(data)
    np.testing.assert_allclose(collected(frame), model.predict(values, verbose=0), rtol=0, atol=1e-6)
    assert frame.columns == [*data.columns, "prediction"]
    wanted = {"array": "array<float>", "vector": "vector"}[output_type]
    assert frame.schema["prediction"].dataType.simpleString() == wanted


@pytest.mark.parametrize("form", ["dense", "sparse", "array"])
def test_doubles_are_not_rounded_for_a_model_of_doubles(keras, data, values, form):
    x = keras.Input((SIZE,), dtype="float64")
    model = keras.Model(x, keras.layers.Identity(dtype="float64")(x))
    np.testing.assert_array_equal(collected(ModelPredictor(model, form).transform(data)), values)


def test_every_row_of_ragged_and_empty_partitions(spark, data, model, values):
    predictor = ModelPredictor(model, "array", batch_size=2)
    spark.conf.set(BATCH_ROWS, 5)
    try:
        ragged = data.repartition(6, functions.when(data.id < 30, 0).otherwise(data.id))
        sizes = ragged.rdd.glom().map(len).collect()
        assert 0 in sizes
        assert max(sizes) >= 30
        frame = predictor.predict(ragged).select("id", "prediction")
        np.testing.assert_allclose(collected(frame), model.predict(values, verbose=0), rtol=0, atol=1e-6)
        nothing = predictor.transform(data.where("false"))
        assert nothing.collect() == []
    finally:
        spark.conf.unset(BATCH_ROWS)


def test_several_inputs_and_outputs_in_one_pass(keras, data, values):
    layers = keras.layers
    image, number, word = keras.Input((2, 3, 1)), keras.Input((1,)), keras.Input((), dtype="int32")
    joined = layers.Concatenate()([layers.Flatten()(image), number, layers.Embedding(4, 2)(word)])
    out = {
        "classes": layers.Dense(3, "softmax")(joined),
        "score": layers.Dense(1, "sigmoid")(joined),
        "grid": layers.Reshape((2, 3))(layers.Dense(6)(joined)),
    }
    model = keras.Model([image, number, word], list(out.values()))
    names = list(out)
    predictor = ModelPredictor(
        model, ["dense", "number", "whole"], names, output_type=["vector", "scalar", "array"], batch_size=7
    )
    frame = predictor.transform(data)
    whole = np.arange(ROWS) % 4
    wanted = model.predict([values.reshape(-1, 2, 3, 1), values[:, :1], whole], verbose=0)
    rows = frame.orderBy("id").collect()
    for name, output in zip(names, wanted, strict=True):
        got = np.array([np.asarray(row[name]) for row in rows])
        np.testing.assert_allclose(got, output[:, 0] if name == "score" else output, rtol=0, atol=1e-6)
    types = [frame.schema[name].dataType.simpleString() for name in names]
    assert types == ["vector", "float", "array<array<float>>"]
    # Neither several outputs nor what reads them later may compute the model again.
    indexed = LabelIndexTransformer(3, "classes", "index").transform(frame)
    plan = indexed._jdf.queryExecution().executedPlan().toString()
    assert plan.count("ArrowEvalPython") == 1


def test_an_ensembles_mean_and_disagreement(keras, data, values):
    layers = keras.layers
    members = [keras.Sequential([keras.Input((SIZE,)), layers.Dense(2)]) for _ in range(3)]
    single = np.stack([member.predict(values, verbose=0) for member in members])
    frame = ModelPredictor(members, "dense", disagreement_col="disagreement").transform(data)
    np.testing.assert_allclose(collected(frame), single.mean(axis=0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(collected(frame, "disagreement"), single.std(axis=0), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="disagreement_col must be left out unless"):
        ModelPredictor(members[0], "dense", disagreement_col="disagreement")


def test_dicts_of_inputs_and_outputs(keras, data, values):
    layers = keras.layers
    # Keras orders both by key: number before vector, sum before wide.
    vector, number = keras.Input((SIZE,)), keras.Input((1,))
    joined = layers.Concatenate()([vector, number])
    outputs = {"wide": layers.Dense(2)(joined), "sum": layers.Dense(1)(joined)}
    model = keras.Model({"vector": vector, "number": number}, outputs)
    frame = ModelPredictor(model, ["number", "array"], ["sum", "wide"], batch_size=8).transform(data)
    wanted = model.predict({"vector": values, "number": values[:, :1]}, verbose=0)
    for name, output in wanted.items():
        np.testing.assert_allclose(collected(frame, name), output, rtol=0, atol=1e-6)


def test_scalars_booleans_and_whole_number_outputs(keras, data, values):
    x = keras.Input((1,), dtype="int32")
    model = keras.Model(x, keras.ops.concatenate([x, x + 1], axis=-1))
    frame = ModelPredictor(model, "flag").transform(data)
    assert frame.schema["prediction"].dataType.simpleString() == "array<int>"
    first = (np.arange(ROWS) % 2 == 0).astype(int)
    np.testing.assert_array_equal(collected(frame), np.stack([first, first + 1], axis=1))


@pytest.fixture(scope="module")
def holes(spark, values):
    """A null in row 1, NaN in row 2 and a null number in row 4."""
    rows = [(i, row.tolist()) for i, row in enumerate(values[:6])]
    rows[1] = (1, None)
    rows[2] = (2, [float("nan"), *rows[2][1][1:]])
    rows[4] = (4, [None, *rows[4][1][1:]])
    return spark.createDataFrame(rows, "id int, features array<double>").coalesce(1)


@pytest.mark.parametrize("output_type", ["array", "vector"])
def test_invalid_rows_get_null_when_kept(holes, model, values, output_type):
    predictor = ModelPredictor(model, output_type=output_type, handle_invalid="keep", batch_size=2)
    rows = [row.prediction for row in predictor.transform(holes).orderBy("id").collect()]
    assert [row is None for row in rows] == [False, True, True, False, True, False]
    good = [0, 3, 5]
    got = np.array([np.asarray(rows[i]) for i in good])
    np.testing.assert_allclose(got, model.predict(values[good], verbose=0), rtol=0, atol=1e-6)


def test_null_elements_of_whole_numbers_are_invalid_too(keras, spark):
    model = keras.Sequential([keras.Input((2,), dtype="int32"), keras.layers.Embedding(5, 1)])
    rows = [(0, [1, 2]), (1, [3, None]), (2, None)]
    frame = spark.createDataFrame(rows, "id int, features array<int>").coalesce(1)
    predictor = ModelPredictor(model, handle_invalid="keep")
    got = [row.prediction for row in predictor.transform(frame).orderBy("id").collect()]
    np.testing.assert_allclose(got[0], model.predict(np.array([[1, 2]]), verbose=0)[0], rtol=0, atol=1e-6)
    assert got[1:] == [None, None]


def test_invalid_rows_end_the_job_by_default(holes, model):
    with pytest.raises(
        Exception, match=r"ModelPredictor_\w+: column 'features' must hold neither null nor NaN. Rec"
    ):
        ModelPredictor(model).transform(holes).collect()


def test_wrong_sizes_end_the_job(spark, model):
    frame = spark.createDataFrame([([1.0] * 6,), ([1.0] * 5,)], "features array<double>").coalesce(1)
    with pytest.raises(
        Exception, match=r"column 'features' must hold 6 numbers a row, .*Received: 5 numbers in 1 of 2"
    ):
        ModelPredictor(model).transform(frame).collect()


def test_bad_input_is_refused_on_the_driver(keras, data, model):
    for make, message in [
        (
            lambda: ModelPredictor(model, ["array", "dense"]),
            "features_col must name one column for each of .* 1 inputs",
        ),
        (
            lambda: ModelPredictor(model, output_col=["a", "b"]),
            "output_col must name one column for each .* 1 outputs",
        ),
        (lambda: ModelPredictor(model, output_type="scalar"), "'scalar' must be for an output of one number"),
        (
            lambda: ModelPredictor(model, output_type="list"),
            "output_type must be one of 'array', 'vector', 'scalar'",
        ),
        (
            lambda: ModelPredictor(model, batch_size=0),
            "batch_size must be an integer of at least 1. Received: 0",
        ),
        (
            lambda: ModelPredictor(model, handle_invalid="skip"),
            "handle_invalid must be one of 'error', 'keep'",
        ),
        (
            lambda: ModelPredictor(keras.Sequential([keras.layers.Dense(1)])),
            "must be a built Functional or Sequential",
        ),
        (
            lambda: ModelPredictor(keras.Model(x := keras.Input((None,)), x)),
            "fixed shape beyond the batch. Received",
        ),
        (lambda: ModelPredictor(model).transform(data), "features_col must name a column of the DataFrame"),
        (
            lambda: ModelPredictor(model, "number").transform(data),
            "'number' must hold vectors or arrays of 6 numbers",
        ),
        (
            lambda: ModelPredictor(model, "array", "id").transform(data),
            "output_col must be the name of a new column",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


def test_a_worker_loads_a_model_once(spark, data, model):
    predictor = ModelPredictor(model, "array")
    key = predictor._ship(spark.sparkContext)[0]

    # A UDF, for Spark has other workers for RDDs.
    @functions.pandas_udf("string")
    def kept(ids: pd.Series) -> pd.Series:
        loaded = scoring._models.get(key)
        return pd.Series([loaded and f"{os.getpid()} {id(loaded)}"] * len(ids))

    def loaded():
        rows = spark.range(0, 8, 1, 8).select(kept("id").alias("kept")).collect()
        return {row.kept for row in rows} - {None}

    predictor.transform(data).collect()
    before = loaded()
    assert before
    for _ in range(3):
        predictor.copy({predictor.batch_size: 3}).transform(data).collect()
    after = loaded()
    assert before & after
    pids = [place.split()[0] for place in before | after]
    assert len(pids) == len(set(pids)), (before, after)


def test_custom_objects(keras, data, values):
    @keras.saving.register_keras_serializable("hvdkeras_tests")
    class Doubled(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    class Halved(keras.layers.Layer):
        def call(self, x):
            return x / 2

    registered = keras.Sequential([keras.Input((SIZE,)), Doubled()])
    np.testing.assert_allclose(
        collected(ModelPredictor(registered, "array").transform(data)), 2 * values, rtol=1e-6
    )
    given = ModelPredictor(
        keras.Sequential([keras.Input((SIZE,)), Halved()]), "array", custom_objects={"Halved": Halved}
    )
    np.testing.assert_allclose(collected(given.transform(data)), values / 2, rtol=1e-6)
    unknown = ModelPredictor(keras.Sequential([keras.Input((SIZE,)), Halved()]), "array")
    with pytest.raises(
        Exception, match=r"ModelPredictor_\w+: the Keras model can't be loaded on the executor"
    ):
        unknown.transform(data).collect()


def test_lambdas_are_not_loaded(keras, data):
    model = keras.Sequential([keras.Input((SIZE,)), keras.layers.Lambda(lambda x: x)])
    with pytest.raises(Exception, match="Lambda layers are not loaded at all"):
        ModelPredictor(model, "array").transform(data).collect()


def test_damaged_files_are_refused(spark, model, tmp_path):
    path = tmp_path / "predictor"
    ModelPredictor(model).save(str(path))
    file = path / "model.keras"
    content = file.read_bytes()
    (path / ".model.keras.crc").unlink()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 255
    for damaged in (b"", content[:100], content[: len(content) // 2], bytes(flipped)):
        file.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"ModelPredictor_\w+: the .keras file is damaged: .*/model.keras"
        ):
            ModelPredictor.load(str(path))
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"ModelPredictor: a file of the saved stage is missing: .*model.keras"
    ):
        ModelPredictor.load(str(path))


FRESH_PROCESS = """
import sys
from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

folder = sys.argv[1]
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
pipeline = PipelineModel.load(folder + "/pipeline")
for number, stage in enumerate(pipeline.stages):
    alone = type(stage).load(f"{folder}/pipeline/stages/{number}_{stage.uid}")
    assert alone.uid == stage.uid
    assert alone.extractParamMap() == stage.extractParamMap()
pipeline.transform(spark.read.parquet(folder + "/data")).write.parquet(folder + "/result")
assert "tensorflow" not in sys.modules, "the driver loaded TensorFlow"
"""


def test_all_stages_and_a_pipeline_in_a_fresh_process(spark, data, model, tmp_path):
    stages = [
        OneHotTransformer(4, "whole", "one_hot"),
        BinaryLabelTransformer("whole", "is_two", 2),
        DenseTransformer("sparse", "densified"),
        MinMaxTransformer(-3, 3, 0, 1, "densified", "between"),
        StandardTransformer(["between", "number"], "_standard"),
        ReshapeTransformer("between_standard", "shaped", (2, 3, 1)),
        ModelPredictor(model, "shaped", output_type="vector"),
        LabelIndexTransformer(3),
    ]
    pipeline = Pipeline(stages=stages).fit(data)
    pipeline.save(str(tmp_path / "pipeline"))
    data.coalesce(1).write.parquet(str(tmp_path / "data"))
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, str(tmp_path)], check=True, timeout=240)
    wanted = pipeline.transform(data)
    columns = [name for name in wanted.columns if name not in data.columns]
    result = spark.read.parquet(str(tmp_path / "result"))
    assert result.select("id", *columns).orderBy("id").collect() == (
        wanted.select("id", *columns).orderBy("id").collect()
    )
