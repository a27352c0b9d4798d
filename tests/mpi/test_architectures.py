"""Models of the kinds that people train, by the families of algorithms; their files need only Keras."""

import subprocess
import sys

import pytest

import architectures

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

# Those that exchange weights take turns: their rules are blind to what a model is made of.
TURNS = ("EASGD", "AsynchronousEASGD", "DOWNPOUR", "AsynchronousEASGD", "EASGD")
PAIRS = [(make, "SynchronousSGD") for make in architectures.SMALL]
PAIRS += zip(architectures.SMALL, TURNS, strict=True)
KERAS_ALONE = """
import pathlib, sys
sys.modules["hvdkeras"] = None  # an import of it raises
import keras, numpy as np
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.keras")):
    model, stored = keras.models.load_model(file), np.load(file.with_suffix(".npz"))
    inputs = [keras.ops.convert_to_tensor(stored[key].tolist()) for key in stored if key != "predicted"]
    predicted = model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
    np.testing.assert_allclose(predicted, stored["predicted"], atol=1e-5, err_msg=file.stem)
    print(file.stem)
"""


def test_each_trains_and_opens_where_there_is_only_keras(on_ranks, tmp_path):
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    wrong = on_ranks(2, architectures.train, PAIRS, tmp_path, timeout=500)
    assert wrong == [[], []]
    alone = subprocess.run(
        [sys.executable, "-c", KERAS_ALONE, str(tmp_path / "0")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert alone.returncode == 0, alone.stderr[-4000:]
    assert len(alone.stdout.split()) == len(PAIRS)
