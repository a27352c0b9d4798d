"""An ensemble on a Spark DataFrame: three models, each on its own part of the rows, merged into one.

Run with `python examples/ensemble.py`. Two Spark tasks train the three models, so they take turns.
"""

import os
import sys

import keras
import pandas as pd
from pyspark.sql import SparkSession
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hvdkeras import EnsembleTrainer

images, digits = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(images / 16, digits, test_size=0.2, random_state=0)

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
spark = SparkSession.builder.master("local[2]").appName("ensemble").getOrCreate()
dataframe = spark.createDataFrame(pd.DataFrame({"features": x_train.tolist(), "label": y_train}))

model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10, "softmax")]
)
trainer = EnsembleTrainer(
    model,
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
    worker_optimizer="adam",
    num_models=3,
    merge_models=True,
    num_workers=2,
    batch_size=16,
    num_epoch=20,
)
merged = trainer.train(dataframe)
spark.stop()

for member in trainer.history.ranks:
    print(
        f"member {member.member}, rank {member.rank}: training accuracy {member.metrics['accuracy'][-1]:.4f}"
    )
accuracy = merged.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
print(f"the merged model's accuracy on {len(y_test)} held-out rows: {accuracy:.4f}")
