"""The data of a training as the driver lays it out: the columns, and the rows that are held out."""

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

import hvdkeras
from hvdkeras.data.columns import DataError
from hvdkeras.data.rows import Rows
from hvdkeras.driver import layout

ROWS = 10
MARKED = np.arange(ROWS) % 3 == 1
DATA = {
    "a": np.arange(ROWS, dtype="float32"),
    "b": np.arange(ROWS) * 10,
    "label": np.arange(ROWS) % 2,
    "marked": MARKED,
}


def model(inputs: int = 1) -> keras.Model:
    return keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(2, "softmax")])


def trainer(**arguments) -> hvdkeras.EASGD:
    used = {"features_col": "a", "loss": "sparse_categorical_crossentropy", "verbose": 0, **arguments}
    return hvdkeras.EASGD(model(), **used)


def as_parquet(folder):
    parquet.write_table(pa.table(DATA), f"{folder}/rows.parquet")
    return f"{folder}/rows.parquet"


def first_column(shards, chosen):
    """The rows of the first column that a rank gets."""
    rows = Rows(shards, 0, 1, ROWS, 0, chosen=chosen)
    return rows.block(0, 0)[0][0].ravel().tolist()


@pytest.mark.parametrize("kind", [dict, pd.DataFrame, "parquet"])
def test_marked_rows_are_held_out(tmp_path, kind):
    data = as_parquet(tmp_path) if kind == "parquet" else layout.sources.by_column(kind(DATA))
    # Weights of classes beside it: the marks are no labels.
    configuration = trainer(validation_indicator_col="marked", class_weight={0: 2.0})
    with layout.laid_out(configuration, data) as written:
        shards, split = layout.split(configuration, written)
        assert [column.name for column in shards.columns] == ["a", "label"]
        assert (split.training_rows, split.validation_rows) == (7, 3)
        trained, held_out = split.indices()
        assert first_column(shards, trained) == DATA["a"][~MARKED].tolist()
        assert first_column(shards, held_out) == DATA["a"][MARKED].tolist()


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        (np.zeros(ROWS, bool), "'marked' must be true for some rows.* Received: true for 0 of 10 rows"),
        (np.ones(ROWS, bool), "'marked' must be true for some rows.* Received: true for 10 of 10 rows"),
        (np.arange(ROWS) / 10, "'marked' must hold one whole number.*fractions"),
        (np.arange(ROWS), "'marked' must hold one whole number.*out of range"),
        (None, "'marked' is not in the data"),
    ],
)
def test_marks_that_are_none_are_refused(marks, message):
    data = {name: array for name, array in {**DATA, "marked": marks}.items() if array is not None}
    with pytest.raises(DataError, match=message):
        trainer(validation_indicator_col="marked").train(data)


def test_rows_are_held_out_one_way():
    with pytest.raises(ValueError, match="must be left out where validation_split is given"):
        trainer(validation_indicator_col="marked", validation_split=0.5)
    with pytest.raises(ValueError, match="must be left out where validation_split or validation_indicator"):
        trainer(validation_indicator_col="marked").train(DATA, validation_data=DATA)
    with pytest.raises(ValueError, match="validation_indicator_col must be a column's name. Received: True"):
        trainer(validation_indicator_col=True)
