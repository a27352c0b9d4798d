"""Vectors in half precision: what is rounded off is not lost."""

import numpy as np
import pytest

from hvdkeras.center.half import Half, Rounding


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_the_sum_of_all_vectors_is_right_but_for_the_last_rounding(dtype, bits):
    random = np.random.default_rng(0)
    half, out = Half(dtype), np.empty(100_000, np.uint16)
    rounding = Rounding(100_000, half)
    exact, rounded = np.zeros(100_000), np.zeros(100_000)
    for _ in range(50):
        # Between two numbers of the dtype, so that errors would add up.
        values = (1.0014 + 0.0001 * random.normal(size=100_000)).astype(np.float32)
        rounding(values, out)
        exact += values
        rounded += half.read(out)
    assert np.abs(rounded - exact).max() <= 2.0**-bits * 2 + 1e-5
    assert np.abs(rounded - exact).max() > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_and_large_numbers_arrive_in_time(dtype):
    half, out = Half(dtype), np.empty(3, np.uint16)
    rounding = Rounding(3, half)
    total, exact = np.zeros(3), np.zeros(3)
    for values in ([1e-9, 1e5, 0.0], *[[1e-9, 0.0, 0.0]] * 99):
        values = np.array(values, np.float32)
        rounding(values, out)
        total += half.read(out)
        exact += values
    np.testing.assert_allclose(total, exact, rtol=0.01, atol=3e-8)
    assert np.isfinite(total).all()
