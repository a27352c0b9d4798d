"""Messages that show names or values fit on one screen, and have the nearest names."""

import keras
import numpy as np
import pytest

from hvdkeras import EASGD
from hvdkeras.data.columns import Column, DataError, check_names
from hvdkeras.data.conversion import Problem
from hvdkeras.data.parts import Outcome, Part, check_outcomes
from hvdkeras.data.raw import NULL
from hvdkeras.models import schema, targets
from hvdkeras.naming import did_you_mean, listed, shown

MANY = [f"feature_{number:04d}" for number in range(3000)]
SCREEN = 80 * 24


def a_model(inputs: int = 1) -> keras.Model:
    tensors = [keras.Input((1,), name=f"in_{number}") for number in range(inputs)]
    return keras.Model(tensors, keras.layers.concatenate(tensors) if inputs > 1 else tensors[0] + 0.0)


def test_a_misspelt_column_among_3000_gives_one_screen_with_the_nearest_names():
    with pytest.raises(DataError) as caught:
        check_names([Column("feture_1234", (), "float32")], MANY)
    message = str(caught.value)
    assert "Did you mean 'feature_1234'" in message
    assert message.endswith("feature_0007 and 2,992 more")
    assert len(message) < SCREEN / 2


@pytest.mark.parametrize(
    ("call", "near"),
    [
        (lambda: schema.input_columns(a_model(), MANY), "in_0"),
        (lambda: schema.input_columns(a_model(300), {"inn_200": "x"}), "Did you mean 'in_200'"),
        (lambda: targets.targets(a_model(), ["mse"] * 3000, "y", None), "3000 losses"),
        (lambda: EASGD(a_model(), loss="mse", decode=dict.fromkeys(MANY)), "3,000 elements"),
        (lambda: EASGD(a_model(), loss="mse", batch_size=MANY), "3,000 elements"),
        (lambda: EASGD(a_model(), loss="mse", output_col=[1, *MANY]), "3,001 elements"),
        (
            lambda: check_outcomes(
                [Column(name, (), "float32") for name in MANY],
                [Outcome(Part(9, ()), tuple((number, Problem(NULL, 9, 0)) for number in range(3000)))],
            ),
            "and 2,992 more",
        ),
    ],
)
def test_what_lists_names_or_values_is_bounded(call, near):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert near in str(caught.value)
    assert len(str(caught.value)) < SCREEN


def test_short_lists_and_values_are_shown_whole():
    assert listed(["a", "b"]) == "a, b"
    assert shown({"a": [1, None]}) == "{'a': [1, None]}"
    assert did_you_mean("LABEL", ["label", "x"]) == " Did you mean 'label'?"
    assert did_you_mean("zzz", ["label", "x"]) == ""
    assert len(shown(np.arange(10**6))) < SCREEN
    assert len(listed(["n" * 4000, "x"])) < 100
