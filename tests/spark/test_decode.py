"""Images that stay files in the DataFrame, from Spark to the ranks that decode them."""

import io

import keras
import numpy as np
import pyspark
import pytest
from PIL import Image

import hvdkeras
from hvdkeras.data.columns import Column, DataError
from hvdkeras.data.rows import Rows
from hvdkeras.data.writing import write_dataframe

import digits
from batching import batches_of

pytestmark = pytest.mark.spark

COLUMNS = (Column("image", (8, 8), "float32", encoded=True), Column("label", (), "int32", classes=10))


def to_png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def to_array(file):
    return np.asarray(Image.open(io.BytesIO(file)))


@pytest.fixture(scope="module")
def images():
    learn, _ = digits.data()
    return (learn["features"] * 16).astype(np.uint8).reshape(-1, 8, 8), learn["label"]


@pytest.fixture(scope="module")
def dataframe(spark, images):
    rows = [(bytearray(to_png(image)), int(label)) for image, label in zip(*images, strict=True)]
    frame = spark.createDataFrame(rows, "image binary, label int").coalesce(3)
    return frame.union(frame.limit(0)).cache()


def trainer(algorithm, **arguments):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Rescaling(1 / 16), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
    return getattr(hvdkeras, algorithm)(
        keras.Sequential([keras.Input((8, 8)), *layers]),
        features_col="image",
        **{**digits.LEARN, "num_epoch": 6},
        **arguments,
    )


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["SynchronousSGD", "EASGD"])
def test_files_train_as_the_arrays_in_them(dataframe, images, algorithm):
    decoded = trainer(algorithm, decode={"image": to_array})
    received = decoded.train(dataframe).get_weights()
    wanted = trainer(algorithm).train(dict(zip(("image", "label"), images, strict=True))).get_weights()
    for one, other in zip(received, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert set(decoded.history.rows_seen()) == {1437}
    assert decoded.history.ranks[0].metrics["accuracy"][-1] > 0.8


@pytest.mark.slow
def test_a_row_that_no_rank_can_decode(spark, dataframe):
    broken = spark.createDataFrame([(bytearray(b"broken"), 1)], dataframe.schema)
    message = r"'image' can't be decoded in row 1437 of the data \(6 bytes\): UnidentifiedImageError"
    with pytest.raises(hvdkeras.TrainingError, match=message):
        trainer("EASGD", decode={"image": to_array}).train(dataframe.union(broken))


def test_a_retried_task_doubles_no_row(dataframe, images, tmp_path):
    def fail_first(batches):
        task = pyspark.TaskContext.get()
        for number, batch in enumerate(batches):
            if number == 1 and task.partitionId() == 1 and task.attemptNumber() == 0:
                raise OSError("the first attempt fails after it has passed on rows")
            yield batch

    shards = write_dataframe(dataframe.mapInPandas(fail_first, dataframe.schema), COLUMNS, tmp_path)
    ((values, labels),) = batches_of(Rows(shards, 0, 1, 1437, seed=0), 0)
    assert [value.row for value in values] == list(range(1437))
    for value, image in zip(values, images[0], strict=True):
        np.testing.assert_array_equal(to_array(value.data), image)
    np.testing.assert_array_equal(labels, images[1])


def test_columns_that_do_not_fit_decode(spark, dataframe):
    nulls = dataframe.selectExpr("if(label = 3, null, image) as image", "label")
    with pytest.raises(DataError, match=r"'image' must hold bytes .*rows with null values .* partition 0\)"):
        write_dataframe(nulls, COLUMNS)
    strings = dataframe.selectExpr("base64(image) as image", "label")
    with pytest.raises(DataError, match="'image' must hold bytes, for decode. Received: string"):
        write_dataframe(strings, COLUMNS)
