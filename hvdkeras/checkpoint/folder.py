"""Checkpoints: numbered folders of open formats. A checkpoint counts if it is complete and intact.

00000007/model.keras       the center as a Keras model
         center.npz        the center and its slots, and the averaged variables
         rank-00000.npz    a rank's variables (model, optimizer, running metrics) and its rule's state
         rank-00000.json   the rest of a rank's state: epoch, step, history
         training.json     the manifest, written last and in one step: it lists the other files with sizes and
                           checksums, and without it the folder does not count
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from pyarrow import fs

from hvdkeras.data.room import room
from hvdkeras.data.store import joined, local_path, normalized, open_filesystem
from hvdkeras.history import standard_json

MANIFEST = "training.json"
VERSION = 1
_READ_BYTES = 8 << 20


@dataclass(frozen=True)
class WrittenFile:
    """A file as it was written into a checkpoint: its name, its size in bytes, its CRC-32."""

    name: str
    size: int
    checksum: int


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a training resumes from.

    Attributes:
        number: of the checkpoint; 0 for none.
        skipped: newer checkpoints that are damaged, a line each.
    """

    number: int
    skipped: tuple[str, ...] = ()


class CheckpointFolder:
    """A folder of checkpoints.

    Args:
        url: local folder or URL that the driver and all ranks see.
    """

    def __init__(self, url: str) -> None:
        self.url = normalized(url)
        self._system, self._path = open_filesystem(self.url)

    def make(self) -> None:
        """Makes the folder.

        Raises:
            ValueError: it can't be written.
        """
        try:
            self._system.create_dir(self._path, recursive=True)
            self._system.get_file_info(fs.FileSelector(self._path))
        except OSError as error:
            raise ValueError(
                f"checkpoint must be a folder or URL that can be written. Received: {self.url!r} ({error})"
            ) from error

    def subfolder(self, name: str) -> CheckpointFolder:
        return CheckpointFolder(joined(self.url, name))

    def numbers(self) -> list[int]:
        """Returns the numbers of all checkpoints, incomplete ones too, ascending."""
        entries = self._system.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
        return sorted(int(entry.base_name) for entry in entries if entry.base_name.isdigit())

    def newest_intact(self) -> ResumePoint:
        """Returns the newest checkpoint whose files are all there and have the manifest's checksums.

        Raises:
            ValueError: a later version of this library wrote a complete one.
        """
        skipped = []
        for number in reversed(self.numbers()):
            if not self.is_complete(number):
                continue
            damage = self._damage(number)
            if damage is None:
                return ResumePoint(number, tuple(skipped))
            skipped.append(f"checkpoint {number} in {self.url} is damaged: {damage}")
        return ResumePoint(0, tuple(skipped))

    def is_complete(self, number: int) -> bool:
        return self._exists(number, MANIFEST)

    def create(self, number: int) -> None:
        self._system.create_dir(f"{self._path}/{number:08d}", recursive=True)

    def delete(self, number: int) -> None:
        # The manifest first: without it the folder does not count.
        if self.is_complete(number):
            self._system.delete_file(self._file(number, MANIFEST))
        self._system.delete_dir(f"{self._path}/{number:08d}")

    def write_arrays(self, number: int, name: str, arrays: Mapping[str, np.ndarray]) -> WrittenFile:
        """Writes a `.npz` file."""
        return self._write(number, name, lambda file: np.savez(file, **arrays))

    def read_arrays(self, number: int, name: str) -> dict[str, np.ndarray]:
        with (
            self._system.open_input_file(self._file(number, name)) as file,
            np.load(io.BufferedReader(file), allow_pickle=False) as arrays,
        ):
            return dict(arrays)

    def write_bytes(self, number: int, name: str, content: bytes) -> WrittenFile:
        return self._write(number, name, lambda file: file.write(content))

    def write_json(self, number: int, name: str, content: Mapping[str, Any]) -> WrittenFile:
        return self.write_bytes(number, name, standard_json.dumps(content).encode())

    def read_json(self, number: int, name: str) -> dict[str, Any]:
        with self._system.open_input_stream(self._file(number, name)) as file:
            return standard_json.loads(file.read())

    def complete(self, number: int, files: Sequence[WrittenFile], manifest: Mapping[str, Any]) -> None:
        """Makes a checkpoint count.

        Args:
            number: of the checkpoint.
            files: all its files.
            manifest: what else the training needs to resume.
        """
        listed = {file.name: [file.size, file.checksum] for file in files}
        content = {"files": listed, **manifest}
        temporary = f"{MANIFEST}.incomplete"
        sealed = {"version": VERSION, "checksum": _checksum(content), "training": content}
        self.write_json(number, temporary, sealed)
        self._system.move(self._file(number, temporary), self._file(number, MANIFEST))
        self._sync(os.path.dirname(self._file(number, MANIFEST)))

    def manifest(self, number: int) -> dict[str, Any]:
        """Reads a complete checkpoint's manifest.

        Raises:
            ValueError: it is damaged, or a later version of this library wrote it.
        """
        sealed = self.read_json(number, MANIFEST)
        if not isinstance(sealed, dict) or not isinstance(sealed.get("version"), int):
            raise ValueError(f"{self._file(number, MANIFEST)} must be the manifest of a checkpoint")
        if sealed["version"] > VERSION:
            raise LaterVersionError(
                f"checkpoint must have a version up to {VERSION}. Received: {sealed['version']} "
                f"in {self.url}/{number:08d}, which a later version of hvdkeras wrote"
            )
        if _checksum(sealed.get("training")) != sealed.get("checksum"):
            raise ValueError(f"{self._file(number, MANIFEST)} is not as it was written")
        return sealed["training"]

    def missing(self, number: int, names: Sequence[str]) -> list[str]:
        return [name for name in names if not self._exists(number, name)]

    def _damage(self, number: int) -> str | None:
        """Describes the first file that is not as it was written; None for an intact checkpoint."""
        try:
            files = self.manifest(number)["files"]
        except LaterVersionError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{MANIFEST} can't be read ({type(error).__name__}: {error})"
        for name, (size, checksum) in files.items():
            if not self._exists(number, name):
                return f"{name} is missing"
            found_size, found_checksum = self._checked(number, name)
            if found_size != size:
                return f"{name} has {found_size} bytes instead of {size}"
            if found_checksum != checksum:
                return f"{name} has another checksum than was written"
        return None

    def _checked(self, number: int, name: str) -> tuple[int, int]:
        """Returns the size and checksum of a file as it is now."""
        size = checksum = 0
        with self._system.open_input_stream(self._file(number, name)) as file:
            while block := file.read(_READ_BYTES):
                size, checksum = size + len(block), zlib.crc32(block, checksum)
        return size, checksum

    def _write(self, number: int, name: str, write: Callable[[BinaryIO], Any]) -> WrittenFile:
        path = self._file(number, name)
        with self._output(path) as stream:
            file = _ChecksummedStream(stream)
            write(file)
        self._sync(path)
        return WrittenFile(name, file.size, file.checksum)

    @contextmanager
    def _output(self, path: str) -> Iterator[BinaryIO]:
        try:
            with room(self.url, name="checkpoint"), self._system.open_output_stream(path) as stream:
                yield stream
        except OSError as error:
            raise OSError(f"the checkpoint file {path} can't be written: {error}") from error

    def _sync(self, path: str) -> None:
        """Flushes a local file or folder to the disk; other filesystems do so by themselves."""
        if local_path(self.url) is None:
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _exists(self, number: int, name: str) -> bool:
        return self._system.get_file_info(self._file(number, name)).type == fs.FileType.File

    def _file(self, number: int, name: str) -> str:
        return f"{self._path}/{number:08d}/{name}"


class LaterVersionError(ValueError):
    """A later version of this library wrote the checkpoint."""


class _ChecksummedStream(io.RawIOBase):
    """Writes to a stream, counts the bytes and computes their CRC-32."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self.size = self.checksum = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._stream.write(data)
        length = memoryview(data).nbytes
        self.size, self.checksum = self.size + length, zlib.crc32(data, self.checksum)
        return length


def _checksum(content: Any) -> int:
    return zlib.crc32(standard_json.dumps(content).encode())


def rank_file(rank: int) -> str:
    """Returns the name of a rank's files, without their ending."""
    return f"rank-{rank:05d}"
