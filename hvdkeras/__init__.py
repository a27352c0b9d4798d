"""Distributed training of Keras models on Spark data, over MPI.

Importing the package loads neither TensorFlow nor MPI nor Horovod, and public names only when they are used:
a Spark driver stays light, ranks set their devices and variables first, and `hvdkeras doctor` starts where
packages are missing. In a process of a running job the import itself sets devices and variables: a script
builds its model, with which TensorFlow takes its devices, before it calls `train`.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from hvdkeras.launch import environment, gpu

if TYPE_CHECKING:
    from hvdkeras.algorithm import Mode
    from hvdkeras.center.local import LocalCenter
    from hvdkeras.driver.workers import Workers
    from hvdkeras.evaluators import AccuracyEvaluator
    from hvdkeras.history import History
    from hvdkeras.launch.failure import TrainingError
    from hvdkeras.predictors import ModelPredictor
    from hvdkeras.simulation import simulate
    from hvdkeras.trainers import (
        ADAG,
        AEASGD,
        DOWNPOUR,
        EAMSGD,
        EASGD,
        AdaptiveDOWNPOUR,
        AsynchronousEASGD,
        AveragingTrainer,
        DiLoCo,
        DynSGD,
        EnsembleTrainer,
        SingleTrainer,
        SynchronousEAMSGD,
        SynchronousSGD,
        Trainer,
    )
    from hvdkeras.transformers import (
        BinaryLabelTransformer,
        DenseTransformer,
        LabelIndexTransformer,
        MinMaxTransformer,
        OneHotTransformer,
        ReshapeTransformer,
        StandardTransformer,
        StandardTransformerModel,
    )

__version__ = "0.1.0"

__all__ = [
    "ADAG",
    "AEASGD",
    "DOWNPOUR",
    "EAMSGD",
    "EASGD",
    "AccuracyEvaluator",
    "AdaptiveDOWNPOUR",
    "AsynchronousEASGD",
    "AveragingTrainer",
    "BinaryLabelTransformer",
    "DenseTransformer",
    "DiLoCo",
    "DynSGD",
    "EnsembleTrainer",
    "History",
    "LabelIndexTransformer",
    "LocalCenter",
    "MinMaxTransformer",
    "Mode",
    "ModelPredictor",
    "OneHotTransformer",
    "ReshapeTransformer",
    "SingleTrainer",
    "StandardTransformer",
    "StandardTransformerModel",
    "SynchronousEAMSGD",
    "SynchronousSGD",
    "Trainer",
    "TrainingError",
    "Workers",
    "simulate",
]

# Where names are that are not trainers.
_HOMES = {
    "AccuracyEvaluator": "hvdkeras.evaluators",
    "BinaryLabelTransformer": "hvdkeras.transformers",
    "DenseTransformer": "hvdkeras.transformers",
    "History": "hvdkeras.history",
    "LabelIndexTransformer": "hvdkeras.transformers",
    "LocalCenter": "hvdkeras.center.local",
    "MinMaxTransformer": "hvdkeras.transformers",
    "Mode": "hvdkeras.algorithm",
    "ModelPredictor": "hvdkeras.predictors",
    "OneHotTransformer": "hvdkeras.transformers",
    "ReshapeTransformer": "hvdkeras.transformers",
    "StandardTransformer": "hvdkeras.transformers",
    "StandardTransformerModel": "hvdkeras.transformers",
    "TrainingError": "hvdkeras.launch.failure",
    "Workers": "hvdkeras.driver.workers",
    "simulate": "hvdkeras.simulation",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'hvdkeras' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "hvdkeras.trainers")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Horovod starts ranks with the driver's Python, so Spark's workers must run it, too.
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
if (_job := environment.job()) is not None:
    environment.prepare()
    gpu.pin(_job.local_rank, _job.local_size)
    gpu.limit_threads(_job.local_size)
