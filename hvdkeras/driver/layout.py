"""The data laid out as shards for the ranks, split, and removed after the training."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hvdkeras.data import decoding, sources
from hvdkeras.data.columns import Column
from hvdkeras.data.lease import lease_folder, release_folder
from hvdkeras.data.rows import read_column
from hvdkeras.data.shards import Shards
from hvdkeras.data.split import MarkedSplit, Split
from hvdkeras.driver.checks import check_store
from hvdkeras.driver.configuration import Configuration
from hvdkeras.driver.inputs import decided, remedy_named
from hvdkeras.launch import environment, local, termination
from hvdkeras.models import schema, targets

logger = logging.getLogger("hvdkeras")


@contextlib.contextmanager
def laid_out(configuration: Configuration, data: Any) -> Iterator[Shards]:
    """Yields the data as shards, which are removed at the end if they were written here.

    With `validation_indicator_col` its column is the last one.

    Raises:
        ValueError: the data is not of a known kind, or does not fit the model.
    """
    if sources.is_dataframe(data) and environment.job():
        raise ValueError(
            "data must be NumPy arrays, a Parquet path or shards in a script that runs under mpirun "
            "or horovodrun. Received: a Spark DataFrame, whose ranks Spark launches"
        )
    check_store(configuration, data)
    decode = configuration.decode
    columns = local.once(required_columns, configuration, data)
    schema.class_weights(configuration.keras_model, configuration.class_weight, columns)
    if configuration.validation_indicator_col is not None:
        columns = (*columns, Column(configuration.validation_indicator_col, (), "bool"))
    with termination.unwound(), contextlib.ExitStack() as stack:
        if isinstance(data, Shards):
            data.check_columns(columns)
            shards = data
        else:
            if sources.is_dataframe(data) and not sources.has_executors(data):
                logger.warning(
                    "the ranks run on this machine, because Spark Connect has no SparkContext; the executors "
                    "write the rows to %s",
                    configuration.store,
                )
            folder = local.once(lease_folder, configuration.store)
            stack.callback(local.once, release_folder, folder)
            with remedy_named(configuration):
                shards = local.once(sources.write, data, columns, folder)
        if decode:
            local.once(decoding.check_decode, shards, decode)
        yield shards


def required_columns(configuration: Configuration, data: Any) -> tuple[Column, ...]:
    """Returns the columns of a batch, labels in the form that the data has where the loss takes any.

    Raises:
        ValueError: the data is not of a known kind, or its first row does not fit the model.
    """
    read, decode = configuration.targets(), configuration.decode
    forms = sources.forms(data, read.of_any_form, decode)
    found = targets.columns(configuration.keras_model, configuration.features_col, read, forms)
    return decided(configuration, data, [replace(one, encoded=one.name in decode) for one in found])


def split(configuration: Configuration, shards: Shards) -> tuple[Shards, Split | MarkedSplit | None]:
    """Returns shards without the column of `validation_indicator_col`, and their split; None without one.

    Raises:
        DataError: there are no rows to train on, or none to evaluate on.
    """
    if configuration.validation_split is not None:
        return shards, Split(shards.rows, configuration.validation_split, configuration.seed)
    if configuration.validation_indicator_col is None:
        return shards, None
    *others, marks = shards.columns
    found = MarkedSplit.of(local.once(read_column, shards, marks), marks.name)
    return replace(shards, columns=tuple(others)), found


@contextlib.contextmanager
def optionally_laid_out(configuration: Configuration, data: Any) -> Iterator[Shards | None]:
    """As `laid_out`; yields None for None."""
    if data is None:
        yield None
        return
    with laid_out(configuration, data) as shards:
        yield shards
