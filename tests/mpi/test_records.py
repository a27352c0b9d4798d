"""What a training on two ranks leaves in its history, its timeline and on the screen."""

import contextlib
import io
import json

import keras
import numpy as np
import pytest

import hvdkeras

pytestmark = pytest.mark.mpi

EPOCHS, STEPS, RATE = 3, 6, 0.05


def data() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    features = random.normal(size=(48, 3)).astype("float32")
    return {"features": features, "label": features @ np.array([1, 2, -1], np.float32)}


def train(algorithm: str, **arguments) -> hvdkeras.Trainer:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.zeros((3, 1))])
    trainer = getattr(hvdkeras, algorithm)(model, loss="mse", num_workers=2, num_epoch=EPOCHS, **arguments)
    trainer.train(data())
    return trainer


def test_an_asynchronous_training(tmp_path, capsys):
    path = tmp_path / "timeline.json"
    schedule = keras.optimizers.schedules.ExponentialDecay(RATE, decay_steps=STEPS, decay_rate=0.5)
    trainer = train(
        "DOWNPOUR",
        batch_size=4,
        communication_window=2,
        worker_optimizer=keras.optimizers.SGD(schedule),
        timeline=str(path),
    )
    printed = capsys.readouterr().err.splitlines()
    shown = [line for line in printed if "epoch" in line]
    assert [line.split("  ")[0] for line in shown] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    averaged = trainer.get_averaged_history()["loss"]
    assert [line.split("  ")[1] for line in shown] == [f"loss {loss:.4f}" for loss in averaged]

    for rank in trainer.get_history():
        np.testing.assert_allclose(rank.learning_rate, [RATE / 2, RATE / 4, RATE / 8], rtol=1e-6)
        # Three windows an epoch.
        assert np.isclose(np.sum(rank.staleness) * 3, rank.telemetry["staleness_sum"])
        assert len(rank.staleness) == len(rank.distance) == EPOCHS
        assert min(rank.distance) > 0
        computed = [seconds for name, _, seconds in rank.events if name == "computation"]
        assert len(computed) == 3 * EPOCHS
        # Between an epoch's last window and its end there is little else.
        assert 0.5 * sum(rank.seconds["computation"]) <= sum(computed) <= sum(rank.seconds["computation"])
        starts = [start for _, start, _ in rank.events]
        assert starts == sorted(starts)
    events = json.loads(path.read_text())["traceEvents"]
    assert {event["pid"] for event in events if event["ph"] == "X"} == {0, 1}


def test_a_synchronous_training():
    trainer = train("AveragingTrainer", batch_size=24, learning_rate=RATE, verbose=0)
    columns, center, expected = data(), np.zeros(3), np.empty((EPOCHS, 2))
    for epoch in range(EPOCHS):
        # Each rank takes one step on its half of the rows, from the center.
        steps = []
        for half in (slice(0, 24), slice(24, 48)):
            features, labels = columns["features"][half], columns["label"][half]
            steps.append(RATE * 2 * features.T @ (labels - features @ center) / 24)
        expected[epoch] = np.linalg.norm(steps, axis=1)
        center = center + np.mean(steps, axis=0)
    received = np.transpose([rank.distance for rank in trainer.get_history()])
    np.testing.assert_allclose(received, expected, rtol=1e-4)
    assert [(rank.staleness, rank.events) for rank in trainer.get_history()] == [([], [])] * 2


def shown_in_a_job() -> tuple[list[list[str]], list[str]]:
    """What a rank of a running job shows: an ensemble of three is trained by the first two ranks."""
    with contextlib.redirect_stderr(io.StringIO()) as stream:
        trainer = train("EnsembleTrainer", num_models=3)
    own = [history.metrics["loss"] for history in trainer.get_history() if history.rank == 0]
    shown = [line.split("  ")[:2] for line in stream.getvalue().splitlines() if line.startswith("epoch")]
    return shown, [f"loss {loss:.4f}" for loss in np.mean(own, axis=0)]


def test_in_a_running_job_rank_0_tells_of_its_own_models(on_ranks):
    (shown, losses), *others = on_ranks(3, shown_in_a_job)
    assert shown == [[f"epoch {epoch}/3", loss] for epoch, loss in enumerate(losses, 1)]
    assert [shown for shown, _ in others] == [[], []]


def test_a_timeline_that_cannot_be_written_is_named_before_the_launch(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="timeline must be a path.*Received.*file/timeline.json"):
        train("DOWNPOUR", timeline=str(tmp_path / "file" / "timeline.json"))
    assert capsys.readouterr().err == ""
