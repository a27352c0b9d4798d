"""The center's part of a checkpoint, at rank 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hvdkeras.center.contents import Contents
from hvdkeras.checkpoint.folder import WrittenFile
from hvdkeras.checkpoint.writer import CheckpointWriter
from hvdkeras.coordination.evaluation import CenterModel
from hvdkeras.models.serialization import model_to_bytes


class CenterSaver:
    """Writes the center into checkpoints.

    Args:
        writer: writes files.
        center: the center as a model.
        contents: returns the center and its slots.
    """

    def __init__(
        self, writer: CheckpointWriter, center: CenterModel, contents: Callable[[], Contents]
    ) -> None:
        self._writer, self._center, self._contents = writer, center, contents

    def begin(self) -> int:
        """Makes a new checkpoint and returns its number."""
        return self._writer.begin()

    def close(self) -> None:
        """Says that there will be no more checkpoint."""
        self._writer.close()

    def complete(
        self, number: int, files: Sequence[WrittenFile], manifest: Mapping[str, Any], is_evaluated: bool
    ) -> None:
        """Writes the center and the manifest.

        Args:
            number: what `begin` returned.
            files: what the ranks have written.
            manifest: what else the training needs to resume.
            is_evaluated: whether the center model has the weights of this round's evaluation.
        """
        contents = self._contents()
        trainable, statistics = self._center.vectors()
        if manifest["stopped"]:
            # The result: callbacks may have put other weights in the place of the center's.
            contents = replace(contents, center=trainable)
        elif not is_evaluated:
            self._center.load(contents.center, statistics)
        content = model_to_bytes(self._center.model)
        self._writer.complete(number, contents, statistics, content, files, manifest)
