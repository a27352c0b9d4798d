"""What is checked on the driver before anything is launched."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from hvdkeras.algorithm import Algorithm, Mode
from hvdkeras.data import sources
from hvdkeras.driver.configuration import Configuration
from hvdkeras.launch import environment
from hvdkeras.models import schema
from hvdkeras.models.compiled import compiled_with
from hvdkeras.models.optimizers import check_accumulation
from hvdkeras.models.recipe import Recipe

logger = logging.getLogger("hvdkeras")


def number_of_workers(wanted: int | None, default: int = 2) -> int:
    """Returns how many ranks train.

    Args:
        wanted: what the user asked for; None for all ranks of the job that this process is in, or `default`.
        default: see `wanted`.

    Raises:
        ValueError: the job has fewer ranks.
    """
    job = environment.job()
    number = wanted or (job.size if job else default)
    if job and number > job.size:
        raise ValueError(
            "num_workers must be at most the number of ranks of the job that the script runs in, "
            f"{job.size}. Received: {number}"
        )
    return number


def check_request(configuration: Configuration, validation_data: Any, resume: bool) -> None:
    """Raises ValueError where arguments of `train` and of the trainer contradict each other."""
    if validation_data is not None and configuration.holds_rows_out:
        raise ValueError(
            "validation_data must be left out where validation_split or validation_indicator_col is given. "
            f"Received: validation_split={configuration.validation_split}, "
            f"validation_indicator_col={configuration.validation_indicator_col!r}"
        )
    if configuration.stop_at and validation_data is None and not configuration.holds_rows_out:
        raise ValueError(
            "stop_at needs validation_split, validation_indicator_col or validation_data. Received: none"
        )
    if configuration.max_restarts and environment.job():
        raise ValueError(
            "max_restarts must be 0 in a script that runs under mpirun or horovodrun: start it again with "
            f"resume=True. Received: {configuration.max_restarts}"
        )
    if configuration.checkpoint is None and resume:
        raise ValueError("resume needs checkpoint. Received: checkpoint=None")


def check_center(configuration: Configuration, algorithm: Algorithm) -> None:
    """Raises ValueError where arguments of the center don't fit the algorithm's mode."""
    if configuration.center_sharded is not None and algorithm.mode is not Mode.ASYNCHRONOUS:
        raise ValueError(
            f"center_sharded must be left out for {type(algorithm).__name__}: only an asynchronous algorithm "
            f"has its center in one place. Received: {configuration.center_sharded}"
        )
    if configuration.exchange_dtype is not None and algorithm.mode not in (
        Mode.SYNCHRONOUS,
        Mode.ASYNCHRONOUS,
    ):
        raise ValueError(
            f"exchange_dtype must be left out for {type(algorithm).__name__}: only ranks that exchange "
            "weights can convert them (SynchronousSGD has compression). "
            f"Received: {configuration.exchange_dtype!r}"
        )


def check_store(configuration: Configuration, data: Any) -> None:
    """Raises ValueError where the ranks could not read what Spark's executors write of the data."""
    if sources.is_dataframe(data) and not sources.has_executors(data) and configuration.store is None:
        raise ValueError(
            "store must be a folder or URL that this machine and the executors see, for a DataFrame of Spark "
            "Connect: the executors write its rows there. The ranks run on this machine, because Connect has "
            "no SparkContext, with which they are launched on executors. Received: store=None"
        )


def checked_recipe(configuration: Configuration, algorithm: Algorithm) -> tuple[Recipe, Any]:
    """Returns the recipe of the model, and the copy that the driver has made, on the CPU, as ranks will.

    Raises:
        ValueError: the names of columns are not those that the model needs, or the ranks could not rebuild or
            compile the model, or would train another one.
    """
    import tensorflow as tf

    schema.input_columns(configuration.keras_model, configuration.features_col)
    configuration.targets()
    # A GPU belongs to a rank.
    with tf.device("/CPU:0"):
        recipe, copy = configuration.recipe_with_copy()
    own_rate = getattr(recipe.optimizer, "learning_rate", None)
    if not configuration.names_its_optimizer and configuration.is_given("learning_rate"):
        _warn_of_rate(own_rate, configuration.learning_rate)
    accumulation = algorithm.gradient_averaging.accumulation
    if algorithm.mode is Mode.GRADIENTS and accumulation > 1:
        check_accumulation(copy, accumulation)
    return recipe, copy


def check_moving_average(recipe: Recipe, algorithm: Algorithm, swaps: Sequence[Any]) -> None:
    """Raises ValueError where a moving average of weights, `use_ema=True`, would not be that of the result.

    Args:
        recipe: the model, and its optimizer.
        algorithm: what trains it.
        swaps: the SwapEMAWeights among the callbacks.
    """
    name = type(algorithm).__name__
    if algorithm.mode.has_center and recipe.uses_moving_average:
        raise ValueError(
            f"worker_optimizer must be without use_ema for {name}: each rank would average its own weights, "
            "which exchanges change, and the result is the center, which has no moving average. "
            "SynchronousSGD and SingleTrainer keep one, as Keras. Received: use_ema=True"
        )
    if swaps and not recipe.uses_moving_average:
        raise ValueError(
            "callbacks must not hold SwapEMAWeights unless the optimizer has use_ema=True. "
            f"Received: {swaps[0]!r}, use_ema=False"
        )


def _warn_of_rate(own: float | None, learning_rate: float) -> None:
    """Warns where `learning_rate` is not that of the optimizer, which was given as an object."""
    if own is not None and not np.isclose(own, learning_rate):
        logger.warning(
            "learning_rate does not change worker_optimizer, which was given with a rate of its own, %g: "
            "set it there, or give the optimizer's name. Received: learning_rate=%g",
            own,
            learning_rate,
        )


def check_window(algorithm: Algorithm, steps: int) -> None:
    """Warns where the communication window is longer than an epoch of `steps` batches."""
    window = algorithm.communication_window or 0
    if algorithm.mode is not Mode.INDEPENDENT and _warns_here() and window > steps:
        logger.warning(
            "communication_window should be at most the %d batches of an epoch: a window ends with its "
            "epoch. Received: %d",
            steps,
            window,
        )


def check_compilation(model: Any, algorithm: Algorithm, sparse: bool) -> None:
    """Warns where a model that is compiled with `jit_compile=True` will train without XLA.

    Args:
        model: the user's model.
        algorithm: what trains it.
        sparse: whether the model takes sparse tensors.
    """
    if sparse:
        reason = "XLA has no sparse tensors"
    elif algorithm.mode is Mode.GRADIENTS:
        reason = f"{type(algorithm).__name__} sums gradients by MPI, which XLA can't call"
    else:
        return
    if compiled_with(model).get("jit_compile") and _warns_here():
        logger.warning("keras_model trains without XLA: %s. Received: jit_compile=True", reason)


def _warns_here() -> bool:
    """Whether this process is the driver, or rank 0 of a running job."""
    job = environment.job()
    return job is None or job.rank == 0
