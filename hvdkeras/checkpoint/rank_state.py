"""Where a rank stands in its training, and all that it needs to go on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import keras
import numpy as np

from hvdkeras.checkpoint.folder import Checkpoints, rank_file
from hvdkeras.data.rows import Rows
from hvdkeras.history.records import MEASURED, RankHistory


class Position(keras.callbacks.Callback):
    """Counts epochs, batches and windows. It comes first: the rank's other callbacks ask it.

    Keras runs `steps_per_execution = communication_window` batches in one call and fires `on_train_batch_end`
    at its end, also when an epoch's rows end before the window does.

    Args:
        rows: the rank's rows.

    Attributes:
        epoch: the epoch under way, from 0.
        step: batches of it that are done.
        steps: batches of an epoch.
        rows: rows of an epoch.
        window_steps: batches of the newest window.
        windows: windows that are done, of all epochs.
        first_step: where the epoch under way began: 0, but for one that was resumed.
    """

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.epoch = self.step = self.window_steps = self.windows = 0
        self.steps, self.rows = rows.steps, rows.rows
        self._batch_ends = np.cumsum(rows.batch_sizes)
        self.first_step = 0

    def resume(self, epoch: int, step: int, windows: int) -> None:
        """Starts from where an earlier training was."""
        self.epoch, self.first_step, self.windows = epoch, step, windows

    @property
    def progress(self) -> float:
        """Epochs that are done, with the fraction of the one under way."""
        return self.epoch + self.step / self.steps

    @property
    def rows_done(self) -> int:
        """Rows of the epoch under way that are done."""
        return self._rows_until(self.step)

    @property
    def rows_before(self) -> int:
        """Rows of the epoch under way that were done before the training was interrupted."""
        return self._rows_until(self.first_step)

    def _rows_until(self, step: int) -> int:
        return int(self._batch_ends[step - 1]) if step else 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if epoch != self.epoch:
            self.first_step = 0
        self.epoch, self.step = epoch, self.first_step

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        # Keras counts the last window of an epoch as if it were a full one.
        step = min(self.first_step + batch + 1, self.steps)
        self.window_steps, self.step = step - self.step, step
        self.windows += 1


class Standing:
    """What a checkpoint holds of one rank.

    Args:
        model: the rank's compiled Keras model.
        position: where the rank is.
        history: what it has recorded so far.
        more: variables beyond the model's and its optimizer's that the training depends on.

    Attributes:
        rule_state: what the rule keeps from exchange to exchange.
        notes: whatever else JSON can hold.
    """

    def __init__(self, model: Any, position: Position, history: RankHistory, more: Sequence[Any]) -> None:
        self._position, self.history = position, history
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._groups = {"model": model.variables, "optimizer": model.optimizer.variables, "more": list(more)}
        self.rule_state: Any = None
        self.notes: dict[str, Any] = {}

    def save(self, checkpoints: Checkpoints, number: int, rank: int) -> None:
        """Writes this rank's files of a checkpoint."""
        arrays = {
            f"{group}/{index}": _array(variable)
            for group, variables in self._groups.items()
            for index, variable in enumerate(variables)
        }
        position = self._position
        epoch, step = divmod(position.epoch * position.steps + position.step, position.steps)
        info = {
            "epoch": epoch,
            "step": step,
            "windows": position.windows,
            "history": asdict(self.history),
            "notes": self.notes,
            "rule_state": encode(self.rule_state, arrays),
        }
        checkpoints.write_arrays(number, f"{rank_file(rank)}.npz", arrays)
        checkpoints.write_json(number, f"{rank_file(rank)}.json", info)

    def restore(self, checkpoints: Checkpoints, number: int, rank: int) -> None:
        """Goes back to where this rank stood."""
        arrays = checkpoints.read_arrays(number, f"{rank_file(rank)}.npz")
        info = checkpoints.read_json(number, f"{rank_file(rank)}.json")
        for group, variables in self._groups.items():
            for index, variable in enumerate(variables):
                variable.assign(arrays[f"{group}/{index}"])
        self._position.resume(info["epoch"], info["step"], info["windows"])
        here = ("rank", "host", "device")
        vars(self.history).update({key: past for key, past in info["history"].items() if key not in here})
        self.notes = info["notes"]
        self.rule_state = decode(info["rule_state"], arrays)

    def blend(self, checkpoints: Checkpoints, number: int, size: int) -> None:
        """Goes on from a checkpoint that another number of ranks wrote.

        Variables get the mean of the ranks' (counters the largest; random states stay this rank's own), and
        the epoch that the last of them was in begins anew. The rule begins anew from the center.
        """
        files = [rank_file(rank) for rank in range(size)]
        states = [checkpoints.read_arrays(number, f"{file}.npz") for file in files]
        infos = [checkpoints.read_json(number, f"{file}.json") for file in files]
        for group in ("model", "optimizer"):
            for index, variable in enumerate(self._groups[group]):
                values = np.array([arrays[f"{group}/{index}"] for arrays in states])
                if values.dtype.kind == "f":
                    variable.assign(values.mean(axis=0))
                elif group == "optimizer":
                    variable.assign(values.max(axis=0))
        epoch = min(info["epoch"] for info in infos)
        self._position.resume(epoch, 0, max(info["windows"] for info in infos))
        self.notes = {key: value for key, value in infos[0]["notes"].items() if key == "factor"}
        self._inherit([info["history"] for info in infos], epoch)

    def _inherit(self, histories: Sequence[Mapping[str, Any]], epochs: int) -> None:
        """Takes the former ranks' means as this rank's own past."""
        metrics = {key for history in histories for key in history["metrics"]}
        self.history.metrics = {
            key: np.mean([history["metrics"][key][:epochs] for history in histories], axis=0).tolist()
            for key in sorted(metrics)
        }
        self.history.seconds = {
            key: np.mean([history["seconds"][key][:epochs] for history in histories], axis=0).tolist()
            for key in self.history.seconds
        }
        for name in MEASURED:
            values = np.mean([history[name][:epochs] for history in histories], axis=0)
            setattr(self.history, name, values.tolist())
        self.history.rows = [self._position.rows] * epochs


def encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Returns a rule's state as JSON can hold it; its arrays are put into `arrays`.

    Raises:
        TypeError: the state holds something else than arrays, numbers, strings, lists, tuples and dicts.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        key = f"rule/{len(arrays)}"
        arrays[key] = np.asarray(value)
        return {"array": key}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [encode(item, arrays) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key, arrays), encode(item, arrays)] for key, item in value.items()]}
    raise TypeError(
        "a rule's state must consist of arrays, numbers, strings, lists, tuples and dicts to be kept in a "
        f"checkpoint. Received: {type(value).__name__}"
    )


def decode(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Returns what `encode` was given."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        return arrays[content]
    if kind == "dict":
        return {decode(key, arrays): decode(item, arrays) for key, item in content}
    return (tuple if kind == "tuple" else list)(decode(item, arrays) for item in content)


def _array(variable: Any) -> np.ndarray:
    array = keras.ops.convert_to_numpy(variable)
    # NumPy's files know no bfloat16; float32 holds all its values.
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
