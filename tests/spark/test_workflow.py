"""The whole workflow, from files to a saved pipeline: as a script, as a notebook, and in fresh processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = [pytest.mark.spark, pytest.mark.slow]


def accuracy(printed: str) -> float:
    return float(re.search(r"held-out rows, from the saved pipeline: ([\d.]+)", printed)[1])


def test_script():
    script = subprocess.run(
        [sys.executable, EXAMPLES / "workflow.py"], capture_output=True, text=True, timeout=280, check=False
    )
    assert script.returncode == 0, script.stderr[-4000:]
    assert accuracy(script.stdout) > 0.9


def test_notebook_draws_the_training_curves():
    notebook = nbformat.read(EXAMPLES / "workflow.ipynb", as_version=4)
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": os.getcwd()}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert accuracy(printed) > 0.9
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1
    assert len(pictures[0]) > 10_000


SESSION = """
import json, shutil, sys
from pyspark.sql import SparkSession
folder = sys.argv[1]
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
spark = spark.config("spark.driver.bindAddress", "127.0.0.1").getOrCreate()
rows = spark.read.csv(folder + "/csv", header=True, inferSchema=True)
"""

TUNE = (
    SESSION
    + """
from pyspark.ml.tuning import TrainValidationSplit
TrainValidationSplit.load(folder + "/tuning").fit(rows).save(folder + "/tuned")
"""
)

SCORE = (
    SESSION
    + """
from pyspark.ml.evaluation import BinaryClassificationEvaluator, MulticlassClassificationEvaluator
from pyspark.ml.tuning import TrainValidationSplitModel
from hvdkeras import AccuracyEvaluator, ModelPredictor

tuned = TrainValidationSplitModel.load(folder + "/tuned")
pipeline = tuned.bestModel
pipeline.stages[-2].save(folder + "/predictor")
scored = pipeline.transform(rows).cache()
with open(folder + "/rows.libsvm", "x") as file:
    for row in scored.select("features", "label").collect():
        values = " ".join(f"{n + 1}:{value!r}" for n, value in enumerate(row.features.toArray().tolist()))
        file.write(f"{row.label} {values}\\n")
stream = spark.readStream.schema(rows.schema).option("header", True).csv(folder + "/incoming")
stream = pipeline.transform(stream).select("id", "named").writeStream.trigger(availableNow=True)
stream = stream.option("checkpointLocation", folder + "/checkpoint").format("parquet")
for name in ("first", "second"):
    shutil.copy(f"{folder}/csv/{name}.csv", f"{folder}/incoming/{name}.csv")
    assert stream.start(folder + "/named").awaitTermination(200)
named = [(row.id, row.named) for row in spark.read.parquet(folder + "/named").collect()]
sparse = spark.read.format("libsvm").option("numFeatures", 31).load(folder + "/rows.libsvm")
print("RESULT", json.dumps({
    "metrics": tuned.validationMetrics,
    "accuracy": MulticlassClassificationEvaluator(metricName="accuracy").evaluate(scored),
    "own": AccuracyEvaluator().evaluate(scored),
    "libsvm": AccuracyEvaluator().evaluate(ModelPredictor.load(folder + "/predictor").transform(sparse)),
    "area": BinaryClassificationEvaluator().evaluate(scored),
    "named": sorted(named) == sorted((row.id, row.named) for row in scored.collect()),
    "right": scored.where("named = diagnosis").count() / len(named),
}))
"""
)


def in_a_fresh_process(code, folder):
    process = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=280, check=False
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


def write_csv(folder):
    """569 rows in two files, with strings among the columns; returns the columns of numbers."""
    from sklearn.datasets import load_breast_cancer

    cancer = load_breast_cancer(as_frame=True)
    frame = cancer.data.rename(columns=lambda name: name.replace(" ", "_"))
    measured = list(frame.columns)
    site = np.where(np.arange(len(frame)) % 3, "left", "right")
    frame = frame.assign(id=range(len(frame)), site=site, diagnosis=cancer.target_names[cancer.target])
    for name in ("csv", "incoming"):
        os.makedirs(f"{folder}/{name}")
    frame[:300].to_csv(f"{folder}/csv/first.csv", index=False)
    frame[300:].to_csv(f"{folder}/csv/second.csv", index=False)
    return measured


def test_each_step_is_saved_and_loaded_in_a_fresh_process(spark, tmp_path):
    import keras
    from pyspark.ml import Pipeline, feature
    from pyspark.ml.evaluation import MulticlassClassificationEvaluator
    from pyspark.ml.tuning import ParamGridBuilder, TrainValidationSplit

    import hvdkeras

    measured = write_csv(tmp_path)
    keras.utils.set_random_seed(1)
    trainer = hvdkeras.SynchronousSGD(
        keras.Sequential([keras.Input((31,)), keras.layers.Dense(1)]),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        batch_size=8,
        output_col="scores",
        prediction_col="prediction",
        raw_prediction_col="rawPrediction",
        verbose=0,
    )
    stages = [
        feature.StringIndexer(inputCol="diagnosis", outputCol="label"),
        feature.StringIndexer(inputCol="site", outputCol="site_index"),
        feature.OneHotEncoder(inputCol="site_index", outputCol="site_vector"),
        feature.VectorAssembler(inputCols=[*measured, "site_vector"], outputCol="assembled"),
        feature.StandardScaler(inputCol="assembled", outputCol="features", withMean=True),
        trainer,
        feature.IndexToString(inputCol="prediction", outputCol="named", labels=["benign", "malignant"]),
    ]
    grid = ParamGridBuilder().addGrid(trainer.learning_rate_param, [0.5])
    tuning = TrainValidationSplit(
        estimator=Pipeline(stages=stages),
        estimatorParamMaps=grid.addGrid(trainer.num_epoch_param, [1]).build(),
        evaluator=MulticlassClassificationEvaluator(metricName="accuracy"),
        seed=0,
    )
    tuning.save(str(tmp_path / "tuning"))
    in_a_fresh_process(TUNE, tmp_path)
    result = json.loads(in_a_fresh_process(SCORE, tmp_path).split("RESULT")[1])
    # One candidate of two params: test_train.py has a grid.
    assert min(*result["metrics"], result["accuracy"]) > 0.9
    assert result["own"] == result["right"] == pytest.approx(result["accuracy"])
    assert result["libsvm"] == pytest.approx(result["accuracy"])
    assert result["area"] > 0.97
    assert result["named"]
