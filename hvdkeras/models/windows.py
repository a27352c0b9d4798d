"""Windows of steps that end with the data, for the versions of Keras that cannot end one so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# The first version of Keras whose own functions end a window with the data.
FIRST = (3, 7)


def end_with_the_data(model: Any) -> None:
    """Replaces a compiled model's functions of several steps where Keras's fail in the last, shorter window.

    Keras 3.5 and 3.6 always ask for `steps_per_execution` batches. Where the epoch has fewer left, the error
    at its end interrupts the function: the optimizer counts a step too many, and no callback is called.

    Args:
        model: the model, which `fit` and `evaluate` then do not make functions for.
    """
    import keras

    if model.steps_per_execution == 1 or tuple(map(int, keras.__version__.split(".")[:2])) >= FIRST:
        return
    # A step is looked up when it is traced: who joins ranks replaces it.
    model.train_function = _window(model, lambda batch: model.train_step(batch))
    model.test_function = _window(model, lambda batch: model.test_step(batch))


def _window(model: Any, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    import tensorflow as tf

    def steps(iterator: Any) -> Any:
        # The end of the data at the first batch is the end of the epoch, which Keras expects as an error.
        logs = step(iterator.get_next())
        for _ in tf.range(1, model.steps_per_execution):
            batch = iterator.get_next_as_optional()
            if batch.has_value():
                logs = step(batch.get_value())
        return logs

    step = tf.autograph.experimental.do_not_convert(step)
    if model.run_eagerly:
        return steps
    step = tf.function(step, jit_compile=model.jit_compile, reduce_retracing=True)
    return tf.function(steps, reduce_retracing=True)
