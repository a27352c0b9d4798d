"""Synchronous EASGD on a Spark DataFrame: two ranks, started in the places of two Spark tasks.

Run with `python examples/easgd.py`. On a cluster, leave out `master` and start it with spark-submit.
"""

import os
import sys

import keras
import pandas as pd
from pyspark.sql import SparkSession
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hvdkeras import EASGD

images, digits = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(images / 16, digits, test_size=0.2, random_state=0)

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
spark = SparkSession.builder.master("local[2]").appName("EASGD").getOrCreate()
dataframe = spark.createDataFrame(pd.DataFrame({"features": x_train.tolist(), "label": y_train}))

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10, "softmax")]
)
trainer = EASGD(
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
model = trainer.train(dataframe)
spark.stop()

accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
print(f"accuracy of the center on {len(y_test)} held-out rows: {accuracy:.4f}")
print(trainer.history.to_pandas().tail(3).to_string(index=False))
