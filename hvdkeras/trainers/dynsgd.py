"""DynSGD: DOWNPOUR with updates divided by their staleness."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from hvdkeras.algorithm import Center, Rule
from hvdkeras.trainers.downpour import DOWNPOUR


def staleness_aware(
    local: np.ndarray, center: np.ndarray, pulled: np.ndarray, staleness: int
) -> tuple[np.ndarray, np.ndarray]:
    """One exchange of DynSGD (Jiang et al. 2017, section 4.2).

        update = (local - pulled) / (staleness + 1)
        center <- center + update
        local  <- center

    Args:
        local: a worker's weights, shape `(n,)`, float32.
        center: the center variable, shape `(n,)`, float32.
        pulled: what the worker pulled at its exchange before, shape `(n,)`.
        staleness: how many updates of other workers the center took since then.

    Returns:
        The worker's new weights and the update that it adds to the center, each of shape `(n,)`.
    """
    update = (local - pulled) / np.float32(staleness + 1)
    return center + update, update


class DynSGD(DOWNPOUR):
    """DOWNPOUR that divides each update by its staleness plus one: the later it is, the smaller.

    Args:
        keras_model: the model to train; see `Trainer` for the arguments that all trainers share.
        communication_window: batches between two exchanges. The default, 5, is what dist-keras uses.

    Reference:
        Jiang, Cui, Zhang, Yu, [Heterogeneity-aware Distributed Parameter Servers](
        https://doi.org/10.1145/3035918.3035933), 2017.
    """

    settles = True
    longest_stable_window = math.inf

    def rule(self, center: Center, steps: int) -> Rule:
        return partial(staleness_aware, staleness=center.staleness())
