"""Files of saved stages on any file system that Spark knows, in classic sessions and on Spark Connect.

A classic session writes a file of bytes through its Hadoop. Spark Connect has no way to write one, so there a
folder of that name holds the bytes as Parquet. Both kinds of session read both forms.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from hvdkeras.launch.cluster import is_connect
from hvdkeras.ml.artifact import Artifact

CHUNK_BYTES = 1 << 22
# Chunks in one Parquet file, and in one job that reads them.
CHUNKS_AT_ONCE = 8


def write_text(session: SparkSession, path: str, line: str, overwrite: bool) -> None:
    """Writes one line of text in the form of Spark's own metadata, a folder with one file."""
    mode = "overwrite" if overwrite else "error"
    session.createDataFrame([(line,)], "value string").coalesce(1).write.mode(mode).text(path)


def read_text(session: SparkSession, path: str) -> str:
    """Reads the first line of a text; "" where there is none.

    Raises:
        FileNotFoundError: there is no such file or folder.
    """
    with _found(path):
        lines = session.read.text(path).take(1)
    return lines[0][0] if lines else ""


def write_bytes(session: SparkSession, path: str, content: bytes, overwrite: bool) -> None:
    """Writes bytes: as a file in a classic session, as a folder of Parquet on Spark Connect.

    Raises:
        Exception: Spark's own, if there is such a file and `overwrite` is false.
    """
    if is_connect(session):
        rows = _chunks(session, Artifact.of(session, content), len(content))
        rows.write.mode("overwrite" if overwrite else "error").parquet(path)
        return
    system, target = _hadoop(session, path)
    stream = system.create(target, overwrite)
    try:
        for start in range(0, len(content), CHUNK_BYTES):
            stream.write(content[start : start + CHUNK_BYTES])
    finally:
        stream.close()


def read_bytes(session: SparkSession, path: str) -> bytes:
    """Reads what `write_bytes` wrote, in either form.

    Raises:
        FileNotFoundError: there is no such file or folder.
    """
    if not is_connect(session):
        system, source = _hadoop(session, path)
        if not system.exists(source):
            raise FileNotFoundError(path)
        status = system.getFileStatus(source)
        if not status.isDirectory():
            return _streamed(session, system.open(source), status.getLen())
        return _joined(session.read.parquet(path))
    with _found(path):
        files = session.read.format("binaryFile").load(path)
        lengths = files.select("path", "length").collect()
    if any(row.path.endswith(".parquet") for row in lengths):
        return _joined(session.read.parquet(path))
    # A message of Spark Connect can't hold a whole model.
    count = -(-sum(row.length for row in lengths) // CHUNK_BYTES)
    if not count:
        return b""
    numbers = F.sequence(F.lit(0), F.lit(count - 1))
    chunks = files.select("content", F.explode(numbers).alias("number"))
    return _joined(
        chunks.select(
            "number",
            F.expr(f"substring(content, number * {CHUNK_BYTES} + 1, {CHUNK_BYTES})").alias("content"),
        )
    )


def _chunks(session: SparkSession, artifact: Artifact, size: int) -> DataFrame:
    """A file's chunks as rows; the executors read it, for it may be too large for a message to the server."""
    chunk_bytes, count = CHUNK_BYTES, -(-size // CHUNK_BYTES)
    schema = pa.schema([("number", pa.int64()), ("content", pa.binary())])

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with open(artifact.path, "rb") as file:
            for batch in batches:
                for number in batch.column("id").to_pylist():
                    file.seek(number * chunk_bytes)
                    yield pa.RecordBatch.from_pylist(
                        [{"number": number, "content": file.read(chunk_bytes)}], schema
                    )

    # Spark's Parquet reader holds whole files of so few rows in memory.
    numbers = session.range(0, count, 1, -(-count // CHUNKS_AT_ONCE) or 1)
    return numbers.mapInArrow(read, "number long, content binary")


def _joined(chunks: DataFrame) -> bytes:
    """The content of all chunks; a few at a time, since a task holds all rows of its partition in memory."""
    parts: list[bytes] = []
    while True:
        number, content = F.col("number"), F.col("content")
        wanted = (number >= len(parts)) & (number < len(parts) + CHUNKS_AT_ONCE)
        rows = chunks.where(wanted).select(number, content).collect()
        parts += [bytes(row.content) for row in sorted(rows, key=lambda row: row.number)]
        if len(rows) < CHUNKS_AT_ONCE:
            return b"".join(parts)


@contextlib.contextmanager
def _found(path: str) -> Iterator[None]:
    """Turns Spark's error about a path that does not exist into FileNotFoundError."""
    try:
        yield
    except AnalysisException as error:
        if "PATH_NOT_FOUND" not in str(error):
            raise
        raise FileNotFoundError(path) from None


def _hadoop(session: SparkSession, path: str) -> tuple[Any, Any]:
    context = session.sparkContext
    target = context._jvm.org.apache.hadoop.fs.Path(path)
    return target.getFileSystem(context._jsc.hadoopConfiguration()), target


def _streamed(session: SparkSession, stream: Any, size: int) -> bytes:
    read = session.sparkContext._jvm.org.apache.commons.io.IOUtils.toByteArray
    try:
        return b"".join(read(stream, min(CHUNK_BYTES, size - start)) for start in range(0, size, CHUNK_BYTES))
    finally:
        stream.close()
