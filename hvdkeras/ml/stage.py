"""What the Spark ML stages share: saving and loading, and the checks of columns and arguments."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pyspark.ml.param import Param, Params
from pyspark.ml.util import DefaultParamsWriter, MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import DataFrame
from pyspark.sql.types import DataType

from hvdkeras.launch.cluster import is_connect
from hvdkeras.ml import files
from hvdkeras.naming import cut, did_you_mean, listed, shown

# Increased when a stage's folder changes in a way that an older hvdkeras would misread.
FORMAT = 1


class Stage(Params, MLReadable, MLWritable):
    """A stage whose parameters are the arguments of its constructor, saved and loaded through Spark.

    Every argument is a `Param` of the same name: `stage.getOrDefault("input_col")` reads it,
    `stage.set(stage.input_col, ...)` changes it, and a `ParamGridBuilder` may vary it.
    """

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self._set(**values)

    def write(self) -> MLWriter:
        """Returns the writer: `stage.write().overwrite().save(path)`."""
        return StageWriter(self)

    @classmethod
    def read(cls, **options: Any) -> StageReader:
        """Returns the reader: `Stage.read().load(path)`."""
        return StageReader(cls, options)

    def _save_more(self, writer: StageWriter, path: str) -> dict[str, Any]:
        """Saves what the params do not hold, and returns the metadata about it."""
        return {}

    def _saved_params(self) -> dict[str, Any]:
        """Returns the values of the params that the metadata holds, by name; `_save_more` saves others."""
        return {param.name: value for param, value in self._paramMap.items()}

    @classmethod
    def _load_more(cls, reader: StageReader, path: str, metadata: dict[str, Any]) -> dict[str, Any]:
        """Loads what `_save_more` saved, and returns it as arguments of the constructor."""
        return {}

    def _type_of(self, dataset: DataFrame, name: str, argument: str) -> DataType:
        """Returns a column's type.

        Raises:
            ValueError: there is no such column.
        """
        return self._types_of(dataset, [name], argument)[0]

    def _types_of(self, dataset: DataFrame, names: Sequence[str], argument: str) -> list[DataType]:
        """As `_type_of`, of several columns in one pass over the schema."""
        types = {field.name: field.dataType for field in reversed(dataset.schema.fields)}
        for name in names:
            if name not in types:
                columns = dataset.columns
                raise ValueError(
                    f"{self.uid}: {argument} must name a column of the DataFrame. "
                    f"Received: {name!r}; the columns are {listed(columns)}.{did_you_mean(name, columns)}"
                )
        return [types[name] for name in names]

    def _check_new(self, dataset: DataFrame, name: str, argument: str, inputs: Collection[str] = ()) -> None:
        """Refuses to overwrite a column, unless it is the stage's own input.

        Raises:
            ValueError: the column exists, or one whose name differs in case only: Spark takes them for one.
        """
        self._check_all_new(dataset, [name], argument, inputs)

    def _check_all_new(
        self, dataset: DataFrame, names: Sequence[str], argument: str, inputs: Collection[str] = ()
    ) -> None:
        """As `_check_new`, of several names in one pass over the columns."""
        existing: dict[str, list[str]] = {}
        for one in dataset.columns:
            existing.setdefault(one.lower(), []).append(one)
        for name in names:
            same = existing.get(name.lower())
            if same and name not in inputs:
                there = "which exists already" if name in same else f"and {same[0]!r} exists already"
                raise ValueError(
                    f"{self.uid}: {argument} must be the name of a new column, or that of the input. "
                    f"Received: {name!r}, {there}"
                )

    def _wrong_type(self, name: str, expected: str, received: DataType) -> ValueError:
        return ValueError(
            f"{self.uid}: column {name!r} must hold {expected}. Received: {cut(received.simpleString())}"
        )


def param(name: str, doc: str, convert: Callable[[Any], Any]) -> Param:
    """Returns a param; `convert` returns the value to store, or raises ValueError with the constraint."""

    def check(value: Any) -> Any:
        try:
            return convert(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be {error}. Received: {shown(value)}") from None

    return Param(Params._dummy(), name, doc, check)


def a_name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("the name of a column")
    return value


def names(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if (
        not isinstance(values, list | tuple)
        or not values
        or not all(isinstance(v, str) and v for v in values)
    ):
        raise ValueError("the name of a column or a list of names")
    return list(values)


def new_names(value: Any) -> list[str]:
    values = names(value)
    if len({one.lower() for one in values}) != len(values):
        raise ValueError("names of different columns, which case alone does not make different")
    return values


def or_no_names(value: Any) -> list[str]:
    return names(value) if value else []


def numbers_by_name(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping) or any(isinstance(one, bool | str) for one in value.values()):
        raise ValueError("a dict of numbers by name")
    return dict(value)


def or_none(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)


def a_number(value: Any) -> float:
    if isinstance(value, bool | str):
        raise ValueError("a number")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError("a number") from None


def at_least(minimum: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < minimum:
            raise ValueError(f"an integer of at least {minimum}")
        return int(value)

    return convert


def one_of(*choices: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(map(repr, choices))}")
        return value

    return convert


class StageWriter(MLWriter):
    """Writes a stage's own files, then params and versions in the form of Spark's stages."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def saveImpl(self, path: str) -> None:
        # The metadata is written last: a folder with metadata is a complete stage.
        more = self._stage._save_more(self, path)
        more["hvdkeras"] = {"format": FORMAT, "version": version("hvdkeras")}
        session = self.sparkSession
        params = self._stage._saved_params()
        line = DefaultParamsWriter._get_metadata_to_save(self._stage, session, more, params)
        files.write_text(session, f"{path}/metadata", line, self.shouldOverwrite)

    def write_bytes(self, path: str, content: bytes) -> None:
        """Writes a file on any file system that Spark knows."""
        files.write_bytes(self.sparkSession, path, content, self.shouldOverwrite)

    def _handleOverwrite(self, path: str) -> None:
        # On Spark Connect, which can't remove a folder, each file is overwritten by itself.
        if not is_connect(self.sparkSession):
            super()._handleOverwrite(path)


class StageReader(MLReader):
    """Reads what a `StageWriter` wrote, and refuses newer formats and damaged files."""

    def __init__(self, cls: type[Stage], options: dict[str, Any]) -> None:
        super().__init__()
        self._cls = cls
        self.options = options

    def load(self, path: str) -> Stage:
        """Loads a stage.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: another class or a newer hvdkeras saved it, or it is damaged.
        """
        metadata = self._metadata(path)
        more = self._cls._load_more(self, path, metadata)
        stage = self._cls(**more, **metadata["paramMap"])
        stage._resetUid(metadata["uid"])
        return stage

    def _metadata(self, path: str) -> dict[str, Any]:
        name = self._cls.__name__
        try:
            line = files.read_text(self.sparkSession, f"{path}/metadata")
        except FileNotFoundError:
            raise FileNotFoundError(f"{name}: there is no saved stage. Received: {path!r}") from None
        try:
            metadata = json.loads(line)
            saved, written = metadata["class"], metadata["hvdkeras"]
        except (KeyError, ValueError):
            raise ValueError(
                f"{name}: the metadata of a saved stage is damaged. Received: {path!r}"
            ) from None
        if saved.split(".")[-1] != name:
            raise ValueError(f"{name}: the path must hold a saved {name}. Received: {path!r} with a {saved}")
        if written["format"] > FORMAT:
            raise ValueError(
                f"{name}: {path!r} was saved by hvdkeras {written['version']} in format {written['format']}; "
                f"hvdkeras {version('hvdkeras')} reads formats up to {FORMAT}. Install a newer hvdkeras"
            )
        return metadata

    def read_bytes(self, path: str) -> bytes:
        """Reads a file from any file system that Spark knows.

        Raises:
            FileNotFoundError: there is no such file.
        """
        try:
            return files.read_bytes(self.sparkSession, path)
        except FileNotFoundError:
            name = self._cls.__name__
            raise FileNotFoundError(f"{name}: a file of the saved stage is missing: {path!r}") from None
