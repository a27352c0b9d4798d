"""Checkpoints: numbered folders of open formats that are complete or don't count.

00000007/model.keras       the center as a Keras model
         center.npz        the center and what lies beside it, as the rule sees them
         rank-00000.npz    a rank's variables (model, optimizer, running metrics) and its rule's arrays
         rank-00000.json   where the rank stands: epoch, step, history, the rule's state
         training.json     written last, in one step: without it the folder does not count
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pyarrow import fs

from hvdkeras.data.store import normalized, open_filesystem
from hvdkeras.history import records as history
from hvdkeras.models.serialization import model_to_bytes

if TYPE_CHECKING:
    from hvdkeras.coordination.evaluation import CenterModel

_MANIFEST = "training.json"
_VERSION = 1


class Checkpoints:
    """A folder of checkpoints.

    Args:
        url: local folder or URL that the driver and all ranks see.
    """

    def __init__(self, url: str) -> None:
        self.url = normalized(url)
        self._system, self._path = open_filesystem(self.url)

    def check(self, algorithm: str, resume: bool) -> None:
        """Makes the folder, and looks whether a training may use it.

        Args:
            algorithm: of the training.
            resume: whether it is to go on from what is there.

        Raises:
            ValueError: the folder can't be written, holds checkpoints that are not to be resumed, or those of
                another algorithm.
        """
        try:
            self._system.create_dir(self._path, recursive=True)
            found = self._system.get_file_info(fs.FileSelector(self._path, recursive=True))
        except OSError as error:
            raise ValueError(
                f"checkpoint must be a folder or URL that can be written. Received: {self.url!r} ({error})"
            ) from error
        path = next((entry.path for entry in found if entry.base_name == _MANIFEST), None)
        if path is None:
            return
        its_algorithm = self._read_json(path)["algorithm"]
        if not resume:
            raise ValueError(
                "checkpoint must be a folder without checkpoints, unless resume=True. "
                f"Received: {self.url!r}, which holds one of {its_algorithm}"
            )
        if its_algorithm != algorithm:
            raise ValueError(
                f"checkpoint must be one of the same algorithm to resume from, {algorithm}. "
                f"Received: {self.url!r}, of {its_algorithm}"
            )

    def numbers(self) -> list[int]:
        """All checkpoints, incomplete ones too, ascending."""
        entries = self._system.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
        return sorted(int(entry.base_name) for entry in entries if entry.base_name.isdigit())

    def latest(self) -> int | None:
        """The newest complete checkpoint; None if there is none."""
        return next((number for number in reversed(self.numbers()) if self.is_complete(number)), None)

    def is_complete(self, number: int) -> bool:
        return self._exists(number, _MANIFEST)

    def create(self, number: int) -> None:
        self._system.create_dir(f"{self._path}/{number:08d}", recursive=True)

    def delete(self, number: int) -> None:
        # What makes it count goes first.
        if self.is_complete(number):
            self._system.delete_file(self._file(number, _MANIFEST))
        self._system.delete_dir(f"{self._path}/{number:08d}")

    def write_arrays(self, number: int, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes a `.npz` file."""
        with self._system.open_output_stream(self._file(number, name)) as file:
            np.savez(file, **arrays)

    def read_arrays(self, number: int, name: str) -> dict[str, np.ndarray]:
        with (
            self._system.open_input_file(self._file(number, name)) as file,
            np.load(io.BufferedReader(file), allow_pickle=False) as arrays,
        ):
            return dict(arrays)

    def write(self, number: int, name: str, content: bytes) -> None:
        with self._system.open_output_stream(self._file(number, name)) as file:
            file.write(content)

    def write_json(self, number: int, name: str, content: Mapping[str, Any]) -> None:
        self.write(number, name, json.dumps(history.finite(content), allow_nan=False).encode())

    def read_json(self, number: int, name: str) -> dict[str, Any]:
        return self._read_json(self._file(number, name))

    def _read_json(self, path: str) -> dict[str, Any]:
        with self._system.open_input_stream(path) as file:
            return history.numbers(json.loads(file.read()))

    def complete(self, number: int, manifest: Mapping[str, Any]) -> None:
        """Makes a checkpoint count."""
        temporary = f"{_MANIFEST}.incomplete"
        self.write_json(number, temporary, {"version": _VERSION, **manifest})
        self._system.move(self._file(number, temporary), self._file(number, _MANIFEST))

    def manifest(self, number: int) -> dict[str, Any]:
        """Reads a complete checkpoint's manifest.

        Raises:
            ValueError: a later version of this library wrote it.
        """
        manifest = self.read_json(number, _MANIFEST)
        if manifest["version"] > _VERSION:
            raise ValueError(
                f"checkpoint must have a version up to {_VERSION}. Received: {manifest['version']} "
                f"in {self.url}/{number:08d}, which a later version of hvdkeras wrote"
            )
        return manifest

    def missing(self, number: int, names: Sequence[str]) -> list[str]:
        return [name for name in names if not self._exists(number, name)]

    def _exists(self, number: int, name: str) -> bool:
        return self._system.get_file_info(self._file(number, name)).type == fs.FileType.File

    def _file(self, number: int, name: str) -> str:
        return f"{self._path}/{number:08d}/{name}"


def rank_file(rank: int) -> str:
    """The name of a rank's files, without their ending."""
    return f"rank-{rank:05d}"


class Writer:
    """Writes rank 0's part of checkpoints: the center, and the manifest when all ranks have written theirs.

    Args:
        checkpoints: where to.
        kept: how many complete checkpoints stay.
        size: number of ranks.
        center: the center as a model.
        contents: returns the center as the rule sees it, shape `(1 + slots, n)`.
        facts: what a training must share with the one that it resumes, such as the number of rows.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        kept: int,
        size: int,
        center: CenterModel,
        contents: Callable[[], np.ndarray],
        facts: Mapping[str, Any],
    ) -> None:
        self._checkpoints, self._kept, self._size = checkpoints, kept, size
        self._center, self._contents, self._facts = center, contents, facts

    def begin(self) -> int:
        """Makes the folder of a new checkpoint and returns its number."""
        number = max(self._checkpoints.numbers(), default=0) + 1
        self._checkpoints.create(number)
        return number

    def complete(self, number: int, manifest: Mapping[str, Any], looked: bool) -> None:
        """Writes the center and the manifest, and deletes what is older than the checkpoints to keep.

        Args:
            number: what `begin` returned.
            manifest: what else the training needs to go on.
            looked: whether the center model's weights are those of this round's look.

        Raises:
            RuntimeError: a rank's file is not there.
        """
        files = [rank_file(rank) + ending for rank in range(self._size) for ending in (".npz", ".json")]
        if missing := self._checkpoints.missing(number, files):
            raise RuntimeError(
                "checkpoint must be a folder or URL that all ranks share. "
                f"Received: {self._checkpoints.url!r}, where rank 0 does not see {', '.join(missing)}"
            )
        contents = self._contents()
        trainable, other = self._center.vectors()
        if manifest["stopped"]:
            contents[0] = trainable
        elif not looked:
            self._center.load(contents[0], other)
        self._checkpoints.write_arrays(number, "center.npz", {"center": contents, "other": other})
        self._checkpoints.write(number, "model.keras", model_to_bytes(self._center.model))
        self._checkpoints.complete(number, {**self._facts, "num_workers": self._size, **manifest})
        numbers = self._checkpoints.numbers()
        complete = [one for one in numbers if self._checkpoints.is_complete(one)]
        for one in numbers:
            if one < complete[-self._kept :][0]:
                self._checkpoints.delete(one)
