"""The user's Keras callbacks, divided: those of every rank, and those that concern the one result."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger("hvdkeras")

# Keras's own that decide by the metrics of the result, or write it or its metrics down: on every rank each
# would decide for itself, and all would write to one path.
_OF_THE_CENTER = (
    "EarlyStopping",
    "ModelCheckpoint",
    "OrbaxCheckpoint",
    "ReduceLROnPlateau",
    "LearningRateScheduler",
    "TensorBoard",
    "CSVLogger",
    "RemoteMonitor",
)
# What Keras calls while it trains or evaluates, and nobody calls for the center.
_OF_BATCHES = (
    "on_batch_begin",
    "on_batch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_begin",
    "on_test_end",
    "on_test_batch_begin",
    "on_test_batch_end",
)


@dataclass
class Divided:
    """Callbacks by where they run.

    Attributes:
        ranks: on every rank, with its replica.
        center: once, at rank 0, with the center.
        swaps: Keras's SwapEMAWeights, which run nowhere: they say of what the evaluations are made.
    """

    ranks: list[Any] = field(default_factory=list)
    center: list[Any] = field(default_factory=list)
    swaps: list[Any] = field(default_factory=list)


def divided(callbacks: Sequence[Any], center_callbacks: Sequence[Any]) -> Divided:
    """Returns a trainer's `callbacks` and `center_callbacks` by where they run, each in its order."""
    import keras

    result = Divided()
    for given, place in ((callbacks, result.ranks), (center_callbacks, result.center)):
        for callback in given:
            if isinstance(callback, keras.callbacks.SwapEMAWeights):
                result.swaps.append(callback)
            elif _is_of_the_center(callback):
                result.center.append(callback)
            else:
                place.append(callback)
    if moved := [type(each).__name__ for each in callbacks if _is_of_the_center(each)]:
        logger.info("%s of callbacks: once, at rank 0, with the center as model", ", ".join(moved))
    return result


def check_callback(name: str, callback: Any) -> None:
    """Raises ValueError for a callback that could not do here what it does in Keras.

    Args:
        name: the argument that holds it.
        callback: a Keras callback.
    """
    import keras

    kind = type(callback).__name__
    if isinstance(callback, keras.callbacks.BackupAndRestore):
        raise ValueError(
            f"{name} must not hold BackupAndRestore: give the trainer checkpoint=folder (and "
            f"checkpoint_minutes), and train(..., resume=True). Received: {kind}"
        )
    if not _is_of_the_center(callback):
        return
    for attribute in ("save_freq", "update_freq"):
        if getattr(callback, attribute, "epoch") != "epoch":
            raise ValueError(
                f"{attribute} of {kind} must be 'epoch': it runs on the center, which has evaluations and no "
                "batches; the trainer's center_window sets how often it is evaluated. "
                f"Received: {attribute}={getattr(callback, attribute)!r}"
            )
    if getattr(callback, "_stop_batch", 0):
        raise ValueError(
            f"profile_batch of {kind} must be 0: it runs on the center, which has no batches; the trainer's "
            f"timeline shows the ranks' work. Received: profile_batch up to {callback._stop_batch}"
        )
    if own := [hook for hook in _OF_BATCHES if _is_the_users(type(callback), hook)]:
        raise ValueError(
            f"{kind} must not define {', '.join(own)}: as a {_kind_of(callback)} it runs on the center, "
            "which has evaluations and no batches. Put what concerns batches into a "
            f"keras.callbacks.Callback of its own. Received: {callback!r} in {name}"
        )


def check_monitors(callbacks: Sequence[Any], is_evaluated: bool) -> None:
    """Warns where callbacks of the center wait for metrics of validation, and there is none."""
    if is_evaluated:
        return
    for callback in callbacks:
        monitor = str(getattr(callback, "monitor", ""))
        if monitor.startswith("val_") and getattr(callback, "save_best_only", True):
            logger.warning(
                "%s monitors %s, which needs validation_split or validation_data: it does nothing without",
                type(callback).__name__,
                monitor,
            )


def _is_of_the_center(callback: Any) -> bool:
    return _kind_of(callback) is not None


def _kind_of(callback: Any) -> str | None:
    import keras

    # Older versions of Keras do not have all of them.
    known = [name for name in _OF_THE_CENTER if hasattr(keras.callbacks, name)]
    return next((name for name in known if isinstance(callback, getattr(keras.callbacks, name))), None)


def _is_the_users(kind: type, method: str) -> bool:
    """Whether a method of a class is not Keras's own."""
    owner = next(each for each in kind.__mro__ if method in vars(each))
    return not owner.__module__.startswith("keras.")
