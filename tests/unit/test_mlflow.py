"""What a run of MLflow holds, in a real store of files; the messages of the ranks are made here."""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

import hvdkeras
from hvdkeras.driver.tracking import tracked
from hvdkeras.driver.training import Request
from hvdkeras.history import History
from hvdkeras.history.progress import Advance
from hvdkeras.history.records import Evaluation, RankHistory

# Without it on Python 3.10, whose oldest TensorFlow takes no protobuf that MLflow would take.
mlflow = pytest.importorskip("mlflow")
tracking = pytest.importorskip("hvdkeras.mlflow").tracking

REQUEST = Request(None, True, None, False, None)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"file://{tmp_path}/runs")
    mlflow.set_experiment("a test")
    yield
    mlflow.set_tracking_uri(before)


def trainer(**arguments):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    options = {"env": {"TOKEN": "a secret"}}
    return hvdkeras.EASGD(
        model, loss="mse", worker_optimizer=keras.optimizers.SGD(0.25), launch_options=options, **arguments
    )


def values(run, name):
    found = mlflow.MlflowClient().get_metric_history(run, name)
    # A store of files repeats the newest ones when a model is logged.
    return sorted({(each.step, each.value) for each in found})


def two_epochs():
    ranks = [
        RankHistory(0, "host", "CPU", {"loss": [4.0, 3.0]}, [10, 10], learning_rate=[0.1, 0.1]),
        RankHistory(1, "host", "CPU", {"loss": [2.0]}, [10], learning_rate=[0.1]),
    ]
    for rank in ranks:
        rank.seconds = {name: [1.0] * len(rank.rows) for name in rank.seconds}
    evaluations = [Evaluation(number, number, {"val_loss": 5.0 - number}) for number in (1.0, 2.0)]
    return History(ranks, 7.0, 20, evaluations)


def test_a_run_holds_what_is_known_of_a_training(store, tmp_path):
    one = trainer(rho=1.5, metrics=["mae", keras.losses.Huber()])
    with tracking() as runs, tracked(one, None, 2, REQUEST) as run:
        # The first evaluation was before a resume, and rank 0 alone has trained in the second epoch.
        for rank, loss in ((0, 4.0), (1, 2.0)):
            run.on_message(rank, Advance(0, 10, {}))
            run.on_message(rank, Advance(10, 10, {"loss": loss}))
        run.on_message(0, Evaluation(2.2, 9.0, {"val_loss": 3.0, "val_f1": [0.5, 0.25]}))
        run.finish(two_epochs(), lambda: [one.keras_model])
    [run_id] = runs
    found = mlflow.get_run(run_id)
    assert found.info.status == "FINISHED"
    params = found.data.params
    expected = {"trainer": "EASGD", "num_workers": "2", "rho": "1.5", "loss": "mse", "shuffle": "True"}
    assert expected.items() <= params.items()
    assert "SGD(" in params["worker_optimizer"]
    assert "learning_rate: 0.25" in params["worker_optimizer"]
    assert params["metrics"].startswith("mae, Huber(")
    assert "secret" not in str(params)
    assert values(run_id, "loss") == [(1, 3.0), (2, 3.0)]
    assert values(run_id, "val_loss") == [(1, 4.0), (2, 3.0)]
    assert values(run_id, "val_f1_0") == [(2, 0.5)]
    assert values(run_id, "training_time") == [(0, 7.0)]
    client = mlflow.MlflowClient()
    assert {each.path for each in client.list_artifacts(run_id)} >= {"history.json", "history.png"}
    assert History.load(client.download_artifacts(run_id, "history.json", str(tmp_path))) == two_epochs()
    rows = np.ones((4, 3), "float32")
    loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    np.testing.assert_allclose(loaded.predict(rows), one.keras_model(rows), rtol=1e-6)
    with pytest.raises(mlflow.MlflowException, match="shape"):
        loaded.predict(np.ones((4, 5), "float32"))


def test_runs_of_several_threads_are_children_and_failures_are_told(store):
    failing = trainer()

    def train(number):
        with tracked(failing, None, 2, REQUEST) as run:
            for rank in (0, 1):
                run.on_message(rank, Advance(10, 10, {"loss": float(number)}))
                # The ranks were lost and begin anew.
                run.on_message(rank, Advance(0, 10, {}))
            for rank in (0, 1):
                run.on_message(rank, Advance(10, 10, {"loss": float(number)}))
            raise ValueError(f"of training {number}")

    with mlflow.start_run() as parent, tracking(log_models=False) as runs:
        with ThreadPoolExecutor(2) as threads:
            errors = [each.exception(60) for each in [threads.submit(train, number) for number in (1, 2)]]
        with pytest.raises(ValueError, match="one tracker may follow"), tracking():
            pass
    assert [str(error) for error in errors] == ["of training 1", "of training 2"]
    for run_id in runs:
        run = mlflow.get_run(run_id)
        assert run.info.experiment_id == parent.info.experiment_id
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FAILED"
        assert run.data.tags["error"] == f"ValueError: of training {run.data.metrics['loss']:.0f}"
        assert {step for step, _ in values(run_id, "loss")} == {1}


def test_a_store_that_fails_costs_no_model(store, caplog):
    with tracking(), tracked(trainer(), None, 2, REQUEST) as run:
        run.on_message(0, Evaluation(1.0, 1.0, {"not a name?!": math.pi}))
        run.finish(two_epochs(), list)
    assert "MLflow did not take the metrics while the training runs" in caplog.text


def test_without_mlflow_the_error_has_the_remedy():
    code = "import sys; sys.modules['mlflow'] = None; import hvdkeras.mlflow"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "hvdkeras.mlflow needs MLflow 3: pip install 'hvdkeras[mlflow]'" in found.stderr
