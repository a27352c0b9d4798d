"""An executor that is killed while its rank trains: the training goes on by itself."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.spark, pytest.mark.slow]

TESTS = Path(__file__).parents[1]

PROGRAM = """
import os, sys, time
sys.path.insert(0, {tests!r})
os.environ["PYSPARK_PYTHON"] = sys.executable
import keras
import numpy as np
import psutil
from pyspark.sql import SparkSession
import digits
import hvdkeras


class KillExecutor(keras.callbacks.Callback):
    '''Kills the JVM above rank 1, once, in the middle of the fourth epoch.'''

    def __init__(self, done):
        super().__init__()
        self.done = done

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.params["rank"] != 1 or self.epoch != 3 or os.path.exists(self.done):
            return
        open(self.done, "w").close()
        executors = [p for p in psutil.Process().parents() if p.name() == "java"]
        executors[0].kill()
        time.sleep(100)  # The end comes from outside, and not at once.


if __name__ == "__main__":
    folder = sys.argv[1]
    session = SparkSession.builder.master("local-cluster[2,1,1024]")
    session = session.config("spark.ui.enabled", "false").config("spark.executor.memory", "900m")
    session = session.config("spark.driver.host", "127.0.0.1").getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    learn, _ = digits.data()
    rows = [(f.tolist(), int(label)) for f, label in zip(learn["features"], learn["label"], strict=True)]
    frame = session.createDataFrame(rows, "features array<float>, label int").coalesce(2)
    elastic = dict(learning_rate=0.05, rho=2.0, communication_window=4, num_epoch=8, num_workers=2)

    def train(**arguments):
        trainer = hvdkeras.EASGD(digits.model(), **digits.FOUND, **elastic, store=folder, **arguments)
        trained = trainer.train(frame)
        return trainer.history, trained.get_weights()

    _, wanted = train()
    history, received = train(
        checkpoint=folder + "/checkpoints", max_restarts=1, callbacks=[KillExecutor(folder + "/killed")]
    )
    assert os.path.exists(folder + "/killed")
    assert len(history.restarts) == 1, history.restarts
    assert history.rows_seen() == [1437] * 8, history.rows_seen()
    for one, other in zip(received, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    print("RESTARTED:", history.restarts[0])
    session.stop()
"""


@pytest.mark.timeout(280)
def test_a_lost_executor_is_replaced_and_the_training_goes_on(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM.format(tests=str(TESTS)))
    command = [sys.executable, str(file), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=260)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "RESTARTED: rank" in ended.stdout
