"""Inputs of any form train to what Keras gives."""

import numpy as np
import pytest

import inputs

pytestmark = pytest.mark.mpi


def test_the_weights_are_those_that_keras_gives(on_ranks):
    expected = [inputs.trained_by_keras(case) for case in inputs.CASES]
    for trained in on_ranks(2, inputs.trained_by_ranks, inputs.CASES, 2, timeout=400):
        for case, received, wanted in zip(inputs.CASES, trained, expected, strict=True):
            for one, other in zip(received, wanted, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5, err_msg=case.__name__)
