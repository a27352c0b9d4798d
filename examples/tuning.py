"""Tuning on scikit-learn's digits: a grid with a launch a fold, and a search with pruning on ranks that stay.

Run with `python examples/tuning.py`, after `pip install optuna`, which proposes the trials of the search.
"""

import os
import sys

import keras
import numpy as np
import optuna
import pandas as pd
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import SparkSession
from sklearn.datasets import load_digits

from hvdkeras import EASGD, AccuracyEvaluator, Workers

images, digits = load_digits(return_X_y=True)
rows = {"features": images / 16, "label": digits}
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, "softmax")])
learn = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], "num_workers": 2, "verbose": 0}
trainer = EASGD(model, num_epoch=3, communication_window=8, learning_rate=0.1, **learn)

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
spark = SparkSession.builder.master("local[2]").appName("tuning").getOrCreate()
frame = spark.createDataFrame(pd.DataFrame({"features": rows["features"].tolist(), "label": digits}))
grid = ParamGridBuilder().addGrid(trainer.rho_param, [0.1, 1.0, 4.0]).build()
tuned = CrossValidator(estimator=trainer, estimatorParamMaps=grid, evaluator=AccuracyEvaluator(), numFolds=2)
print("accuracy by rho:", *tuned.fit(frame).avgMetrics)
spark.stop()


class Prune(keras.callbacks.Callback):
    """Stops a trial whose center has less than the median accuracy of earlier trials at that evaluation."""

    def __init__(self, earlier):
        super().__init__()
        self.medians = [np.median(column) for column in zip(*earlier, strict=False)]

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch < len(self.medians) and logs["val_accuracy"] < self.medians[epoch]


study, curves = optuna.create_study(direction="maximize"), []
with Workers(2):
    for _ in range(8):
        trial = study.ask()
        rate = trial.suggest_float("rate", 0.01, 0.4)
        asked = EASGD(model, rho=1.0, learning_rate=rate, num_epoch=5, validation_split=0.2, **learn)
        asked.center_callbacks = [Prune(curves)]
        asked.train(rows)
        curves.append([each.metrics["val_accuracy"] for each in asked.history.center])
        for epoch, accuracy in enumerate(curves[-1]):
            trial.report(accuracy, epoch)
        pruned = None if len(curves[-1]) == 5 else optuna.trial.TrialState.PRUNED
        study.tell(trial, None if pruned else accuracy, pruned)
        print(f"rate {rate:.4f}: accuracy {accuracy:.4f} after {len(curves[-1])} epochs", flush=True)
print(f"accuracy of the best trial on its held-out rows: {study.best_value:.4f}")
