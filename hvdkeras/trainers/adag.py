"""Asynchronous distributed adaptive gradients: DOWNPOUR with updates divided by the window."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from hvdkeras.algorithm import Center, Rule
from hvdkeras.arguments import argument, positive
from hvdkeras.trainers.downpour import DOWNPOUR


def accumulated_gradient_normalization(
    local: np.ndarray, center: np.ndarray, pulled: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """One exchange of ADAG (Hermans 2017, equation 3.3).

        update = (local - pulled) / steps
        center <- center + update
        local  <- center

    Args:
        local: a worker's weights, shape `(n,)`, float32.
        center: the center variable, shape `(n,)`, float32.
        pulled: what the worker pulled at its exchange before, shape `(n,)`.
        steps: batches since then.

    Returns:
        The worker's new weights and the update that it adds to the center, each of shape `(n,)`.
    """
    update = (local - pulled) / np.float32(steps)
    return center + update, update


class ADAG(DOWNPOUR):
    """DOWNPOUR that adds the mean step of a window instead of the sum of its steps.

    A window then moves the center as far as one batch does, in a better direction: stable where DOWNPOUR
    diverges, at the price of slower progress for each sample.

    Args:
        keras_model: the model to train; see `Trainer` for the arguments that all trainers share.
        communication_window: batches between two exchanges. The default, 12, is what dist-keras uses.

    Reference:
        Hermans, [On Scalable Deep Learning and Parallelizing Gradient Descent](
        https://github.com/JoeriHermans/master-thesis), 2017; also Hermans, Spanakis, Möckel,
        [Accumulated Gradient Normalization](https://arxiv.org/abs/1710.02368), 2017.
    """

    settles = True
    longest_stable_window = math.inf

    communication_window: int = argument(12, positive(int))

    def rule(self, center: Center, steps: int) -> Rule:
        return partial(accumulated_gradient_normalization, steps=steps)
