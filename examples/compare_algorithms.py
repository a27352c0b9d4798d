"""Trains by every algorithm on the same rows, prints a table and draws a picture into the file you name.

python examples/compare_algorithms.py algorithms.png              one launch for each algorithm
hvdkeras run -np 2 examples/compare_algorithms.py algorithms.png  one launch for all: faster
"""

import sys

import keras
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import hvdkeras
from hvdkeras.launch import environment

images, digits = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(images / 16, digits, test_size=0.2, random_state=0)
keras.utils.set_random_seed(0)
model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10, "softmax")]
)
common = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], "verbose": 0}
common.update(batch_size=16, num_epoch=20)
held_out = {"features": x_test, "label": y_test}
plain, windowed = {"learning_rate": 0.1}, {"learning_rate": 0.1, "communication_window": 8}
elastic = {**windowed, "rho": 4.0}  # alpha = 0.4
momentum = {**elastic, "learning_rate": 0.01, "rho": 40.0, "momentum": 0.9}  # the same alpha and pace
algorithms = {
    ":": {"SingleTrainer": plain, "EnsembleTrainer": {**plain, "merge_models": True}},
    "-": {
        **{"SynchronousSGD": plain, "AveragingTrainer": windowed, "DiLoCo": windowed},
        **{"EASGD": elastic, "SynchronousEAMSGD": momentum},
    },
    "--": {
        **{"AsynchronousEASGD": elastic, "EAMSGD": momentum, "DOWNPOUR": windowed},
        **{"AdaptiveDOWNPOUR": windowed, "DynSGD": windowed, "ADAG": windowed},
    },
}
job = environment.job()
figure = Figure(figsize=(12, 4.5), layout="constrained")
by_epoch, by_time = figure.subplots(1, 2, sharey=True)
for style, group in algorithms.items():
    for name, arguments in group.items():
        trainer = getattr(hvdkeras, name)(model, **common, **arguments)
        trained = trainer.train({"features": x_train, "label": y_train}, validation_data=held_out)
        accuracy = trained.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
        center = trainer.history.center_to_pandas().groupby("epoch").mean()
        seconds = center.seconds - center.seconds.iloc[0]  # TensorFlow prepares in the first epoch.
        by_epoch.plot(center.val_accuracy, style, label=name)
        by_time.plot(seconds, center.val_accuracy, style)
        if job is None or job.rank == 0:
            print(f"{name:18} held-out accuracy {accuracy:.4f}   {seconds.iloc[-1]:5.2f} s", flush=True)
by_epoch.set(xlabel="epoch", xticks=range(0, 21, 5), ylim=(0.8, 1))
by_epoch.set_ylabel("accuracy of the center on held-out rows")
by_time.set(xlabel="seconds since the end of the first epoch")
figure.legend(loc="outside right", frameon=False)
if job is None or job.rank == 0:
    figure.savefig(sys.argv[1], dpi=100)
