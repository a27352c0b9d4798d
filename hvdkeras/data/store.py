"""Folders and files behind local paths and URLs, and the column files in them."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal, TextIO
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np
import pyarrow as pa
from pyarrow import fs

logger = logging.getLogger("hvdkeras")

_COPY_BYTES = 8 << 20
_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]+:")
_DATABRICKS = "/dbfs"


def normalized(url: str | os.PathLike) -> str:
    """Returns a store's name for all processes: the absolute path of a local folder, the URL of another."""
    url = os.fspath(url)
    path = local_path(url)
    if path is not None:
        return path
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/"))) if parts.query else url.rstrip("/")


def joined(url: str, name: str) -> str:
    """Returns the name of an entry of a folder that `normalized` named. A URL's query stays at its end."""
    parts = urlsplit(url)
    if local_path(url) is None and parts.query:
        return urlunsplit(parts._replace(path=f"{parts.path}/{name}"))
    return f"{url}/{name}"


def local_path(url: str) -> str | None:
    """Returns the absolute path that a path or a URL of this machine's files names; None for any other URL.

    Databricks mounts what it calls `dbfs:/folder` at `/dbfs/folder`, on the driver and on executors.
    """
    if not _SCHEME.match(url):
        return os.path.abspath(os.path.expanduser(url))
    parts = urlsplit(url)
    if parts.scheme == "dbfs" and not parts.netloc and os.path.isdir(_DATABRICKS):
        return os.path.abspath(f"{_DATABRICKS}/{parts.path}")
    return os.path.abspath(unquote(parts.path)) if parts.scheme == "file" else None


def open_filesystem(url: str, name: str = "store") -> tuple[fs.FileSystem, str]:
    """Opens the file system of a URL: pyarrow's or, where it has none, fsspec's.

    Args:
        url: a local path or a URL.
        name: name of the user's argument, for the error.

    Returns:
        The file system, and the path in it.

    Raises:
        ValueError: neither supports the URL's scheme.
    """
    path = local_path(url)
    if path is not None:
        return fs.LocalFileSystem(), path
    # fsspec would take a URL with a single slash for a local folder of that name.
    if "://" not in url:
        raise ValueError(
            f"{name} must be a local path or a URL such as s3://bucket/folder or hdfs://host:8020/folder. "
            f"Received: {url!r}. A local folder with a colon in its name is written './{url}'"
        )
    # Hadoop's names of the same store.
    url = re.sub("^s3[an]://", "s3://", url)
    try:
        return fs.FileSystem.from_uri(url)
    except (pa.ArrowInvalid, NotImplementedError) as error:
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as other:
            raise ValueError(
                f"{name} must be a local path or a URL that pyarrow or fsspec opens. "
                f"Received: {url!r} (pyarrow: {error}; fsspec: {other})"
            ) from other
        return fs.PyFileSystem(fs.FSSpecHandler(system)), path


@contextlib.contextmanager
def open_text(url: str | os.PathLike, mode: Literal["r", "w"], name: str = "path") -> Iterator[TextIO]:
    """Opens a text file, UTF-8, behind a local path or a URL.

    Args:
        url: a local path, or a URL that pyarrow or fsspec opens.
        mode: `"r"` to read, `"w"` to write; a missing folder of the file is then made.
        name: name of the user's argument, for the error.

    Raises:
        FileNotFoundError: the file to read does not exist.
        OSError: the file can't be read or written.
        ValueError: neither pyarrow nor fsspec supports the URL's scheme.
    """
    system, path = open_filesystem(os.fspath(url), name)
    if mode == "w":
        system.create_dir(os.path.dirname(path), recursive=True)
        stream = system.open_output_stream(path, compression=None)
    else:
        stream = system.open_input_stream(path, compression=None)
    with io.TextIOWrapper(stream, "utf-8", newline="\n") as file:
        yield file


def delete_folder(url: str) -> bool:
    """Deletes a folder and what is in it; logs what can't be deleted. A second call does nothing.

    Returns:
        Whether nothing of it is left.
    """
    system, path = open_filesystem(url)
    try:
        system.delete_dir(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        # A task that Spark gave up may still write. A file that remains must not cost the training's result.
        logger.warning("could not delete all of %s: %s", url, error)
        return False
    return True


class ColumnFile:
    """A .npy file to which rows are appended. Its header has their number once the file is closed.

    Args:
        path: a file that does not exist yet.
        shape: shape of a row.
        dtype: dtype of a value.
    """

    def __init__(self, path: str, shape: Sequence[int], dtype: str) -> None:
        self._shape, self._dtype, self._rows = tuple(shape), np.dtype(dtype), 0
        self._file: BinaryIO = open(path, "xb")  # noqa: SIM115 (__exit__ closes it)
        self._write_header()

    def append(self, rows: np.ndarray) -> None:
        """Appends rows of shape `(n, *shape)`, contiguous and of the file's dtype."""
        self._file.write(rows.data)
        self._rows += len(rows)

    def __enter__(self) -> ColumnFile:
        return self

    def __exit__(self, *failure: object) -> None:
        # NumPy pads a header so that the first axis can grow: the new header is as long as the old one.
        with self._file:
            self._file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self._rows, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


def upload(local_file: str, system: fs.FileSystem, path: str) -> None:
    """Copies a file of this machine into a store. On object stores it appears complete or not at all."""
    with open(local_file, "rb") as source, system.open_output_stream(path) as target:
        shutil.copyfileobj(source, target, _COPY_BYTES)


def map_file(path: str) -> np.ndarray:
    """Maps a column file of this machine, read-only.

    NumPy's own mapping keeps a descriptor for each file; a thousand partitions exceed a process's limit.

    Returns:
        All rows of the file, shape `(n, *shape)`.
    """
    with pa.memory_map(path) as file:
        content = file.read_buffer()
    header = pa.BufferReader(content)
    np.lib.format.read_magic(header)
    shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    count = int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(content, dtype, count, header.tell()).reshape(shape)


def map_rows(
    system: fs.FileSystem, files: Sequence[tuple[str, int, int]], shape: Sequence[int], dtype: str
) -> np.ndarray:
    """Copies rows of a store's column files into one file of this machine and maps it.

    The copy has no name: it is deleted when the process ends, however that happens.

    Args:
        system: the store's file system.
        files: (path, first row, end row) of every file, in order.
        shape: shape of a row.
        dtype: dtype of a value.

    Returns:
        The rows, shape `(n, *shape)`, mapped read-only.
    """
    with tempfile.TemporaryFile(prefix="hvdkeras-") as copy:
        for path, start, stop in files:
            with system.open_input_file(path) as source:
                _copy_rows(source, copy, path, start, stop)
        copy.flush()
        return np.asarray(np.memmap(copy, dtype, "r")).reshape(-1, *shape)


def _copy_rows(source: BinaryIO, target: BinaryIO, path: str, start: int, stop: int) -> None:
    np.lib.format.read_magic(source)
    shape, _, dtype = np.lib.format.read_array_header_1_0(source)
    row_bytes = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
    source.seek(source.tell() + start * row_bytes)
    left = (stop - start) * row_bytes
    while left:
        block = source.read(min(left, _COPY_BYTES))
        if not block:
            raise OSError(f"{path} ends {left} bytes before its row {stop}")
        target.write(block)
        left -= len(block)
