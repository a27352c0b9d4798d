"""TensorBoard's logs of a rank, or of the center."""

from __future__ import annotations

from typing import Any

import keras

from hvdkeras.history.values import components


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's callback, with a graph for each number of a metric that is a vector; it takes no vectors."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, components(logs or {}))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_train_batch_end(batch, components(logs or {}))
