"""`hvdkeras measure` trains for real, and prints what a simulation takes."""

import subprocess
import sys

import keras
import pytest

from hvdkeras.simulation import Times

pytestmark = pytest.mark.mpi


def test_measure_prints_times(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.save(tmp_path / "model.keras")
    command = [sys.executable, "-m", "hvdkeras.launch.cli", "measure", "--window", "5", "--batch-size", "8"]
    ran = subprocess.run(
        [*command, tmp_path / "model.keras"], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()
    times = eval(first, {"Times": Times})
    assert times.exchange > 0
    assert f"serves {times.knee(5, size=15):.0f} workers" in second
