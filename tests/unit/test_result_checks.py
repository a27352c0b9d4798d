"""What is made of a training's outcome: tried on the driver before anything is launched."""

import io

import keras
import numpy as np
import pyarrow as pa
import pytest

import hvdkeras
from hvdkeras.data.columns import Column
from hvdkeras.data.parts import check_outcomes, write_part
from hvdkeras.history import Evaluation, History, RankHistory
from hvdkeras.history.progress import Advance, Progress
from hvdkeras.history.records import SECONDS


def model() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])


def test_a_predictor_that_can_not_be_made_is_known_before_the_training():
    trainer = hvdkeras.EASGD(model(), loss="mse", output_col=["a", "b"])
    with pytest.raises(ValueError, match="output_col must name one column for each of the model's 1 outputs"):
        trainer.fit(None)


def test_a_metric_that_keras_does_not_know_is_refused_at_once():
    # As a loss "crossentropy" is a name of Keras, as a metric it is not.
    with pytest.raises(ValueError, match="crossentropy"):
        hvdkeras.EASGD(model(), loss="mse", metrics=["crossentropy"]).recipe()


def test_metrics_that_are_vectors_are_recorded_drawn_and_saved(tmp_path):
    ranks = [
        RankHistory(
            number,
            "host",
            "CPU",
            metrics={"f1_score": [[0.0, number], [0.5, 1.0]]},
            rows=[3, 3],
            seconds={name: [1.0, 1.0] for name in SECONDS},
        )
        for number in range(2)
    ]
    center = [Evaluation(1.0, 0.1, {"val_f1_score": [0.25, 0.75]})]
    history = History(ranks, 2.0, 6, center)
    assert history.averaged() == {"f1_score": [[0.0, 0.5], [0.5, 1.0]]}
    assert history.to_pandas()["f1_score"].tolist()[0] == [0.0, 0]
    history.save(str(tmp_path / "history.json"))
    assert History.load(str(tmp_path / "history.json")) == history
    lines = history.plot(str(tmp_path / "history.png")).axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == [[0.0, 0.75], [0.5, 0.75], [0.5]]


def test_the_progress_shows_vectors():
    stream = io.StringIO()
    with Progress(1, 1, stream) as progress:
        progress.on_message(0, Advance(0, 3, {}))
        progress.on_message(0, Evaluation(1.0, 0.1, {"val_f1": [0.5, 1.0]}))
        progress.on_message(0, Advance(3, 3, {"f1": [0.25, 0.75]}))
    assert "f1 [0.2500 0.7500]  val_f1 [0.5000 1.0000]" in stream.getvalue()


@pytest.mark.parametrize(
    ("raw", "rounded"),
    [
        (np.array([[1, 2**24 + 1]]), True),
        (pa.array([[1, -(2**24) - 1]]), True),
        (np.array([[1, 2**24 - 1]]), False),
        (np.array([[1.0, 2.0**30]]), False),
    ],
)
def test_integers_that_float32_rounds_warn_once(tmp_path, caplog, raw, rounded):
    columns = (Column("number", (2,), "float32"),)
    outcomes = [write_part(str(tmp_path), name, columns, [[raw], [raw]]) for name in ("a", "b")]
    check_outcomes(columns, outcomes)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == rounded
    assert all("integers of 'number' are rounded" in message for message in messages)
