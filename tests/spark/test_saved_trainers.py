"""Trainers that are saved and loaded before they train: alone, in pipelines, in what tunes them."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder, TrainValidationSplit

import hvdkeras
from hvdkeras import LabelIndexTransformer

pytestmark = pytest.mark.spark


def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])


def trainer(**arguments):
    return hvdkeras.EASGD(
        model(),
        **{
            "worker_optimizer": keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.02, 100)),
            "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "metrics": ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)],
            "class_weight": {0: 2.0},
            "num_epoch": 3,
            "output_col": "scores",
            **arguments,
        },
    )


FRESH_PROCESS = """
import json, sys
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
from pyspark.ml import Pipeline
from pyspark.ml.tuning import CrossValidator
loaded = Pipeline.load(sys.argv[1] + "/pipeline").getStages()[0]
grid = CrossValidator.load(sys.argv[1] + "/validator").getEstimatorParamMaps()
print(json.dumps([type(loaded).__name__, loaded.uid, loaded.num_epoch, loaded.output_col,
    sorted(p.name for p in loaded.params if loaded.isSet(p)),
    loaded.worker_optimizer._learning_rate.get_config(), loaded.loss.get_config(),
    [getattr(m, "name", m) for m in loaded.metrics], list(loaded.class_weight.items()),
    [float(w.sum()) for w in loaded.keras_model.get_weights()],
    [sorted([p.name, v] for p, v in one.items()) for one in grid]]))
"""


def test_a_fresh_process_loads_pipelines_and_what_tunes_them(spark, tmp_path):
    first = trainer()
    pipeline = Pipeline(stages=[first, LabelIndexTransformer(3, input_col="scores")])
    pipeline.write().save(f"{tmp_path}/pipeline")
    grid = ParamGridBuilder().addGrid(first.rho_param, [0.5, 2.0]).addGrid(first.num_epoch_param, [1]).build()
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    validator = CrossValidator(estimator=pipeline, estimatorParamMaps=grid, evaluator=evaluator)
    validator.write().save(f"{tmp_path}/validator")
    split = TrainValidationSplit(estimator=pipeline, estimatorParamMaps=grid, evaluator=evaluator)
    split.write().save(f"{tmp_path}/split")
    again = TrainValidationSplit.load(f"{tmp_path}/split").getEstimatorParamMaps()
    assert [one[first.rho_param] for one in again] == [0.5, 2.0]

    process = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    given = sorted(p.name for p in first.params if first.isSet(p))
    assert json.loads(process.stdout.splitlines()[-1]) == [
        "EASGD",
        first.uid,
        3,
        "scores",
        given,
        first.worker_optimizer._learning_rate.get_config(),
        first.loss.get_config(),
        ["accuracy", "sparse_top_k_categorical_accuracy"],
        [[0, 2.0]],
        [float(weights.sum()) for weights in first.keras_model.get_weights()],
        [[["num_epoch_param", 1], ["rho_param", rho]] for rho in (0.5, 2.0)],
    ]


def test_a_compiled_model_that_was_trained_keeps_its_optimizer(spark, tmp_path):
    compiled = model()
    compiled.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    compiled.fit(np.ones((8, 4)), np.zeros(8), verbose=0)
    first = hvdkeras.SynchronousSGD(compiled)
    first.save(f"{tmp_path}/trainer")
    loaded = hvdkeras.SynchronousSGD.load(f"{tmp_path}/trainer")
    assert loaded.worker_optimizer.iterations.numpy() == 1
    assert loaded.loss.get_config() == first.loss.get_config()
    for one, other in zip(loaded.worker_optimizer.variables, compiled.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def my_loss(true, predicted):
    return keras.losses.mean_squared_error(true, predicted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": lambda true, predicted: predicted}, "loss can't be saved: .*Python lambda"),
        ({"loss": my_loss}, "loss can't be saved: its functions and classes must be .*my_loss"),
        (
            {"callbacks": [keras.callbacks.TerminateOnNaN()]},
            "callbacks must be left out of a trainer that is",
        ),
    ],
)
def test_what_has_no_open_format_is_refused_by_name(spark, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        trainer(**arguments).save(f"{tmp_path}/trainer")
    assert not list(tmp_path.iterdir())


def test_custom_objects_are_given_again(spark, tmp_path):
    trainer(loss=my_loss, custom_objects={"my_loss": my_loss}).save(f"{tmp_path}/trainer")
    loaded = hvdkeras.EASGD.load(f"{tmp_path}/trainer", custom_objects={"my_loss": my_loss})
    assert loaded.loss is my_loss
