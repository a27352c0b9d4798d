"""ModelPredictor gives what model.predict gives, whatever the columns, the partitions and the process."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.evaluation import BinaryClassificationEvaluator, MulticlassClassificationEvaluator
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions
from sklearn.metrics import roc_auc_score

from hvdkeras.ml import expressions as sql
from hvdkeras.ml import files, scoring, transport
from hvdkeras.ml.rows import flat_rows
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
        Exception,
        match=r"ModelPredictor_\w+: column 'features' must hold finite numbers in .*in 3 of 6 rows",
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
            "features_col must name the column of the model's only input",
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
            "whose inputs are known: give it an Input",
        ),
        (
            lambda: ModelPredictor(keras.Model(x := keras.Input((None,)), x)),
            "must have a fixed shape beyond the batch",
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
    key = predictor._shipment.send(spark, {})[0]

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


def test_lambdas_of_this_process_work_and_those_of_a_file_are_not_loaded(keras, data, values, tmp_path):
    factor = 0.5
    model = keras.Sequential([keras.Input((SIZE,)), keras.layers.Lambda(lambda x: factor * x)])
    made = ModelPredictor(model, "array")
    np.testing.assert_allclose(collected(made.transform(data)), values / 2, rtol=1e-6)
    np.testing.assert_allclose(made.keras_model.predict(values, verbose=0), values / 2, rtol=1e-6)
    made.save(str(tmp_path / "predictor"))
    keras.models.load_model(tmp_path / "predictor" / "model.keras", safe_mode=False)
    with pytest.raises(Exception, match="Lambda layers of a file are not loaded at all"):
        ModelPredictor.load(str(tmp_path / "predictor")).transform(data).collect()


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


def test_the_form_in_which_spark_connect_saves_a_model_is_read(spark, tmp_path):
    chunks = [(1, bytearray(b"second")), (0, bytearray(b"first "))]
    spark.createDataFrame(chunks, "number int, content binary").write.parquet(str(tmp_path / "model.keras"))
    assert files.read_bytes(spark, str(tmp_path / "model.keras")) == b"first second"


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


def test_a_batch_is_bounded_by_bytes(spark, data, model, values, monkeypatch, caplog):
    monkeypatch.setattr(transport, "BATCH_BYTES", 5 * 8 * (SIZE + 3))
    default = spark.conf.get(BATCH_ROWS)
    assert int(default) > 5
    try:
        scored = ModelPredictor(model, "array").transform(data)
        assert spark.conf.get(BATCH_ROWS) == "5"
        assert f"{BATCH_ROWS} of this session is 5 now (it was {default})" in caplog.text
        np.testing.assert_allclose(collected(scored), model.predict(values, verbose=0), rtol=0, atol=1e-6)
        count = functions.pandas_udf(lambda ids: pd.Series(len(ids), ids.index), "int")
        assert max(row.rows for row in data.coalesce(1).select(count("id").alias("rows")).collect()) == 5
        # A lower number of the user's own stays.
        spark.conf.set(BATCH_ROWS, 3)
        ModelPredictor(model).udf(spark, "bounded")
        assert spark.conf.get(BATCH_ROWS) == "3"
    finally:
        spark.conf.unset(BATCH_ROWS)


def test_rows_that_training_refuses_are_invalid(keras, spark):
    model = keras.Sequential([keras.Input((2,), dtype="int8"), keras.layers.Embedding(5, 1)])
    rows = [[1.0, 2.0], [1.5, 2.0], [float("inf"), 1.0], [128.0, 1.0], [-129.0, 1.0], [3.0, 4.0]]
    frame = spark.createDataFrame([(i, row) for i, row in enumerate(rows)], "id int, features array<double>")
    kept = ModelPredictor(model, handle_invalid="keep").transform(frame.coalesce(1)).orderBy("id").collect()
    assert [row.prediction is None for row in kept] == [False, True, True, True, True, False]
    floats = keras.Sequential([keras.Input((2,)), keras.layers.Identity()])
    # 1e39 is infinite as the float32 that the model gets.
    rows = [[1.0, 2.0], [float("-inf"), 2.0], [1e39, 1.0], [3.0, 4.0]]
    frame = spark.createDataFrame([(i, row) for i, row in enumerate(rows)], "id int, features array<double>")
    kept = ModelPredictor(floats, handle_invalid="keep").transform(frame.coalesce(1)).orderBy("id").collect()
    assert [row.prediction for row in kept] == [[1.0, 2.0], None, None, [3.0, 4.0]]


def test_bytes_nested_nulls_and_uneven_arrays_also_in_sql(keras, spark):
    model = keras.Sequential([keras.Input((2, 2)), keras.layers.Flatten()])
    schema = "id int, nested array<array<double>>, bytes binary"
    rows = [(0, [[1.0, 2.0], [3.0, 4.0]], bytearray(b"\x01\x02\x03\xff")), (1, [[1.0, 2.0], None], None)]
    frame = spark.createDataFrame(rows, schema).coalesce(1)
    vector = functions.expr("IF(id = 0, nested, NULL)")
    frame = frame.withColumn("vector", sql.vector(functions.flatten(vector)))
    predictor = ModelPredictor(model, "nested", handle_invalid="keep")
    of_bytes = predictor.copy({predictor.features_col: ["bytes"]})
    assert collected(predictor.transform(frame.where("id = 0"))).tolist() == [[1, 2, 3, 4]]
    assert predictor.transform(frame.where("id = 1")).first().prediction is None
    assert [row.prediction for row in of_bytes.transform(frame).collect()] == [[1, 2, 3, 255], None]

    predictor.udf(spark, "flat_score")
    frame.createOrReplaceTempView("forms")
    query = "SELECT flat_score(nested), flat_score(bytes), flat_score(vector) FROM forms ORDER BY id"
    assert [list(row) for row in spark.sql(query).collect()] == [
        [[1, 2, 3, 4], [1, 2, 3, 255], [1, 2, 3, 4]],
        [None, None, None],
    ]
    uneven = spark.createDataFrame([(0, [[1.0, 2.0, 3.0], [4.0]], None)], schema)
    with pytest.raises(Exception, match="column 'nested' must hold nested arrays of equal lengths"):
        predictor.transform(uneven).collect()
    # SQL sends nested arrays to Python as they are.
    row = np.empty(2, object)
    row[:] = [np.ones(3), np.ones(1)]
    with pytest.raises(ValueError, match="nested arrays of equal lengths. Received: a row of arrays of 1"):
        flat_rows([row, None])


def test_class_columns_are_what_sparks_evaluators_read(keras, data, model, values, tmp_path):
    names = {"prediction_col": "prediction", "probability_col": "probability", "raw_prediction_col": "raw"}
    scores = model.predict(values, verbose=0)
    predictor = ModelPredictor(model, "dense", "scores", **names)
    predictor.save(str(tmp_path / "predictor"))
    frame = ModelPredictor.load(str(tmp_path / "predictor")).transform(data)
    assert frame.columns == [*data.columns, "scores", "prediction", "probability", "raw"]
    np.testing.assert_array_equal(collected(frame), scores.argmax(axis=1))
    for name in ("probability", "raw"):
        np.testing.assert_allclose(collected(frame, name), scores, rtol=0, atol=1e-6)
    labelled = frame.withColumn("label", functions.lit(1.0))
    accuracy = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(labelled)
    assert accuracy == pytest.approx((scores.argmax(axis=1) == 1).mean())
    assert MulticlassClassificationEvaluator(metricName="logLoss").evaluate(labelled) == pytest.approx(
        -np.log(scores[:, 1]).mean(), abs=1e-5
    )


@pytest.mark.parametrize("output_type", ["array", "scalar"])
def test_class_columns_of_logits_and_of_one_score(keras, data, values, output_type):
    names = {"prediction_col": "class", "probability_col": "probability", "raw_prediction_col": "raw"}
    layers = keras.layers
    single = keras.Sequential([keras.Input((SIZE,)), layers.Dense(1)])
    logits = single.predict(values, verbose=0)[:, 0]
    of_logits = ModelPredictor(single, "dense", output_type=output_type, from_logits=True, **names)
    frame = of_logits.transform(data).cache()
    sigmoid = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(collected(frame, "raw"), np.stack([-logits, logits], 1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(collected(frame, "probability")[:, 1], sigmoid, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(collected(frame, "class"), logits > 0)
    labelled = frame.withColumn("label", (functions.col("id") % 2).cast("double"))
    area = BinaryClassificationEvaluator(rawPredictionCol="raw").evaluate(labelled)
    assert area == pytest.approx(roc_auc_score(np.arange(ROWS) % 2, logits))
    frame.unpersist()


def test_softmax_of_logits_and_probability_of_a_sigmoid(keras, spark):
    identity = keras.Sequential([keras.Input((2,)), keras.layers.Identity()])
    frame = spark.createDataFrame([([1000.0, 999.0],), ([0.25, 0.75],)], "features array<double>").coalesce(1)
    columns = {"prediction_col": "class", "probability_col": "probability"}
    rows = ModelPredictor(identity, from_logits=True, **columns).transform(frame).collect()
    e = np.exp([0.0, -1.0])
    np.testing.assert_allclose(rows[0].probability, e / e.sum(), atol=1e-12)
    assert [row["class"] for row in rows] == [0.0, 1.0]
    one = keras.Sequential([keras.Input((1,)), keras.layers.Identity()])
    rows = ModelPredictor(one, **columns).transform(
        spark.createDataFrame([([0.75],), ([0.5],), ([0.25],)], "features array<double>").coalesce(1)
    )
    assert [(row["class"], row.probability.toArray().tolist()) for row in rows.collect()] == [
        (1.0, [0.25, 0.75]),
        (0.0, [0.5, 0.5]),
        (0.0, [0.75, 0.25]),
    ]


def test_columns_that_case_alone_makes_different_are_refused(keras, data, model):
    image = keras.Sequential([keras.Input((SIZE,)), keras.layers.Reshape((2, 3))])
    for make, message in [
        (
            lambda: ModelPredictor(model, "array", "ID").transform(data),
            "Received: 'ID', and 'id' exists already",
        ),
        (
            lambda: ModelPredictor(model, prediction_col="Prediction"),
            "output_col, prediction_col must be names",
        ),
        (
            lambda: ModelPredictor(model, "array", "s", probability_col="Dense").transform(data),
            "probability_col must be the name of a new column.*'dense' exists already",
        ),
        (lambda: ModelPredictor(image, prediction_col="class"), "first output has one axis, the classes"),
        (
            lambda: DenseTransformer("array", "Dense").transform(data),
            "output_col must be the name of a new column, .*'dense' exists already",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


def test_structured_streaming_restarts_at_its_checkpoint(spark, data, model, values, tmp_path):
    source, sink, checkpoint = (str(tmp_path / name) for name in ("source", "sink", "checkpoint"))
    table = data.select("id", "array")
    seen = []

    def score_new_files(write):
        stream = spark.readStream.schema(table.schema).parquet(source)
        scored = ModelPredictor(model, "array").transform(stream).select("id", "prediction")
        query = write(scored.writeStream.trigger(availableNow=True)).start()
        assert query.awaitTermination(200)

    def to_files(writer):
        return writer.option("checkpointLocation", checkpoint).format("parquet").option("path", sink)

    def to_a_function(writer):
        writer = writer.option("checkpointLocation", checkpoint + "-each")
        return writer.foreachBatch(lambda batch, number: seen.append((number, batch.count())))

    table.where("id < 20").coalesce(1).write.parquet(source)
    score_new_files(to_files)
    score_new_files(to_a_function)
    table.where("id >= 20").coalesce(1).write.mode("append").parquet(source)
    score_new_files(to_files)
    score_new_files(to_a_function)
    np.testing.assert_allclose(
        collected(spark.read.parquet(sink)), model.predict(values, verbose=0), rtol=0, atol=1e-6
    )
    assert seen == [(0, 20), (1, ROWS - 20)]
