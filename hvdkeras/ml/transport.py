"""How a model and rows reach the executors: the model's shipment, the size of Arrow batches, the UDF."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pandas as pd
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from hvdkeras.launch.cluster import is_connect
from hvdkeras.ml.artifact import Artifact, content_key
from hvdkeras.ml.scoring import Scoring

logger = logging.getLogger("hvdkeras")

BATCH_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"
# Rows of up to 838 numbers keep Spark's 10,000 rows a batch. Spark's buffers grow by doubling, so that every
# task may need three times as much of its executor's direct memory.
BATCH_BYTES = 64 << 20


def bound_batches(session: SparkSession, numbers: int) -> None:
    """Lowers the session's rows in an Arrow batch so that a batch has at most `BATCH_BYTES`.

    Spark bounds a batch by rows alone. When 10,000 rows of a photo's size exceed its direct memory, the
    thread that writes them ends and the job waits for ever. Spark reads the setting when it plans a job,
    after `transform` has returned, so it is not restored.

    Args:
        session: the session that runs the job.
        numbers: how many numbers a row's features and predictions are, counted as doubles.
    """
    limit = max(1, BATCH_BYTES // (8 * numbers))
    current = int(session.conf.get(BATCH_ROWS))
    if 0 < current <= limit:
        return
    session.conf.set(BATCH_ROWS, limit)
    logger.warning(
        "%s of this session is %d now (it was %d): a row has %d numbers, and a batch at most %d MB",
        BATCH_ROWS, limit, current, numbers, BATCH_BYTES >> 20,
    )  # fmt: skip


class Shipment:
    """A model and its custom objects as the executors get them, sent once for each Spark context or session.

    Args:
        content: `.keras` bytes.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._sent: tuple[Any, str, Any] | None = None

    def send(self, session: SparkSession, custom_objects: dict[str, Any]) -> tuple[str, Any]:
        """Sends the model, unless the session's context has it.

        Returns:
            A hash of the model and of its custom objects, and an object whose `value` is the `.keras` bytes
            and the pickled custom objects.
        """
        receiver = session if is_connect(session) else session.sparkContext
        if self._sent is None or self._sent[0] is not receiver:
            pickled = cloudpickle.dumps(custom_objects)
            key = content_key(self._content, pickled)
            parts = (self._content, pickled)
            if is_connect(session):
                sent = Artifact.of(session, pickle.dumps(parts))
            else:
                sent = receiver.broadcast(parts)
            self._sent = (receiver, key, sent)
        return self._sent[1:]


def score_udf(scoring: Scoring, fields: list[tuple[str, str]]) -> Any:
    """Returns a pandas UDF from the features columns to a value, or to a struct of several fields.

    Args:
        scoring: the computation.
        fields: name and Spark type of each output.
    """

    def score(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        return scoring(batches)

    # Spark reads the kind of function from its annotations, which are strings in this module.
    several = len(fields) > 1
    result = pd.DataFrame if several else pd.Series
    score.__annotations__ = {"batches": Iterator[tuple[pd.Series, ...]], "return": Iterator[result]}
    returned = ", ".join(f"`{name}` {kind}" for name, kind in fields) if several else fields[0][1]
    return F.pandas_udf(score, returned)
