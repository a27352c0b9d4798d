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
from hvdkeras.data.shards import open_shards
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


def stacking(**arguments):
    return hvdkeras.EASGD(
        model(2),
        **{"features_col": ["a", "b"], "loss": "sparse_categorical_crossentropy", "verbose": 0, **arguments},
    )


@pytest.mark.parametrize("kind", [dict, "parquet"])
def test_columns_of_numbers_are_stacked_to_one_input(tmp_path, kind):
    data = as_parquet(tmp_path) if kind == "parquet" else DATA
    with layout.laid_out(stacking(), data) as shards:
        assert shards.columns[0].sources == ("a", "b")
        wanted = np.stack([DATA["a"], DATA["b"]], axis=1).ravel().tolist()
        assert first_column(shards, None) == wanted
        again = open_shards(shards.url)
        assert again.columns == shards.columns
        with layout.laid_out(stacking(), again) as same:
            assert first_column(same, None) == wanted
        with pytest.raises(DataError, match="the shards in .* must have the columns that the model requires"):
            stacking(features_col=["b", "a"]).train(again)


@pytest.mark.parametrize("kind", [dict, "parquet"])
def test_rows_of_stacked_columns_that_do_not_fit_are_named(tmp_path, kind):
    def write(**changed):
        data = {**DATA, **changed}
        if kind == "parquet":
            nulls = {name: pa.array(one, from_pandas=True) for name, one in data.items()}
            parquet.write_table(pa.table(nulls), f"{tmp_path}/rows.parquet")
            data = f"{tmp_path}/rows.parquet"
        return data

    missing = np.where(MARKED, np.nan, DATA["a"])
    fault = "null" if kind == "parquet" else "NaN"
    with pytest.raises(DataError, match=f"column 'a, b' must hold 2 finite numbers.*3 rows with {fault}"):
        stacking().train(write(a=missing))
    with layout.laid_out(stacking(nan_cols=["b", "a"]), write(a=missing)) as shards:
        read = np.reshape(first_column(shards, None), (ROWS, 2))
        assert np.isnan(read).tolist() == [[marked, False] for marked in MARKED.tolist()]
    text = np.array(list("abcdefghij"))
    with pytest.raises(DataError, match="column 'b' must .*one number.* features_col stacks 2 columns"):
        stacking().train(write(b=text))
    with pytest.raises(DataError, match="column 'labels' is not in the data. Did you mean 'label'"):
        stacking(features_col=["a", "labels"]).train(write())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features_col": ["a", "b", "a"]}, r"only input, or 2 columns of one number: .* shape \(2,\)"),
        ({"nan_cols": "a"}, "nan_cols must name all or none of the columns .*: a, b. Received: a"),
        ({"decode": {"a": np.asarray}}, "decode must be a dict of functions by .* read, label. Received"),
    ],
)
def test_columns_that_are_not_one_input_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        stacking(**arguments).train(DATA)


def test_an_input_of_another_rank_takes_no_list():
    image = keras.Sequential([keras.Input((2, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"must name the column of the model's only input: .*\(2, 1\)"):
        hvdkeras.EASGD(image, loss="mse", features_col=["a", "b"]).train(DATA)
