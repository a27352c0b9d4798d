"""Distributed training of Keras models on Spark data, over MPI.

Importing the package loads neither TensorFlow nor MPI nor Horovod: a Spark driver stays light, and ranks
set their devices and variables first. In a process of a running job the import itself does that: a script
builds its model, with which TensorFlow takes its devices, before it calls `train`.
"""

import os
import sys

from hvdkeras.history.records import History
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
    "SingleTrainer",
    "SynchronousEAMSGD",
    "SynchronousSGD",
    "Trainer",
    "TrainingError",
]

# Horovod starts ranks with the driver's Python, so Spark's workers must run it, too.
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
if (_job := environment.job()) is not None:
    environment.prepare()
    gpu.pin(_job.local_rank, _job.local_size)
    gpu.limit_threads(_job.local_size)
