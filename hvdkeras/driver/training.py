"""A training from the user's call to its result: check, lay out the data, launch, put the result together."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

from hvdkeras.algorithm import Algorithm, Mode
from hvdkeras.data import sources
from hvdkeras.data.shards import Shards
from hvdkeras.data.split import MarkedSplit, Split
from hvdkeras.driver import checks, layout
from hvdkeras.driver.callbacks import Divided, check_monitors, divided
from hvdkeras.driver.checkpoints import check_checkpoints, warn_of_changes
from hvdkeras.driver.configuration import Configuration
from hvdkeras.driver.inputs import build_from_data, check_batches, take_batch_size
from hvdkeras.driver.launching import launch
from hvdkeras.driver.trial import kept_random_state, try_out
from hvdkeras.history import History, timeline
from hvdkeras.launch import executors, local
from hvdkeras.launch.standing import StandingRanks
from hvdkeras.models import targets, vector
from hvdkeras.models.recipe import Recipe
from hvdkeras.models.structure import structures
from hvdkeras.rank.worker import Result
from hvdkeras.spec import CheckpointSpec, DataSpec, EnsembleSpec, OversightSpec, TrainingSpec

logger = logging.getLogger("hvdkeras")

# Checks and models change the state of the process: Keras's scopes, its random numbers and NumPy's.
_preparing = threading.Lock()


@dataclass(frozen=True)
class Request:
    """One call of `train`.

    Attributes:
        data: what to train on.
        shuffle: whether each epoch deals all rows out anew.
        validation_data: more data, to evaluate the center on; None without.
        resume: whether to resume from the newest intact checkpoint.
        ranks: those that train; None: they are launched for this training.
    """

    data: Any
    shuffle: bool
    validation_data: Any
    resume: bool
    ranks: StandingRanks | None


@dataclass(frozen=True)
class Outcome:
    """The result of a training.

    Attributes:
        models: the trained models, compiled: one, or an ensemble's members.
        history: what happened.
        recipe: how the models are made and compiled.
    """

    models: list[Any]
    history: History
    recipe: Recipe


def _one_thread_prepares(work: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Lets one thread at a time do a training's work on the driver, but for `_others_prepare`."""

    @wraps(work)
    def locked(*args: Any, **kwargs: Any) -> Outcome:
        with _preparing:
            return work(*args, **kwargs)

    return locked


@_one_thread_prepares
def train(
    configuration: Configuration,
    algorithm: Algorithm,
    ensemble: EnsembleSpec | None,
    num_workers: int,
    request: Request,
    finish: Callable[[Outcome], Any],
    on_message: Callable[[int, Any], None],
) -> Outcome:
    """Trains copies of the model.

    Args:
        configuration: what the user asks for.
        algorithm: as it travels to the ranks.
        ensemble: what to train instead of one model.
        num_workers: ranks that train.
        request: the user's call.
        finish: what is done with the outcome. It is tried before the launch, with models that did not train.
        on_message: as of `launch`.

    Raises:
        ValueError: an argument, a column or the data does not fit; nothing was launched then.
        TrainingError: a rank failed.
    """
    started = time.monotonic()
    on_spark = sources.has_executors(request.data)
    if on_spark and request.ranks is None:
        executors.ask(request.data.sparkSession.sparkContext, num_workers)
    checks.check_request(configuration, request.validation_data, request.resume)
    checks.check_center(configuration, algorithm)
    for data in (request.data, request.validation_data):
        checks.check_store(configuration, data)
    build_from_data(configuration, request.data)
    take_batch_size(configuration)
    callbacks = divided(configuration.callbacks, configuration.center_callbacks)
    is_evaluated = request.validation_data is not None or configuration.holds_rows_out
    check_monitors(callbacks.center, is_evaluated)
    with kept_random_state():
        recipe, copy = checks.checked_recipe(configuration, algorithm)
        checks.check_moving_average(recipe, algorithm, callbacks.swaps)
        count = min(2, ensemble.members if ensemble else 1)
        # No name keeps these models: they are not to take memory beside those that are trained.
        finish(Outcome([recipe.build() for _ in range(count)], History([], 0.0, 0), recipe))
    if configuration.checkpoint is not None:
        name = type(algorithm).__name__
        made_of = structures(recipe)
        local.once(check_checkpoints, configuration.checkpoint, name, made_of, request.resume)
    if configuration.timeline is not None:
        local.once(timeline.check, configuration.timeline)
    with (
        layout.laid_out(configuration, request.data) as written,
        layout.optionally_laid_out(configuration, request.validation_data) as validation,
    ):
        shards, split = layout.split(configuration, written)
        rows = shards.rows if split is None else split.training_rows
        shards.check_rows(num_workers, rows)
        check_batches(configuration, recipe, *_dealt(num_workers, ensemble, rows, split, validation))
        checks.check_window(algorithm, steps=-(-rows // (num_workers * configuration.batch_size)))
        data = _data_spec(configuration, shards, split, validation, request.shuffle)
        checks.check_compilation(configuration.keras_model, algorithm, bool(data.batch.sparse))
        local.once(try_out, copy, data, algorithm.mode is Mode.GRADIENTS)
        del copy
        spec = TrainingSpec(
            algorithm=algorithm,
            recipe=recipe.lent(),
            data=data,
            oversight=_oversight_spec(configuration, callbacks),
            checkpoint=_checkpoint_spec(configuration, request.resume),
            ensemble=ensemble,
            num_workers=num_workers,
            num_epoch=configuration.num_epoch,
            threads=configuration.threads,
            timeout=configuration.timeout,
            center_sharded=configuration.center_sharded,
            exchange_dtype=configuration.exchange_dtype,
        )
        if configuration.checkpoint is not None and request.resume:
            order = data.order(algorithm.communication_window)
            size = None if ensemble else num_workers
            local.once(warn_of_changes, configuration.checkpoint, order, size, configuration.num_epoch)
        with _others_prepare():
            results, restarts = launch(configuration, spec, on_spark, request.ranks, on_message)
    history = _history(results, time.monotonic() - started, shards.rows, restarts)
    if configuration.timeline is not None:
        _write_timeline(history, configuration.timeline)
    return Outcome(_models(recipe, results[0]), history, recipe)


@contextmanager
def _others_prepare() -> Iterator[None]:
    """Lets other threads prepare their trainings while the ranks of this one train."""
    _preparing.release()
    try:
        yield
    finally:
        _preparing.acquire()


def _dealt(
    num_workers: int,
    ensemble: EnsembleSpec | None,
    rows: int,
    split: Split | MarkedSplit | None,
    validation: Shards | None,
) -> tuple[dict[str, int], dict[str, int]]:
    """The numbers of rows that are trained and evaluated on, and into how many parts they are dealt."""
    counts, parts = {"training": rows}, {"training": num_workers, "validation": num_workers}
    if ensemble is not None:
        parts = {"training": ensemble.members if ensemble.partition else 1, "validation": 1}
    if validation is not None:
        counts["validation"] = validation.rows
    elif split is not None:
        counts["validation"] = split.validation_rows
    return counts, parts


def _data_spec(
    configuration: Configuration,
    shards: Shards,
    split: Split | MarkedSplit | None,
    validation: Shards | None,
    shuffle: bool,
) -> DataSpec:
    return DataSpec(
        shards=shards,
        validation=validation,
        split=split,
        batch_size=configuration.batch_size,
        seed=configuration.seed,
        shuffle=shuffle,
        decode=configuration.decode,
        class_weight=configuration.class_weight,
        batch=targets.batch(configuration.keras_model, configuration.targets()),
    )


def _oversight_spec(configuration: Configuration, callbacks: Divided) -> OversightSpec:
    return OversightSpec(
        callbacks=callbacks.ranks,
        center_callbacks=callbacks.center,
        evaluates_average=bool(callbacks.swaps),
        keeps_average=any(swap.swap_on_epoch for swap in callbacks.swaps),
        center_window=configuration.center_window,
        stop_at=configuration.stop_at,
        tensorboard=configuration.tensorboard,
        keeps_events=configuration.timeline is not None,
        verbose=configuration.verbose,
    )


def _checkpoint_spec(configuration: Configuration, resume: bool) -> CheckpointSpec | None:
    if configuration.checkpoint is None:
        return None
    return CheckpointSpec(
        url=configuration.checkpoint,
        minutes=configuration.checkpoint_minutes,
        kept=configuration.checkpoints_kept,
        resume=resume,
    )


def _history(results: list[Result], seconds: float, rows: int, restarts: list[str]) -> History:
    ranks = [history for result in results for history in result.histories]
    evaluations = [evaluation for result in results for evaluation in result.evaluations]
    return History(
        sorted(ranks, key=lambda history: (history.member, history.rank)),
        seconds,
        rows,
        sorted(evaluations, key=lambda evaluation: (evaluation.member, evaluation.seconds)),
        restarts,
        [line for result in results for line in result.skipped_checkpoints],
    )


def _write_timeline(history: History, path: str) -> None:
    """Writes the timeline; an error must not cost the model that was trained."""
    try:
        local.once(history.timeline, path)
    except Exception:
        logger.warning("the timeline was not written: history.timeline(path) does it", exc_info=True)


def _models(recipe: Recipe, result: Result) -> list[Any]:
    """Models of this process with the weights that the ranks trained."""
    models = []
    for weights, statistics in zip(result.weights, result.statistics, strict=True):
        model = recipe.build()
        vector.assign(model.trainable_variables, weights)
        vector.assign(vector.averaged_variables(model), statistics)
        if result.rest is not None:
            result.rest.give(model)
        models.append(model)
    return models
