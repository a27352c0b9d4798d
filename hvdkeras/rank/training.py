"""The training of one model on this rank, from its rows to its result."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from hvdkeras.algorithm import Mode, settles
from hvdkeras.callbacks.distance import Distance
from hvdkeras.callbacks.events import Events
from hvdkeras.callbacks.exchange import Exchange
from hvdkeras.callbacks.feed import Feed
from hvdkeras.callbacks.load import CenterLoad
from hvdkeras.callbacks.progress import ProgressSender
from hvdkeras.callbacks.recording import HistoryRecorder
from hvdkeras.callbacks.row_exchange import RowExchange
from hvdkeras.callbacks.trained_weights import TrainedWeights
from hvdkeras.center import placement
from hvdkeras.center.contents import Contents
from hvdkeras.center.replicated import ReplicatedCenter
from hvdkeras.center.tables import TableCenter
from hvdkeras.center.window import WindowCenter
from hvdkeras.checkpoint.folder import CheckpointFolder, WrittenFile
from hvdkeras.coordination.evaluation import CenterModel
from hvdkeras.data.decoding import DecodedRows
from hvdkeras.data.rows import Rows
from hvdkeras.history.records import Evaluation, RankHistory
from hvdkeras.launch import rank
from hvdkeras.models import schema
from hvdkeras.models.optimizers import uses_moving_average
from hvdkeras.models.rest import Rest
from hvdkeras.models.tables import tables_of
from hvdkeras.models.touched import RowWeights
from hvdkeras.mpi.collectives import broadcast, mean
from hvdkeras.rank import gradients, resuming
from hvdkeras.rank.agreement import check_agreement
from hvdkeras.rank.oversight import Oversight, tensorboard
from hvdkeras.rank.place import Place
from hvdkeras.rank.rank_data import RankData
from hvdkeras.rank.replica import Replica
from hvdkeras.rank.sums import OverHorovod, OverMPI
from hvdkeras.spec import TrainingSpec


@dataclass
class Trained:
    """What a rank has of a training; the weights of rank 0 are the result.

    Attributes:
        weights: the trainable weights, shape `(n,)`.
        statistics: the averaged variables, shape `(m,)`.
        evaluations: the evaluations of the center; empty except at rank 0.
        skipped_checkpoints: damaged checkpoints that were not resumed from, a line each, at rank 0.
        rest: what the model holds beside these.
    """

    weights: np.ndarray
    statistics: np.ndarray
    evaluations: list[Evaluation]
    skipped_checkpoints: tuple[str, ...]
    rest: Rest


def train(spec: TrainingSpec, place: Place, history: RankHistory) -> Trained:
    """Trains one model, together with the ranks of `place.comm`, which all call this.

    Args:
        spec: the training.
        place: this rank.
        history: where the training is recorded.
    """
    data = RankData(spec.data, place, spec.ensemble)
    rows, steps = data.training, _window_steps(spec, data.training)
    replica, sums = _replica(spec, place, rows, history, steps)
    if not spec.has_rounds:
        _release(spec, place)
    folder = _checkpoint_folder(spec, place)
    order = spec.data.order(spec.algorithm.communication_window)
    start = resuming.start(spec, place, folder, replica, order)
    with _center(spec, place, replica, start.center, steps) as center:
        exchange = _exchange(spec, replica, center, start)
        counted = center or sums
        recorder = HistoryRecorder(
            history, replica.position, counted, spec.oversight.verbose, start.running_logs
        )
        callbacks = [*spec.oversight.callbacks, *tensorboard(spec.oversight.tensorboard, place.log_name)]
        oversight = None
        if spec.has_rounds:

            def save(number: int) -> list[WrittenFile]:
                rule_state = exchange.state if exchange else None
                state = replica.state(rule_state, recorder.running_logs())
                return state.write(folder, number, place.comm.rank)

            model = spec.recipe.build(steps_per_execution=steps)
            _release(spec, place)
            center_model = _center_model(spec, place, data, model)
            if start.center is not None:
                center_model.load(start.center.center, start.statistics)
            contents = center.contents if center else lambda: _own_contents(replica)
            oversight = Oversight(spec, place, replica, center_model, contents)
            facts = {"algorithm": type(spec.algorithm).__name__, "order": order}
            callbacks = oversight.callbacks(callbacks, folder, save, start, facts)
        measures = _measures(spec, replica, exchange, counted)
        is_over = bool(start.manifest.get("stopped"))
        final = _fit(spec, replica, rows, [*measures, recorder, *callbacks], is_over)
        weights, statistics = _result(spec, place, replica, center, oversight, final)
        history.telemetry.update(counted.telemetry if counted else {})
    evaluations = oversight.evaluations if oversight else []
    return Trained(weights, statistics, evaluations, start.skipped, Rest.of(replica.model))


def _center_model(spec: TrainingSpec, place: Place, data: RankData, model: Any) -> CenterModel:
    """The center as a model, evaluated by all ranks, or by rank 0 alone where totals do not add up."""
    training = Feed(data.training, spec.data.batch)
    center = CenterModel(model, data.validation_feed(), training)
    if place.comm.size == 1 or not (spec.data.is_evaluated and center.has_own_metrics):
        return center
    adds_up = np.array([place.comm.rank > 0 or center.adds_up()])
    if broadcast(place.comm, adds_up, spec.timeout, "rank 0 to try the metrics")[0]:
        return center
    return CenterModel(model, data.validation_feed(alone=True), training)


def _window_steps(spec: TrainingSpec, rows: Rows | DecodedRows) -> int:
    return min(spec.algorithm.communication_window or rows.steps, rows.steps)


def _replica(
    spec: TrainingSpec, place: Place, rows: Rows | DecodedRows, history: RankHistory, steps: int
) -> tuple[Replica, OverMPI | OverHorovod | None]:
    """The compiled model, its random layers seeded by rank; an ensemble's with initial weights of its own.

    The sums are those of gradients, where ranks average them.
    """
    algorithm = spec.algorithm
    keras.utils.set_random_seed(spec.data.seed + place.number)
    model = spec.recipe.build(steps, rank=place.number, fresh=place.member is not None)
    more, sums = [], None
    if algorithm.mode is Mode.GRADIENTS:
        more, sums = gradients.average(model, rows, place.comm, algorithm.gradient_averaging, spec.timeout)
    size = place.comm.size
    replica = Replica(model, rows, history, more, lambda epochs: algorithm.learning_rate_factor(epochs, size))
    return replica, sums


def _release(spec: TrainingSpec, place: Place) -> None:
    """Frees the weights that came with the specification, unless more members are built of them."""
    if place.member is None:
        spec.recipe.release()


def _checkpoint_folder(spec: TrainingSpec, place: Place) -> CheckpointFolder | None:
    if spec.checkpoint is None:
        return None
    folder = CheckpointFolder(spec.checkpoint.url)
    return folder if place.member is None else folder.subfolder(f"model-{place.member:03d}")


@contextlib.contextmanager
def _center(
    spec: TrainingSpec, place: Place, replica: Replica, resumed: Contents | None, steps: int
) -> Iterator[Any]:
    """The center of the algorithm's mode, freed at the end; None where ranks don't exchange weights."""
    if not spec.algorithm.mode.has_center:
        yield None
        return
    center = _made_center(spec, place, replica, resumed or _own_contents(replica), steps)
    yield center
    # Not after an exception: the other ranks don't answer then, and the launcher ends all.
    center.free()


def _made_center(spec: TrainingSpec, place: Place, replica: Replica, first: Contents, steps: int) -> Any:
    algorithm, comm, half = spec.algorithm, place.comm, spec.exchange_dtype
    if half is not None:
        placement.log_conversion(comm, half)
    if algorithm.mode is Mode.SYNCHRONOUS:
        return ReplicatedCenter(comm, first.center, spec.timeout, half)
    slots = first.slots if len(first.slots) else algorithm.center_slots
    demand = placement.Demand(first.center.size, 1 + algorithm.center_slots, steps, half)
    with rank.limit(spec.timeout, f"all {comm.size} ranks to make the center"):
        layout = tables_of(replica.model)
        if layout.tables and settles(algorithm) and not spec.center_sharded:
            return TableCenter(comm, first.center, layout, slots, spec.timeout, half)
        sharded = placement.decide(comm, demand, spec.center_sharded, spec.timeout)
        return WindowCenter(comm, first.center, slots, sharded, spec.timeout, half)


def _own_contents(replica: Replica) -> Contents:
    """A center that is this rank's own weights."""
    weights = replica.weights.read()
    return Contents(weights, np.empty((0, weights.size), np.float32))


def _exchange(spec: TrainingSpec, replica: Replica, center: Any, start: resuming.Start) -> Exchange | None:
    if center is None:
        return None
    state = spec.algorithm.begin(center.pull()) if start.rule_state is None else start.rule_state
    if isinstance(center, TableCenter):
        weights = RowWeights(replica.model.trainable_variables, replica.weights, center.layout)
        return RowExchange(spec.algorithm, center, weights, replica.position, state)
    return Exchange(spec.algorithm, center, replica.weights, replica.position, state)


def _measures(spec: TrainingSpec, replica: Replica, exchange: Exchange | None, counted: Any) -> list[Any]:
    """The exchange, between the callbacks that measure around it, in the order in which they must run."""
    position, history = replica.position, replica.history
    callbacks: list[Any] = []
    if exchange is not None:
        callbacks += [Distance(history, exchange.distance, position), exchange]
    if isinstance(counted, WindowCenter | TableCenter) and not counted.sharded:
        callbacks.append(CenterLoad(history, counted))
    if spec.oversight.keeps_events:
        callbacks.append(Events(history, counted))
    if spec.oversight.verbose:
        callbacks.append(ProgressSender(history.member, position))
    return callbacks


def _fit(
    spec: TrainingSpec, replica: Replica, rows: Rows | DecodedRows, callbacks: list[Any], is_over: bool
) -> np.ndarray | None:
    """Trains; returns the moving average of the weights, where the optimizer keeps one."""
    trained = TrainedWeights(replica.weights)
    keeps_average = uses_moving_average(replica.model.optimizer)
    if keeps_average:
        callbacks = [*callbacks, trained]
    epochs, position, model = spec.num_epoch, replica.position, replica.model
    feed = Feed(rows, spec.data.batch, position.epoch, position.first_step)
    if spec.data.batch.sparse:
        # XLA has no sparse tensors.
        model.jit_compile = False
    with warnings.catch_warnings():
        # Keras does not know that a resumed epoch is shorter.
        warnings.filterwarnings("ignore", "Your input ran out of data")
        model.fit(
            feed.dataset(),
            initial_epoch=epochs if is_over else position.epoch,
            epochs=epochs,
            verbose=0,
            shuffle=False,
            class_weight=schema.class_weights(model, spec.data.class_weight, rows.columns),
            callbacks=keras.callbacks.CallbackList(
                [feed, position, replica.learning_rate, *callbacks],
                add_history=True,
                model=model,
                epochs=epochs,
                steps=position.steps,
                verbose=0,
                rank=replica.history.rank,
                num_workers=spec.num_workers,
            ),
        )
    if not keeps_average:
        return None
    # At its end `fit` puts the average in the weights' place. Rounds that follow concern those that trained.
    final = replica.weights.read()
    trained.restore()
    return final


def _result(
    spec: TrainingSpec,
    place: Place,
    replica: Replica,
    center: Any,
    oversight: Oversight | None,
    final: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The trained weights and averaged variables, once all ranks have contributed theirs."""
    _check_agreement(spec, place, replica, center)
    from_callbacks = oversight.finish(final) if oversight else None
    if spec.algorithm.mode is Mode.ASYNCHRONOUS:
        center.finish()
    if oversight:
        # Only rank 0's are the result.
        return from_callbacks or (replica.weights.read(), replica.statistics.read())
    weights = center.contents().center if center else replica.weights.read() if final is None else final
    what = "the averaged variables of the other ranks"
    return weights, mean(place.comm, replica.statistics.read(), spec.timeout, what)


def _check_agreement(spec: TrainingSpec, place: Place, replica: Replica, center: Any) -> None:
    """Compares what all ranks of a synchronous training must have in common."""
    if spec.algorithm.mode is Mode.SYNCHRONOUS:
        weights = center.contents().center
        check_agreement(place.comm, weights, spec.timeout, "the center's weights")
    elif spec.algorithm.mode is Mode.GRADIENTS:
        check_agreement(place.comm, replica.weights.read(), spec.timeout, "the model's weights")
