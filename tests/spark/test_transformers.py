"""Every transformer against NumPy and scikit-learn, on dense and sparse vectors and on arrays."""

import json

import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.linalg import SparseVector, Vectors
from pyspark.mllib.linalg import Vectors as OldVectors
from pyspark.sql import Row
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

from hvdkeras.transformers import (
    BinaryLabelTransformer,
    DenseTransformer,
    LabelIndexTransformer,
    MinMaxTransformer,
    OneHotTransformer,
    ReshapeTransformer,
    StandardTransformer,
    StandardTransformerModel,
)

pytestmark = pytest.mark.spark

ROWS, SIZE = 23, 6
NULL_ROW = 7


@pytest.fixture(scope="module")
def values():
    made = np.random.default_rng(3).normal(size=(ROWS, SIZE)) * 40
    made[made < -10] = 0.0
    made[:, 2] = 5.0
    return made


@pytest.fixture(scope="module")
def data(spark, values):
    """The same numbers as dense, sparse and old vectors, arrays and plain columns; one row of nulls."""
    rows = []
    for i, row in enumerate(values):
        where = np.flatnonzero(row)
        forms = {
            "dense": Vectors.dense(row),
            "sparse": Vectors.sparse(SIZE, where, row[where]),
            "old": OldVectors.dense(row),
            "array": row.tolist(),
            "number": float(row[0]),
            "label": i % 4,
            "name": "abc"[i % 3],
        }
        if i == NULL_ROW:
            forms = dict.fromkeys(forms)
        rows.append(Row(id=i, **forms))
    schema = spark.createDataFrame(rows[:1]).schema
    return spark.createDataFrame(rows, schema).repartition(3).cache()


def collected(frame, column):
    """The column's rows in order, vectors and arrays as lists, with one null in its place."""
    rows = [row[column] for row in frame.select("id", column).orderBy("id").collect()]
    assert len(rows) == ROWS
    assert rows.pop(NULL_ROW) is None
    return np.array([row.toArray() if hasattr(row, "toArray") else row for row in rows])


def without_null(values):
    return np.delete(values, NULL_ROW, axis=0)


FORMS = ["dense", "sparse", "old", "array"]


@pytest.mark.parametrize("form", FORMS)
def test_min_max_is_scikit_learns(data, values, form):
    frame = MinMaxTransformer(-20.0, 200.0, -1.0, 1.0, form, "out").transform(data)
    scaler = MinMaxScaler((-1, 1)).fit(np.array([[-20.0] * SIZE, [200.0] * SIZE]))
    np.testing.assert_allclose(collected(frame, "out"), scaler.transform(without_null(values)), atol=1e-12)
    assert frame.columns == [*data.columns, "out"]


def test_min_max_of_numbers_and_in_place(data, values):
    stage = MinMaxTransformer(n_min=0.0, n_max=1.0, o_min=0.0, o_max=250.0, input_col="number",
                              output_col="number", is_vector=False)  # fmt: skip
    np.testing.assert_allclose(collected(stage.transform(data), "number"), without_null(values)[:, 0] / 250)


@pytest.mark.parametrize("form", FORMS)
def test_dense(data, values, form):
    frame = DenseTransformer(form, "out").transform(data)
    np.testing.assert_array_equal(collected(frame, "out"), without_null(values))
    assert not any(isinstance(row.out, SparseVector) for row in frame.select("out").collect())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(2, 3), (3, 1, 2), (6,)])
def test_reshape_is_numpys(data, values, form, shape):
    frame = ReshapeTransformer(form, "out", shape).transform(data)
    np.testing.assert_array_equal(collected(frame, "out"), without_null(values).reshape(-1, *shape))


def test_reshape_of_nested_arrays(data, values):
    nested = ReshapeTransformer("array", "nested", (3, 1, 2)).transform(data)
    frame = ReshapeTransformer("nested", "out", (6,)).transform(nested)
    np.testing.assert_array_equal(collected(frame, "out"), without_null(values))


@pytest.mark.parametrize("kind", ["int", "double", "tinyint"])
def test_one_hot_is_scikit_learns(data, kind):
    frame = data.withColumn("label", data.label.cast(kind))
    got = collected(OneHotTransformer(4, "label", "out").transform(frame), "out")
    labels = without_null(np.arange(ROWS) % 4)[:, None]
    np.testing.assert_array_equal(got, OneHotEncoder(sparse_output=False).fit_transform(labels))


@pytest.mark.parametrize("label", [-1.0, 4.0, 1.5, float("nan")])
def test_one_hot_refuses_what_is_no_class(spark, label):
    frame = spark.createDataFrame([(label,)], "label double")
    with pytest.raises(
        Exception, match=r"OneHotTransformer_\w+: column 'label' must hold whole numbers from 0 to 3"
    ):
        OneHotTransformer(4, "label", "out").transform(frame).collect()


@pytest.mark.parametrize("form", ["dense", "sparse", "array"])
def test_label_index_is_argmax(data, values, form):
    frame = LabelIndexTransformer(SIZE, form, "out").transform(data)
    np.testing.assert_array_equal(collected(frame, "out"), without_null(values).argmax(axis=1))
    assert frame.schema["out"].dataType.simpleString() == "double"


def test_label_index_of_odd_rows(spark):
    nan, low = float("nan"), -float("inf")
    rows = [
        [nan, -2.0, -1.0],
        [nan, nan, nan],
        [1.0, 1.0, 0.0],
        [None, -1.0, low],
        [0.6, 0.9, 0.1],
        [-1.0, 0.2, 0.3],
    ]
    frame = spark.createDataFrame(
        [(i, row) for i, row in enumerate(rows)], "id int, prediction array<double>"
    )

    def indexes(stage):
        return [row.prediction_index for row in stage.transform(frame).orderBy("id").collect()]

    assert indexes(LabelIndexTransformer(3, default_index=2)) == [2, 2, 0, 1, 1, 2]
    by_threshold = LabelIndexTransformer(3, default_index=2, activation_threshold=0.55)
    assert indexes(by_threshold) == [2, 2, 0, 2, 0, 2]


@pytest.mark.parametrize(("column", "label", "is_it"), [
    ("name", "b", lambda i: i % 3 == 1),
    ("label", 2, lambda i: i % 4 == 2),
    ("label", 2.0, lambda i: i % 4 == 2),
])  # fmt: skip
def test_binary_label(data, column, label, is_it):
    got = collected(BinaryLabelTransformer(column, "out", label).transform(data), "out")
    first = without_null(np.array([is_it(i) for i in range(ROWS)], float))
    np.testing.assert_array_equal(got, np.stack([first, 1 - first], axis=1))


def test_standard_is_scikit_learns_and_remembers_what_it_was_fitted_on(data, values):
    columns = ["number", *FORMS[:2], "array"]
    model = StandardTransformer(columns).fit(data)
    scaler = StandardScaler().fit(without_null(values))
    # Another DataFrame is scaled by the statistics of the first.
    part = model.transform(data.where("id = 3 or id = 7"))
    for name in columns[1:]:
        got = [row[f"{name}_normalized"] for row in part.orderBy("id").collect()]
        wanted = scaler.transform(values[[3]])[0]
        np.testing.assert_allclose(np.asarray(got[0]), wanted, atol=1e-9)
        assert got[1] is None
    whole = collected(model.transform(data), "number_normalized")
    np.testing.assert_allclose(whole, scaler.transform(without_null(values))[:, 0], atol=1e-9)
    assert not collected(model.transform(data), "dense_normalized")[:, 2].any()  # no spread


def test_standard_is_no_transformer(data):
    with pytest.raises(TypeError, match=r"must be fitted first: .*\.fit\(df\)\.transform\(df\)"):
        StandardTransformer(["number"]).transform(data)
    with pytest.raises(ValueError, match="column 'number' must hold at least one value. Received: none"):
        StandardTransformer("number").fit(data.where("id = 7"))


def test_columns_with_dots_and_empty_frames(spark):
    frame = spark.createDataFrame([(1.0, [1.0, 2.0])], "`a.b` double, `c.d` array<double>")
    stages = [
        StandardTransformer(["a.b"], ""),
        MinMaxTransformer(0, 2, 0, 1, "c.d", "e.f"),
        LabelIndexTransformer(2, "e.f", "g.h"),
    ]
    row = Pipeline(stages=stages).fit(frame).transform(frame).first()
    assert tuple(row) == (0.0, [1.0, 2.0], [0.5, 1.0], 1.0)
    assert stages[2].transform(stages[1].transform(frame.where("false"))).collect() == []


def test_bad_columns_are_named_before_any_job(data):
    for stage, message in [
        (
            DenseTransformer("dens", "out"),
            r"DenseTransformer_\w+: input_col must name a column.*'dens'.*'dense'",
        ),
        (DenseTransformer("name", "out"), r"'name' must hold vectors or arrays of numbers. Received: string"),
        (
            DenseTransformer("sparse", "dense"),
            "output_col must be the name of a new column.*'dense', which exists",
        ),
        (OneHotTransformer(3, "dense", "out"), "'dense' must hold numbers. Received: vector"),
        (
            MinMaxTransformer(0, 1, 0, 1, "number", "out"),
            "'number' must hold vectors or arrays.*Received: double",
        ),
        (MinMaxTransformer(0, 1, 0, 1, "dense", "out", False), "'dense' must hold numbers. Received: vector"),
        (BinaryLabelTransformer("name", "out", 1), "'name' must hold values of the type of the label 1"),
        (
            StandardTransformerModel(["dense"], "_n", [0.0], [1.0]),
            "'dense' must hold numbers. Received: vector",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            stage.transform(data)
    with pytest.raises(
        ValueError, match=r"StandardTransformer_\w+: column 'name' must hold numbers, or vectors"
    ):
        StandardTransformer(["name"]).fit(data)


@pytest.mark.parametrize("stage", [
    ReshapeTransformer("dense", "out", (2, 2)),
    LabelIndexTransformer(4, "sparse", "out"),
    StandardTransformerModel(["array"], "_n", [[0.0] * 4], [[1.0] * 4]),
])  # fmt: skip
def test_rows_of_another_size_fail_the_job(data, stage):
    with pytest.raises(Exception, match=r"_\w+: column '\w+' must hold 4 numbers a row. Received: 6"):
        stage.transform(data).collect()


def test_bad_arguments():
    for make, message in [
        (lambda: LabelIndexTransformer(1), "output_dim must be an integer of at least 2. Received: 1"),
        (lambda: LabelIndexTransformer(2, activation_threshold="x"), "activation_threshold must be a number"),
        (
            lambda: OneHotTransformer(True, "a", "b"),
            "output_dim must be an integer of at least 1. Received: True",
        ),
        (lambda: MinMaxTransformer(1, 1, 0, 1, "a", "b"), "o_max must be above o_min. Received: 1.0 to 1.0"),
        (lambda: ReshapeTransformer("a", "b", (2, -1)), "shape must be a tuple of positive integers"),
        (lambda: DenseTransformer("", "b"), "input_col must be the name of a column. Received: ''"),
        (lambda: StandardTransformer(["a", "a"]), "columns must be names of different columns"),
        (lambda: BinaryLabelTransformer("a", "b", [1]), "label must be a string, a number or a boolean"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


def test_parameters_are_spark_params(data):
    stage = LabelIndexTransformer(SIZE, "dense", "out")
    other = stage.copy({stage.output_col: "other", stage.activation_threshold: 0.55})
    assert other.getOrDefault("output_col") == "other"
    assert stage.getOrDefault("activation_threshold") is None
    assert "other" in stage.transform(data, {stage.output_col: "other"}).columns
    assert "number of values of a prediction" in stage.explainParams()


def test_saved_stages_are_refused_when_newer_damaged_or_of_another_class(spark, tmp_path):
    path = str(tmp_path / "stage")
    with pytest.raises(
        FileNotFoundError, match="DenseTransformer: there is no saved stage. Received: .*/stage"
    ):
        DenseTransformer.load(path)
    DenseTransformer("a", "b").save(path)
    with pytest.raises(
        ValueError, match="the path must hold a saved OneHotTransformer. Received: .*DenseTransformer"
    ):
        OneHotTransformer.load(path)
    file = next((tmp_path / "stage" / "metadata").glob("part-*"))
    metadata = json.loads(file.read_text())
    metadata["hvdkeras"] = {"format": 99, "version": "9.0.0"}
    for crc in file.parent.glob(".*.crc"):
        crc.unlink()
    file.write_text(json.dumps(metadata))
    with pytest.raises(
        ValueError, match=r"was saved by hvdkeras 9.0.0 in format 99; .* Install a newer hvdkeras"
    ):
        DenseTransformer.load(path)
    file.write_text("{")
    with pytest.raises(ValueError, match="DenseTransformer: the metadata of a saved stage is damaged"):
        DenseTransformer.load(path)
    DenseTransformer("c", "d").write().overwrite().save(path)
    assert DenseTransformer.load(path).getOrDefault("input_col") == "c"
