"""A training as a run of MLflow, and its model loaded back. Run it with `python examples/mlflow_tracking.py`.

It needs `pip install 'hvdkeras[mlflow]'`. It logs to MLFLOW_TRACKING_URI, or to mlflow.db in this folder.
"""

import os
import sys

import keras
import mlflow
import pandas as pd
from pyspark.sql import SparkSession
from sklearn.datasets import load_digits

import hvdkeras.mlflow
from hvdkeras import EASGD, AccuracyEvaluator, ModelPredictor

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
images, digits = load_digits(return_X_y=True)
rows = pd.DataFrame({"features": (images / 16).tolist(), "label": digits})
spark = SparkSession.builder.master("local[2]").appName("mlflow").getOrCreate()
train, test = spark.createDataFrame(rows).randomSplit([0.8, 0.2], seed=1)

model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10, "softmax")]
)
trainer = EASGD(
    model,
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
    num_workers=2,
    rho=4.0,
    learning_rate=0.1,
    communication_window=4,
    num_epoch=8,
    validation_split=0.1,
    timeline="timeline.json",
    verbose=0,
)

mlflow.set_experiment("digits")
with hvdkeras.mlflow.tracking() as runs:
    trainer.train(train)

run = mlflow.get_run(runs[-1])
print(
    "logged:", run.data.params["trainer"], {name: round(value, 4) for name, value in run.data.metrics.items()}
)
loaded = mlflow.keras.load_model(f"runs:/{runs[-1]}/model")
scored = ModelPredictor(loaded).transform(test)
accuracy = AccuracyEvaluator().evaluate(scored)
mlflow.log_metric("test_accuracy", accuracy, run_id=runs[-1])
print(f"accuracy on {test.count()} held-out rows: {accuracy:.4f}")
