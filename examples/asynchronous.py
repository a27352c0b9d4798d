"""Asynchronous EASGD: each worker exchanges with the center at its own pace, and none waits for another.

Run with `python examples/asynchronous.py`. It prints what each rank did and how stale its view of the
center was. `DOWNPOUR`, `ADAG`, `DynSGD` and `EAMSGD` take the place of `AsynchronousEASGD` here.
"""

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hvdkeras import AsynchronousEASGD

images, digits = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(images / 16, digits, test_size=0.2, random_state=0)

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10, "softmax")]
)
trainer = AsynchronousEASGD(
    model,
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
    num_workers=2,
    batch_size=16,
    num_epoch=20,
    communication_window=8,
    learning_rate=0.1,
    rho=4.0,
)
model = trainer.train({"features": x_train, "label": y_train})

accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
print(f"accuracy of the center on {len(y_test)} held-out rows: {accuracy:.4f}")
for rank in trainer.history.ranks:
    print(
        f"rank {rank.rank}: {sum(rank.rows)} rows, {rank.telemetry['exchanges']} exchanges, "
        f"staleness {rank.telemetry['staleness_mean']:.2f} on average, "
        f"{rank.telemetry['staleness_max']} at most"
    )
