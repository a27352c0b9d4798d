"""What a failing rank reports, the one error that a driver gets of it, and bounds for their texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# An error must stay readable, and a driver's log writable.
LONGEST = 50_000


class RankTimeoutError(TimeoutError):
    """A rank has waited in vain for another one, which is stuck or lost."""


@dataclass
class Failure:
    """What a rank said before it ended.

    Attributes:
        rank: the rank.
        traceback: its traceback as text.
        exitcode: the exit status, if it raised SystemExit.
        summary: the error's type and the first line of its message.
        waited: whether it gave up waiting for another rank, a `RankTimeoutError`.
        moment: when it came, by `time.monotonic`.
        heard: when anything of each connected rank had been heard last, at that moment.
    """

    rank: int
    traceback: str
    exitcode: int | None
    summary: str
    waited: bool = False
    moment: float = 0.0
    heard: Mapping[int, float] = field(default_factory=dict)


class TrainingError(RuntimeError):
    """A rank raised, exited or was killed, and the job has ended.

    Attributes:
        rank: the rank that failed first, or None where the job ended before any rank could be told.
        host: the name of its host, or None where it is not known.
        remote_traceback: its traceback as text, or None where the process died without raising.
        exitcode: the status that it exited with, or None.
        signal: the number of the signal that killed it, or None.
        waited: whether it gave up waiting for another rank, which is stuck or lost.
    """

    def __init__(
        self,
        message: str,
        *,
        rank: int | None = None,
        host: str | None = None,
        remote_traceback: str | None = None,
        exitcode: int | None = None,
        signal: int | None = None,
        waited: bool = False,
    ):
        super().__init__(message)
        self.rank = rank
        self.host = host
        self.remote_traceback = remote_traceback
        self.exitcode = exitcode
        self.signal = signal
        self.waited = waited

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (str(self), dict(vars(self)))


def _rebuild(message: str, attributes: dict[str, Any]) -> TrainingError:
    return TrainingError(message, **attributes)


def bounded(text: str, longest: int = LONGEST) -> str:
    """Leaves the middle of a text out where it has more characters than `longest`."""
    if len(text) <= longest:
        return text
    half = longest // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[... {left_out} characters left out ...]\n{text[-half:]}"
