"""Trains on one rank, the baseline that the distributed algorithms are measured against.

Run with `python examples/single.py`. The data are NumPy arrays, so the rank starts on this machine.
"""

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hvdkeras import SingleTrainer

images, digits = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(images / 16, digits, test_size=0.2, random_state=0)

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10, "softmax")]
)
trainer = SingleTrainer(
    model,
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
    worker_optimizer="adam",
    batch_size=32,
    num_epoch=20,
)
model = trainer.train({"features": x_train, "label": y_train})

accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
print(f"accuracy on {len(y_test)} held-out rows: {accuracy:.4f}")
print(f"{trainer.get_training_time():.1f} s with the launch, {sum(trainer.history.rows_seen())} rows seen")
