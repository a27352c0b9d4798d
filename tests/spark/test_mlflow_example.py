"""The example of MLflow, in this process, whose Spark session it takes, with a store of files."""

import runpy
from pathlib import Path

import pytest

from hvdkeras.history import History

EXAMPLE = Path(__file__).parents[2] / "examples" / "mlflow_tracking.py"
pytestmark = [pytest.mark.spark, pytest.mark.slow]


def test_the_run_has_everything_and_its_model_scores(spark, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    made = runpy.run_path(str(EXAMPLE))
    assert made["accuracy"] > 0.9
    client, run_id = mlflow.MlflowClient(), made["runs"][-1]
    assert client.get_run(run_id).data.metrics["test_accuracy"] == made["accuracy"]
    history = History.load(client.download_artifacts(run_id, "history.json", str(tmp_path)))
    assert history == made["trainer"].history
    center = client.get_metric_history(run_id, "val_accuracy")
    assert [each.value for each in center][: len(history.center)] == [
        pytest.approx(each.metrics["val_accuracy"]) for each in history.center
    ]
    files = {each.path: each.file_size for each in client.list_artifacts(run_id)}
    assert min(files[name] for name in ("history.png", "timeline.json")) > 1000
