"""Ranks' events in Chrome's trace-event format, which Perfetto reads as well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hvdkeras.data.store import open_text
from hvdkeras.history.records import RankHistory

MICROSECONDS = 1e6


def check(path: str) -> None:
    """Writes a timeline without events, so that what would fail after a training fails before it.

    Raises:
        ValueError: if the path can't be written to.
    """
    try:
        write(path, [])
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            "timeline must be a path, or a URL that pyarrow or fsspec opens, that can be written to. "
            f"Received: {path!r} ({error})"
        ) from error


def write(path: str, ranks: Sequence[RankHistory]) -> None:
    """Writes events as [trace events](https://perfetto.dev/docs/getting-started/other-formats).

    A rank is a process there, and each of its members of an ensemble a thread.

    Args:
        path: a path, or a URL that pyarrow or fsspec opens.
        ranks: what they did.
    """
    with open_text(path, "w", "timeline") as file:
        json.dump({"traceEvents": _trace(ranks), "displayTimeUnit": "ms"}, file)


def _trace(ranks: Sequence[RankHistory]) -> list[dict[str, Any]]:
    start = min((begin for rank in ranks for _, begin, _ in rank.events), default=0.0)
    names = [
        {
            "ph": "M",
            "name": "process_name",
            "pid": rank.rank,
            "args": {"name": f"rank {rank.rank} on {rank.host}, {rank.device}"},
        }
        for rank in {rank.rank: rank for rank in ranks}.values()
    ]
    events = [
        {
            "ph": "X",
            "name": name,
            "cat": "training",
            "pid": rank.rank,
            "tid": rank.member,
            "ts": (begin - start) * MICROSECONDS,
            "dur": seconds * MICROSECONDS,
        }
        for rank in ranks
        for name, begin, seconds in rank.events
    ]
    return names + events
