"""What is made of a training's outcome: tried on the driver before anything is launched."""

import keras
import pytest

import hvdkeras


def model() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])


def test_a_predictor_that_can_not_be_made_is_known_before_the_training():
    trainer = hvdkeras.EASGD(model(), loss="mse", output_col=["a", "b"])
    with pytest.raises(ValueError, match="output_col must name one column for each of the model's 1 outputs"):
        trainer.fit(None)
