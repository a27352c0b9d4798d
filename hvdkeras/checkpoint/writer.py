"""The part of a checkpoint that rank 0 writes: the center, and the manifest after all ranks have written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hvdkeras.center.contents import Contents
from hvdkeras.checkpoint.folder import CheckpointFolder, WrittenFile
from hvdkeras.checkpoint.ownership import Ownership
from hvdkeras.naming import listed


class CheckpointWriter:
    """Writes rank 0's part of checkpoints, and deletes old ones. The folder is its own from now on.

    Args:
        folder: where the checkpoints are written.
        kept: how many complete checkpoints remain.
        facts: what a training must share with the one that it resumes, such as the number of rows.
    """

    def __init__(self, folder: CheckpointFolder, kept: int, facts: Mapping[str, Any]) -> None:
        self._folder, self._kept, self._facts = folder, kept, facts
        self._ownership = Ownership(folder.url)

    def begin(self) -> int:
        """Makes the folder of a new checkpoint and returns its number.

        Raises:
            RuntimeError: another training writes into the folder.
        """
        self._ownership.check()
        number = max(self._folder.numbers(), default=0) + 1
        self._folder.create(number)
        return number

    def complete(
        self,
        number: int,
        center: Contents,
        statistics: np.ndarray,
        model: bytes,
        files: Sequence[WrittenFile],
        manifest: Mapping[str, Any],
    ) -> None:
        """Writes the center and the manifest, and deletes what is older than the checkpoints to keep.

        Args:
            number: what `begin` returned.
            center: the center and its slots.
            statistics: the averaged variables, shape `(m,)`.
            model: the center as a `.keras` file.
            files: what the ranks have written.
            manifest: what else the training needs to resume.

        Raises:
            RuntimeError: rank 0 does not see a file of another rank, or another training writes into the
                folder.
        """
        folder = self._folder
        if missing := folder.missing(number, [file.name for file in files]):
            raise RuntimeError(
                "checkpoint must be a folder or URL that all ranks share. "
                f"Received: {folder.url!r}, where rank 0 does not see {listed(missing)}"
            )
        own = [
            folder.write_arrays(
                number,
                "center.npz",
                {"center": center.center, "slots": center.slots, "statistics": statistics},
            ),
            folder.write_bytes(number, "model.keras", model),
        ]
        self._ownership.check()
        folder.complete(number, [*own, *files], {**self._facts, **manifest})
        self._delete_old()

    def close(self) -> None:
        """Gives the folder back."""
        self._ownership.release()

    def _delete_old(self) -> None:
        numbers = self._folder.numbers()
        complete = [number for number in numbers if self._folder.is_complete(number)]
        for number in numbers:
            if number < complete[-self._kept :][0]:
                self._folder.delete(number)
