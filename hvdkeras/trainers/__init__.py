"""What the user constructs: the training algorithms, one a file, each with its rule and its class."""

from hvdkeras.trainers.adag import ADAG
from hvdkeras.trainers.averaging import AveragingTrainer
from hvdkeras.trainers.diloco import DiLoCo
from hvdkeras.trainers.downpour import DOWNPOUR, AdaptiveDOWNPOUR
from hvdkeras.trainers.dynsgd import DynSGD
from hvdkeras.trainers.easgd import AEASGD, EAMSGD, EASGD, AsynchronousEASGD, SynchronousEAMSGD
from hvdkeras.trainers.ensemble import EnsembleTrainer
from hvdkeras.trainers.single import SingleTrainer
from hvdkeras.trainers.synchronous import SynchronousSGD
from hvdkeras.trainers.trainer import Trainer

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
    "SingleTrainer",
    "SynchronousEAMSGD",
    "SynchronousSGD",
    "Trainer",
]
