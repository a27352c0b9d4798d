"""Your own algorithm: elastic averaging that leaves small differences alone. Run it with `python`."""

from functools import partial

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hvdkeras import Mode, Trainer


def trimmed(local, center, alpha, threshold):
    """Pulls together the weights that differ by more than `threshold`; the others stay where they are."""
    difference = local - center
    pull = np.where(np.abs(difference) > threshold, alpha * difference, 0)
    return local - pull, pull


class TrimmedEASGD(Trainer):
    mode = Mode.ASYNCHRONOUS
    communication_window = 8

    def exchange(self, local, center, state, steps):
        return center.exchange(partial(trimmed, alpha=0.4, threshold=0.001), local), state


images, digits = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(images / 16, digits, test_size=0.2, random_state=0)

model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
trainer = TrimmedEASGD(model, loss=loss, metrics=["accuracy"], batch_size=16, num_epoch=20, learning_rate=0.1)
trained = trainer.train({"features": x_train, "label": y_train})
print(f"accuracy on held-out rows: {trained.evaluate(x_test, y_test, verbose=0)[1]:.4f}")
