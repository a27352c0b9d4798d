"""The state of a rank in a checkpoint, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hvdkeras.algorithm import State
from hvdkeras.checkpoint.folder import CheckpointFolder, WrittenFile, rank_file
from hvdkeras.history.records import MEASURED, RankHistory

_RULE = "rule"


@dataclass
class RankState:
    """All that a rank needs to resume its training.

    Attributes:
        epoch: the epoch under way, from 0.
        step: batches of it that are done.
        windows: communication windows that are done, of all epochs.
        variables: the values of `model`, `optimizer` and `more` (further variables that the training depends
            on), each in the order in which Keras lists them.
        rule_state: what the algorithm keeps from exchange to exchange; None before the first one.
        history: what the rank has recorded.
        learning_rate_factor: what the optimizer's learning rate is multiplied by.
        running_logs: the logs of the epoch under way.
    """

    epoch: int
    step: int
    windows: int
    variables: dict[str, list[np.ndarray]]
    rule_state: State | None
    history: RankHistory
    learning_rate_factor: float
    running_logs: dict[str, float]

    def write(self, folder: CheckpointFolder, number: int, rank: int) -> list[WrittenFile]:
        """Writes this rank's files of a checkpoint.

        Raises:
            TypeError: the rule's state is not a dict of arrays and numbers.
        """
        arrays = {
            f"{group}/{index}": value
            for group, values in self.variables.items()
            for index, value in enumerate(values)
        }
        info = {
            "epoch": self.epoch,
            "step": self.step,
            "windows": self.windows,
            "history": asdict(self.history),
            "learning_rate_factor": self.learning_rate_factor,
            "running_logs": self.running_logs,
            "has_rule_state": self.rule_state is not None,
        }
        arrays.update(_rule_arrays(self.rule_state or {}))
        return [
            folder.write_arrays(number, f"{rank_file(rank)}.npz", arrays),
            folder.write_json(number, f"{rank_file(rank)}.json", info),
        ]

    @classmethod
    def read(cls, folder: CheckpointFolder, number: int, rank: int) -> RankState:
        """Returns what `write` was given."""
        arrays = folder.read_arrays(number, f"{rank_file(rank)}.npz")
        info = folder.read_json(number, f"{rank_file(rank)}.json")
        variables: dict[str, list[np.ndarray]] = {}
        rule_state: dict[str, Any] = {}
        # The arrays are in the order in which they were written.
        for key, value in arrays.items():
            group, name = key.split("/", 1)
            if group == _RULE:
                rule_state[name] = value if value.ndim else value.item()
            else:
                variables.setdefault(group, []).append(value)
        history = RankHistory(**info.pop("history"))
        history.events = [tuple(event) for event in history.events]
        has_rule_state = info.pop("has_rule_state")
        return cls(
            variables=variables, rule_state=rule_state if has_rule_state else None, history=history, **info
        )


def blended(states: Sequence[RankState], own: RankState, rows: int) -> RankState:
    """Returns the state of a rank that resumes with another number of ranks.

    Float variables get the mean of the ranks' values, the optimizer's counters the largest; other integers,
    such as the states of random layers, stay this rank's own. The epoch of the slowest rank begins anew,
    and so does the rule's state.

    Args:
        states: of all ranks that wrote the checkpoint.
        own: of this rank at the start of a training.
        rows: rows of this rank in an epoch.
    """
    variables = dict(own.variables)
    for group in ("model", "optimizer"):
        columns = zip(*(state.variables.get(group, []) for state in states), strict=True)
        variables[group] = [
            _blend(np.array(values), mine, counts=group == "optimizer")
            for values, mine in zip(columns, own.variables.get(group, []), strict=True)
        ]
    epoch = min(state.epoch for state in states)
    return RankState(
        epoch=epoch,
        step=0,
        windows=max(state.windows for state in states),
        variables=variables,
        rule_state=None,
        history=_mean_history([state.history for state in states], own.history, epoch, rows),
        learning_rate_factor=states[0].learning_rate_factor,
        running_logs={},
    )


def _blend(values: np.ndarray, mine: np.ndarray, counts: bool) -> np.ndarray:
    if values.dtype.kind == "f":
        return values.mean(axis=0)
    return values.max(axis=0) if counts else mine


def _mean_history(histories: Sequence[RankHistory], own: RankHistory, epochs: int, rows: int) -> RankHistory:
    """The means of the former ranks' epochs as the past of a new rank."""
    names = {name for history in histories for name in history.metrics}
    past = RankHistory(own.rank, own.host, own.device, member=own.member)
    past.metrics = {
        name: np.mean([history.metrics[name][:epochs] for history in histories], axis=0).tolist()
        for name in sorted(names)
    }
    past.seconds = {
        name: np.mean([history.seconds[name][:epochs] for history in histories], axis=0).tolist()
        for name in own.seconds
    }
    for name in MEASURED:
        values = np.mean([getattr(history, name)[:epochs] for history in histories], axis=0)
        setattr(past, name, values.tolist())
    past.rows = [rows] * epochs
    return past


def _rule_arrays(state: State) -> dict[str, np.ndarray]:
    if not isinstance(state, dict):
        raise TypeError(
            f"a rule's state must be a dict of arrays and numbers by name. Received: {type(state).__name__}"
        )
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray | np.generic | int | float):
            raise TypeError(
                "a rule's state must be a dict of arrays and numbers by name. "
                f"Received: {name!r}: {type(value).__name__}"
            )
    return {f"{_RULE}/{name}": np.asarray(value) for name, value in state.items()}
