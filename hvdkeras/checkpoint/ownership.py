"""Which training writes into a folder of checkpoints: the one that began last.

A training puts its name into the folder when it begins, and looks for it before each checkpoint that it
writes. So a training that was taken for lost ends, instead of writing beside the one that was started in its
place. That needs neither a lock nor a clock, and holds on every store. Only a checkpoint that is completed in
the very moment in which another training begins still counts.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from hvdkeras.data import process
from hvdkeras.data.store import joined, open_text

NAME = "owner.json"


class Ownership:
    """A training's hold on a folder of checkpoints, from now on.

    Args:
        url: the folder, which exists.
    """

    def __init__(self, url: str) -> None:
        self._url, self._token = url, uuid.uuid4().hex
        self._write(process.this_process())

    def check(self) -> None:
        """Raises RuntimeError if another training has begun to write into the folder."""
        try:
            found = _read(self._url)
        except FileNotFoundError:  # somebody emptied the folder
            return self._write(process.this_process())
        if found.get("training") != self._token:
            other = f"process {found.get('process')} on {found.get('host')}"
            raise RuntimeError(
                "checkpoint must be a folder that one training writes into. "
                f"Received: {self._url!r}, where {other} has begun another"
            )
        return None

    def release(self) -> None:
        """Says that the training is over. Its name stays there, for those that were taken for lost."""
        self._write({**process.this_process(), "ended": True})

    def _write(self, name: dict[str, Any]) -> None:
        with open_text(joined(self._url, NAME), "w", "checkpoint") as file:
            json.dump({"training": self._token, **name}, file)


def living_owner(url: str) -> int | None:
    """Returns the process of this machine that trains now and writes its checkpoints into a folder.

    None if there is none, and if the process is of another machine: whether it lives is not known here.
    """
    try:
        found = _read(url)
        return None if found.get("ended") or process.has_ended(found) is not False else found["process"]
    except (FileNotFoundError, KeyError, TypeError):
        return None


def _read(url: str) -> dict[str, Any]:
    with open_text(joined(url, NAME), "r", "checkpoint") as file:
        try:
            found = json.load(file)
        except ValueError:  # it is being written, or is not ours
            return {}
    return found if isinstance(found, dict) else {}
