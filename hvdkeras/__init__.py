"""Distributed training of Keras models on Spark data, over MPI.

Importing the package loads neither TensorFlow nor MPI nor Horovod: a Spark driver stays light, and ranks
set their devices and variables first. In a process of a running job the import itself does that: a script
builds its model, with which TensorFlow takes its devices, before it calls `train`.
"""

import os
import sys
from importlib import import_module
from typing import Any

from hvdkeras.algorithm import Mode
from hvdkeras.history import History
from hvdkeras.launch import environment, gpu
from hvdkeras.launch.failure import TrainingError
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

__version__ = "0.1.0"

__all__ = [
    "ADAG",
    "AEASGD",
    "DOWNPOUR",
    "EAMSGD",
    "EASGD",
    "AdaptiveDOWNPOUR",
    "AsynchronousEASGD",
    "AveragingTrainer",
    "DiLoCo",
    "DynSGD",
    "EnsembleTrainer",
    "History",
    "Mode",
    "SingleTrainer",
    "SynchronousEAMSGD",
    "SynchronousSGD",
    "Trainer",
    "TrainingError",
]

# Loaded when they are asked for: importing the package stays light.
_LATER = {
    "AccuracyEvaluator": "hvdkeras.evaluators",
    "BinaryLabelTransformer": "hvdkeras.transformers",
    "DenseTransformer": "hvdkeras.transformers",
    "LabelIndexTransformer": "hvdkeras.transformers",
    "LocalCenter": "hvdkeras.center.local",
    "MinMaxTransformer": "hvdkeras.transformers",
    "ModelPredictor": "hvdkeras.predictors",
    "OneHotTransformer": "hvdkeras.transformers",
    "ReshapeTransformer": "hvdkeras.transformers",
    "StandardTransformer": "hvdkeras.transformers",
    "StandardTransformerModel": "hvdkeras.transformers",
}
__all__ += _LATER


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Horovod starts ranks with the driver's Python, so Spark's workers must run it, too.
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
if (_job := environment.job()) is not None:
    environment.prepare()
    gpu.pin(_job.local_rank, _job.local_size)
    gpu.limit_threads(_job.local_size)
