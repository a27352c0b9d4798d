"""What a folder of checkpoints must hold so that a training may use it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from hvdkeras.checkpoint.folder import CheckpointFolder, LaterVersionError
from hvdkeras.checkpoint.ownership import living_owner
from hvdkeras.models.structure import structural_differences
from hvdkeras.naming import listed

logger = logging.getLogger("hvdkeras")


def check_checkpoints(url: str, algorithm: str, structures: Mapping[str, Any], resume: bool) -> None:
    """Makes the folder of checkpoints, and checks that a training may use it.

    Args:
        url: local folder or URL.
        algorithm: the name of the training's algorithm.
        structures: what the model and its optimizers and metrics are made of, by argument.
        resume: whether the training is to resume from what is there.

    Raises:
        ValueError: the folder can't be written, another training writes into it, or it holds checkpoints that
            are not to be resumed, or those of another algorithm, model, optimizer or other metrics.
    """
    folder = CheckpointFolder(url)
    folder.make()
    for each in (folder, folder.subfolder("model-000")):
        if (process := living_owner(each.url)) is not None:
            raise ValueError(
                "checkpoint must be a folder that no other training writes into. "
                f"Received: {folder.url!r}, into which process {process} of this machine does"
            )
    manifest = _newest_manifest(folder)
    if manifest is None:
        return
    found = manifest["algorithm"]
    if not resume:
        raise ValueError(
            "checkpoint must be a folder without checkpoints, unless resume=True. "
            f"Received: {folder.url!r}, which holds one of {found}"
        )
    if found != algorithm:
        raise ValueError(
            f"checkpoint must be one of the same algorithm to resume from, {algorithm}. "
            f"Received: {folder.url!r}, of {found}"
        )
    # Checkpoints of earlier versions have none.
    for name, wanted in manifest.get("structures", {}).items():
        differences = list(structural_differences(structures[name], wanted, name))
        if differences:
            raise ValueError(
                f"{name} must be that of the checkpoint that it resumes from, in {folder.url!r}. Received: "
                f"one of which {listed(differences, separator='; ', longest=200)}. To train the checkpoint's "
                "model with another, give the model.keras in it to a new training, with another folder"
            )


def warn_of_changes(url: str, order: Mapping[str, Any], num_workers: int | None, num_epoch: int) -> None:
    """Warns of what differs from the training that is resumed, and says what follows from it.

    Args:
        url: as of `check_checkpoints`.
        order: what decides which rows make up which batch.
        num_workers: ranks that train one model; None where each trains its own.
        num_epoch: passes over the rows.
    """
    manifest = _newest_manifest(CheckpointFolder(url))
    if manifest is None:
        return
    now, then = dict(order), dict(manifest["order"])
    if num_workers is not None:
        now["num_workers"], then["num_workers"] = num_workers, manifest["num_workers"]
    changes = list(structural_differences(now, then, "training"))
    if changes:
        logger.warning(
            "resuming in %s with another order of the rows: %s. The epoch under way begins anew, from the "
            "center and the mean of the ranks' optimizers",
            url,
            listed(changes, longest=200),
        )
    if num_epoch < int(manifest["epochs"]):
        logger.warning(
            "num_epoch should be more than the %g epochs of the checkpoint in %s: nothing is trained, and "
            "its model is the result. Received: %d",
            manifest["epochs"],
            url,
            num_epoch,
        )


def _newest_manifest(folder: CheckpointFolder) -> dict[str, Any] | None:
    """The manifest of a complete checkpoint in the folder, or of an ensemble's first member; or None."""
    for each in (folder, folder.subfolder("model-000")):
        for number in reversed(each.numbers()):
            if each.is_complete(number):
                try:
                    return each.manifest(number)
                except LaterVersionError:
                    raise
                except (OSError, ValueError):
                    continue  # damaged; an older one may be intact
    return None
