"""Where a rank's training starts: anew, or from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hvdkeras.algorithm import State
from hvdkeras.center.contents import Contents
from hvdkeras.checkpoint.folder import CheckpointFolder, ResumePoint
from hvdkeras.checkpoint.rank_state import RankState, blended
from hvdkeras.mpi.collectives import broadcast
from hvdkeras.rank.place import Place
from hvdkeras.rank.replica import Replica
from hvdkeras.spec import TrainingSpec

logger = logging.getLogger("hvdkeras")


@dataclass
class Start:
    """Where a training starts.

    Attributes:
        manifest: of the checkpoint that it resumes from; empty at a new training.
        center: the center and its slots in that checkpoint; None at a new training.
        statistics: the averaged variables in it, shape `(m,)`.
        rule_state: what the algorithm kept from exchange to exchange; None where it begins anew.
        running_logs: the logs of the epoch under way.
        skipped: newer checkpoints that are damaged, a line each, at rank 0.
    """

    manifest: Mapping[str, Any] = field(default_factory=dict)
    center: Contents | None = None
    statistics: np.ndarray | None = None
    rule_state: State | None = None
    running_logs: dict[str, float] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


def start(
    spec: TrainingSpec, place: Place, folder: CheckpointFolder | None, replica: Replica, order: dict[str, Any]
) -> Start:
    """Restores the replica from the newest intact checkpoint, where the training is to resume.

    All ranks of `place.comm` call it.

    Args:
        spec: the training.
        place: this rank.
        folder: of the checkpoints; None without.
        replica: what is restored.
        order: what decides which rows make up which batch.
    """
    if folder is None or not spec.checkpoint.resume:
        return Start()
    comm = place.comm
    point = folder.newest_intact() if comm.rank == 0 else ResumePoint(0)
    for line in point.skipped:
        logger.warning("%s; resuming from an older one", line)
    number = int(broadcast(comm, np.array([point.number]), spec.timeout, "rank 0's checkpoint")[0])
    if not number:
        return Start(skipped=point.skipped)
    manifest, saved = folder.manifest(number), folder.read_arrays(number, "center.npz")
    center = Contents(saved["center"], saved["slots"])
    size = center.center.size
    if size != replica.weights.size:
        raise ValueError(
            f"keras_model must have the {size} trainable weights of the checkpoint that it resumes from, in "
            f"{folder.url}. Received: {replica.weights.size}"
        )
    if manifest["num_workers"] == comm.size and manifest["order"] == order:
        state = RankState.read(folder, number, comm.rank)
        replica.restore(state)
    else:
        states = [RankState.read(folder, number, rank) for rank in range(manifest["num_workers"])]
        state = blended(states, replica.state(None, {}), replica.position.rows)
        replica.restore(state)
        replica.weights.write(center.center)
    if comm.rank == 0:
        logger.info(
            "resuming from checkpoint %d in %s, %.2f epochs of %d",
            number,
            folder.url,
            manifest["epochs"],
            spec.num_epoch,
        )
    return Start(manifest, center, saved["statistics"], state.rule_state, state.running_logs, point.skipped)
