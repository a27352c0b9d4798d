"""What ranks leave out of Keras's imports, and that it is there when it is used."""

import os
import subprocess
import sys
import textwrap

PROGRAM = """
    import inspect
    import sys

    from hvdkeras.launch import deferred

    deferred.defer()
    import keras
    import numpy as np

    def loaded():
        return [name for name in ("sklearn", "pandas", "matplotlib") if name in sys.modules]

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    rows = np.ones((4, 3), np.float32)
    predicted = model.predict(rows, verbose=0)
    assert loaded() == [], loaded()

    import pandas as pd

    frame = pd.DataFrame(rows)
    assert np.array_equal(model.predict(frame, verbose=0), predicted)
    assert len(model.fit(frame, pd.Series([1.0, 2.0, 3.0, 4.0]), verbose=0).history["loss"]) == 1
    assert loaded() == ["pandas"], loaded()

    from sklearn.base import BaseEstimator

    assert issubclass(keras.wrappers.SKLearnClassifier, BaseEstimator)
    from keras.src.wrappers.sklearn_wrapper import SKLearnClassifier

    assert SKLearnClassifier is keras.wrappers.SKLearnClassifier
    assert inspect.getsource(keras.wrappers)

    import matplotlib

    matplotlib.use("Agg")
    assert "plot_image_gallery" in dir(keras.visualization)
    keras.visualization.plot_image_gallery(np.zeros((1, 8, 8, 3)), value_range=(0, 1), rows=1, cols=1)
    print("all there")
"""


def test_keras_loads_three_libraries_at_their_first_use():
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "all there", done.stderr


def test_trainers_load_no_pandas():
    program = (
        "import sys, hvdkeras.trainers; print([name for name in ('pandas', 'keras') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


def test_a_rank_that_leaves_loses_nothing(tmp_path):
    program = f"""
        import atexit, threading, time
        from hvdkeras.launch import rank

        kept = open({str(tmp_path / "kept")!r}, "w")
        kept.write("buffered")
        def late():
            time.sleep(0.2)
            print("thread")
        threading.Thread(target=late).start()
        atexit.register(print, "exit function")
        class Cycle:
            def __del__(self):
                print("finalised")
        cycle = Cycle()
        cycle.own = cycle
        del cycle
        rank.leave()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.split("\n")[:-1]) == (0, ["thread", "exit function", "finalised"])
    assert (tmp_path / "kept").read_text() == "buffered"
