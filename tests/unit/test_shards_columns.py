"""Raw values become what the model wants, or problems with a count and the first row."""

import decimal

import keras
import numpy as np
import pyarrow as pa
import pytest

from hvdkeras.data.columns import Column, DataError, check_names, check_type
from hvdkeras.data.conversion import Problem, convert
from hvdkeras.data.ragged import to_bytes
from hvdkeras.data.rounding import is_rounded
from hvdkeras.ml import rows
from hvdkeras.models import schema
from hvdkeras.models.saved import Tensor

PAIR = Column("x", (2,), "float32")
CLASS = Column("y", (), "int32", classes=3)
ONE_HOT = Column("y", (3,), "float32", classes=3, one_hot=True)
VECTOR = pa.struct(
    [
        ("type", pa.int8()),
        ("size", pa.int32()),
        ("indices", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float64())),
    ]
)


def dense(*values):
    return {"type": 1, "size": None, "indices": None, "values": list(values)}


def sparse(size, indices, values):
    return {"type": 0, "size": size, "indices": indices, "values": values}


@pytest.mark.parametrize(
    "raw",
    [
        pa.array([[1.0, 2.0], [3.0, 4.0]]),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.uint8())),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)),
        pa.array([[1, 2], [3, 4]], pa.large_list(pa.float32())),
        pa.array([[[1], [2]], [[3], [4]]]),
        pa.array([b"\x01\x02", b"\x03\x04"]),
        pa.array([b"\x01\x02", b"\x03\x04"], pa.large_binary()),
        pa.array([[decimal.Decimal(1), decimal.Decimal(2)], [decimal.Decimal(3), decimal.Decimal(4)]]),
        pa.array([dense(1.0, 2.0), sparse(2, [1, 0], [4.0, 3.0])], VECTOR),
        np.array([[1, 2], [3, 4]], np.int16),
        np.array([[[1.0], [2.0]], [[3.0], [4.0]]], np.float16),
    ],
    ids=str,
)
def test_every_form_of_numbers_gives_the_same_rows(raw):
    array, problems = convert(PAIR, raw)
    assert problems == []
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [[1, 2], [3, 4]])


def test_a_slice_of_an_arrow_array_is_read_from_its_start():
    for raw in (
        pa.array([[9.0, 9.0], [1.0, 2.0], [3.0, 4.0]]),
        pa.array([b"\x09\x09", b"\x01\x02", b"\x03\x04"]),
        pa.array([sparse(2, [0], [9.0]), sparse(2, [0, 1], [1.0, 2.0]), dense(3.0, 4.0)], VECTOR),
    ):
        np.testing.assert_array_equal(convert(PAIR, raw[1:])[0], [[1, 2], [3, 4]])


def test_sound_floats_are_not_copied():
    raw = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32()))
    array, _ = convert(PAIR, raw)
    assert np.shares_memory(array, raw.flatten().to_numpy())


def test_rows_take_the_models_shape():
    assert convert(Column("x", (2, 3, 1), "float32"), pa.array([[1.0] * 6] * 4))[0].shape == (4, 2, 3, 1)
    assert convert(Column("x", (1,), "float32"), pa.array([1.0, 2.0]))[0].shape == (2, 1)
    assert convert(Column("x", (), "float32"), pa.array([[1.0], [2.0]]))[0].shape == (2,)


@pytest.mark.parametrize("raw", [[0, 2, 1], [0.0, 2.0, 1.0], [[0], [2], [1]]])
def test_class_numbers(raw):
    labels, _ = convert(CLASS, pa.array(raw))
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [0, 2, 1])
    np.testing.assert_array_equal(convert(ONE_HOT, pa.array(raw))[0], [[1, 0, 0], [0, 0, 1], [0, 1, 0]])


def test_rows_that_are_one_hot_already_pass():
    np.testing.assert_array_equal(convert(ONE_HOT, pa.array([[0, 0.5, 0.5]]))[0], [[0, 0.5, 0.5]])


def test_class_numbers_of_a_sequence_become_one_hot_rows_each():
    column = Column("y", (2, 3), "float32", classes=3, one_hot=True)
    np.testing.assert_array_equal(convert(column, pa.array([[2, 0]]))[0], [[[0, 0, 1], [1, 0, 0]]])


@pytest.mark.parametrize(
    ("column", "raw", "problem"),
    [
        (PAIR, pa.array([[1.0, 2.0], None, None]), Problem("null values", 2, 1)),
        (PAIR, pa.array([[1.0, 2.0], [None, 1.0]]), Problem("null values", 1, 1)),
        (PAIR, pa.array([[1.0], None], pa.list_(pa.float64(), 1)), Problem("null values", 1, 1)),
        (PAIR, pa.array([dense(1.0, 2.0), None], VECTOR), Problem("null values", 1, 1)),
        (PAIR, pa.array([b"\x01\x02", None]), Problem("null values", 1, 1)),
        (PAIR, pa.array([[1.0, 2.0], [1.0], []]), Problem("another number of values", 2, 1)),
        (PAIR, pa.array([[1.0]] * 3), Problem("another number of values", 3, 0, "1 instead of 2")),
        (
            PAIR,
            pa.array([[], []], pa.list_(pa.int8())),
            Problem("another number of values", 2, 0, "0 instead of 2"),
        ),
        (PAIR, np.ones((3, 4)), Problem("another number of values", 3, 0, "4 instead of 2")),
        (
            Column("x", (4,), "float32"),
            pa.array([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0, 3.0], [4.0]]]),
            Problem("lists of unequal lengths", 1, 1),
        ),
        (PAIR, pa.array([[1.0, 2.0], [1.0, np.nan]]), Problem("NaN", 1, 1, "nan")),
        (PAIR, pa.array([[np.inf, 0.0], [-np.inf, 0.0]]), Problem("infinite values", 2, 0, "inf")),
        (PAIR, pa.array([[1e300, 0.0]]), Problem("infinite values", 1, 0, "inf")),
        (PAIR, np.array([[0, 0], [0, np.nan]]), Problem("NaN", 1, 1, "nan")),
        (CLASS, pa.array([0, 1, 3, -1]), Problem("values out of range", 2, 2, "3")),
        (CLASS, pa.array([0.0, 0.5]), Problem("fractions", 1, 1, "0.5")),
        (CLASS, pa.array([0.0, np.nan]), Problem("NaN", 1, 1, "nan")),
        (CLASS, pa.array([None, 2], pa.int32()), Problem("null values", 1, 0)),
        (ONE_HOT, pa.array([0, 1, 3]), Problem("values out of range", 1, 2, "3")),
        (Column("x", (), "int8"), pa.array([0, 200]), Problem("values out of range", 1, 1, "200")),
        (Column("x", (), "uint8"), np.array([0, -1]), Problem("values out of range", 1, 1, "-1")),
        (
            Column("x", (), "int32"),
            pa.array([0.0, 3e9]),
            Problem("values out of range", 1, 1, "3000000000.0"),
        ),
        (Column("x", (), "bool"), pa.array([0, 1, 2]), Problem("values out of range", 1, 2, "2")),
    ],
    ids=str,
)
def test_problems_have_a_count_and_the_first_row(column, raw, problem):
    array, problems = convert(column, raw)
    assert array is None
    assert problem in problems


def test_several_problems_of_a_block_are_told_apart():
    _, problems = convert(
        PAIR, pa.array([[1.0, 2.0], None, [1.0], [np.nan, 1.0], [None, None], [1.0, np.inf]])
    )
    assert problems == [
        Problem("null values", 2, 1),
        Problem("another number of values", 1, 2),
        Problem("NaN", 1, 3, "nan"),
        Problem("infinite values", 1, 5, "inf"),
    ]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_training_and_prediction_take_the_same_numbers(dtype):
    model = keras.Sequential([keras.Input((1,), dtype=dtype), keras.layers.Dense(1)])
    (column,) = schema.feature_columns(model, "x")
    values = np.array([[0.1], [7e4], [-1e300], [1e39], [np.inf], [np.nan]])
    stacked, invalid = rows.stack(values, Tensor("x", (1,), dtype))
    for value, predicted, refused in zip(values, stacked, invalid, strict=True):
        trained, problems = convert(column, value[np.newaxis])
        assert bool(problems) == refused
        if not refused:
            assert trained.dtype == predicted.dtype
            np.testing.assert_array_equal(trained[0], predicted)
            np.testing.assert_array_equal(trained[0], value.astype(trained.dtype))
    kept = {"float16": [0], "float64": [0, 1, 2, 3]}.get(dtype, [0, 1])
    assert np.flatnonzero(~invalid).tolist() == kept


@pytest.mark.parametrize(
    ("values", "dtype", "rounded"),
    [
        ([2**24 + 1], "float32", True),
        ([-(2**24) - 1], "float32", True),
        ([2**24, 2**24 + 2, 2**40], "float32", False),
        ([2**24 + 1], "float64", False),
        ([2**53 + 1], "float64", True),
        ([2049], "float16", True),
        ([2**24 + 1], "int64", False),
    ],
)
def test_integers_that_a_float_does_not_hold_are_seen(values, dtype, rounded):
    column = Column("x", (), dtype)
    nested = Column("x", (None,), dtype, padding=0)
    for raw in (np.array(values), pa.array(values), pa.array([[value] for value in values])):
        assert is_rounded(column, raw, convert(column, raw)[0]) == rounded
    for raw in ([np.array(values)], pa.array([values, [0]])):
        assert is_rounded(nested, raw, to_bytes(nested, raw)[0]) == rounded
    floats = np.array(values, float)
    assert not is_rounded(column, floats, convert(column, floats)[0])


def test_large_sums_of_finite_values_are_no_problem():
    array, problems = convert(Column("x", (), "float32"), pa.array([3e38, 3e38, 3e38]))
    assert problems == []
    assert array.shape == (3,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (2,), "dtype": "object"}, r"dtype must be a NumPy number type.*Received: 'object'"),
        ({"shape": (2,), "dtype": "no"}, r"dtype must be a NumPy number type.*Received: 'no'"),
        ({"shape": (0,), "dtype": "float32"}, r"shape must have positive axes. Received: \(0,\)"),
        ({"shape": (), "dtype": "int32", "classes": 0}, "classes must be positive. Received: 0"),
        (
            {"shape": (3,), "dtype": "float32", "classes": 4, "one_hot": True},
            "one_hot needs classes as the last axis of shape. Received: classes=4",
        ),
    ],
)
def test_columns_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Column("x", **arguments)


def test_a_missing_column_has_suggestions():
    with pytest.raises(DataError, match=r"'fetures' is not in the data. Did you mean 'features'\?.*label"):
        check_names([Column("fetures", (), "float32")], ["features", "label"])
    with pytest.raises(DataError, match=r"Did you mean 'LABEL'"):
        check_names([Column("label", (), "float32")], ["features", "LABEL"])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (pa.string(), "must hold numbers, arrays of numbers or vectors. Received: T .*StringIndexer"),
        (pa.list_(pa.string()), "must hold numbers, .* Received: T .*StringIndexer"),
        (pa.date32(), "must hold numbers, arrays of numbers or vectors. Received: T$"),
        (pa.struct([("a", pa.int8())]), "must hold numbers, arrays of numbers or vectors. Received: T$"),
        (None, "must hold numbers, arrays of numbers or vectors. Received: T$"),
        (pa.float32(), "must hold 2 finite numbers in every row .*Received: T, 1 a row"),
        (pa.list_(pa.float32(), 3), "must hold 2 finite numbers in every row .*Received: T, 3 a row"),
        (pa.list_(pa.list_(pa.float32(), 2), 2), "must hold 2 finite .*Received: T, 4 a row"),
    ],
    ids=str,
)
def test_types_that_cannot_fit_are_refused(kind, message):
    with pytest.raises(DataError, match=f"column 'x' {message}"):
        check_type(PAIR, kind, "T")


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.bool_()), pa.list_(pa.int8(), 2), pa.binary(), VECTOR, pa.list_(pa.list_(pa.float32()))],
)
def test_types_that_may_fit_pass(kind):
    check_type(PAIR, kind, "shown")
