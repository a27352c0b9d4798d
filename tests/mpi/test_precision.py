"""Models that compute in half precision; their variables, and what ranks exchange, are float32."""

import numpy as np
import pytest

import digits

pytestmark = pytest.mark.mpi


def train(policy: str, algorithm: str, num_workers: int) -> tuple[float, str, list[str]]:
    import keras

    import hvdkeras

    keras.mixed_precision.set_global_policy(policy)
    model = digits.model()
    keras.mixed_precision.set_global_policy("float32")
    used = getattr(hvdkeras, algorithm)(
        model,
        **{**digits.LEARN, "num_epoch": 10},
        num_workers=num_workers,
        worker_optimizer=keras.optimizers.Adam(),
        rho=1.0,
    )
    learn, held_out = digits.data()
    trained = used.train(learn)
    return (
        digits.accuracy(trained, held_out),
        type(trained.optimizer).__name__,
        trained.layers[0].compute_dtype,
    )


@pytest.mark.parametrize(
    ("policy", "optimizer", "dtype"),
    [("mixed_bfloat16", "Adam", "bfloat16"), ("mixed_float16", "LossScaleOptimizer", "float16")],
)
def test_ranks_train_at_the_models_precision(on_new_ranks, policy, optimizer, dtype):
    for accuracy, kind, computed in on_new_ranks(2, train, policy, "EASGD", 2):
        assert accuracy > 0.9
        assert (kind, computed) == (optimizer, dtype)


def overflow() -> list[float]:
    """The scale after a step whose scaled gradients are infinite, and the weight, which is as before."""
    import keras

    import hvdkeras

    keras.mixed_precision.set_global_policy("mixed_float16")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
    keras.mixed_precision.set_global_policy("float32")
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**30)
    scales = []

    class Scale(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            scales.append(float(self.model.optimizer.dynamic_scale))

    used = hvdkeras.SynchronousSGD(
        model,
        worker_optimizer=scaled,
        loss="mse",
        batch_size=1,
        num_workers=2,
        callbacks=[Scale()],
        verbose=0,
    )
    trained = used.train({"features": np.full((2, 1), 100.0, np.float32), "label": np.zeros(2, np.float32)})
    return scales, float(trained.get_weights()[0][0, 0])


def test_gradients_that_overflow_are_left_out_and_the_scale_falls_on_all_ranks(on_new_ranks):
    assert on_new_ranks(2, overflow) == [([2.0**29], 1.0)] * 2
