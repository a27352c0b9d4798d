"""Models of the kinds that people train, by the families of algorithms; their files need only Keras."""

import subprocess
import sys
from pathlib import Path

import pytest

import architectures

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

ALGORITHMS = ("EASGD", "AsynchronousEASGD", "DOWNPOUR", "SynchronousSGD")
SMALL = [(make, algorithm) for make in architectures.SMALL for algorithm in ALGORITHMS]
# Large models take turns: twelve trainings of them are four minutes.
LARGE = list(zip(architectures.APPLICATIONS, ALGORITHMS, strict=False))
KERAS_ALONE = """
import pathlib, sys
sys.modules["hvdkeras"] = None  # an import of it raises
import keras, numpy as np
sys.path.insert(0, sys.argv[2])
import architectures
architectures.sampling()  # registers the user's own layer
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.keras")):
    model, stored = keras.models.load_model(file), np.load(file.with_suffix(".npz"))
    inputs = [keras.ops.convert_to_tensor(stored[key].tolist()) for key in stored if key != "predicted"]
    predicted = architectures.predictions(model, inputs)
    np.testing.assert_allclose(predicted, stored["predicted"], atol=1e-5, err_msg=file.stem)
    print(file.stem)
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("pairs", [SMALL, LARGE], ids=["small", "large"])
def test_each_trains_and_opens_where_there_is_only_keras(on_ranks, tmp_path, pairs):
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    wrong = on_ranks(2, architectures.train, pairs, tmp_path, timeout=500)
    assert wrong == [[], []]
    alone = subprocess.run(
        [sys.executable, "-c", KERAS_ALONE, str(tmp_path / "0"), str(Path(architectures.__file__).parent)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert alone.returncode == 0, alone.stderr[-4000:]
    assert len(alone.stdout.split()) == len(pairs)
