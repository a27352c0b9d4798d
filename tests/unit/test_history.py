import copy
import json
import math

import numpy as np
import pytest

from hvdkeras import SingleTrainer
from hvdkeras.history import Evaluation, History, RankHistory

SECONDS = {"computation": [3.0, 3.0], "communication": [1.0, 1.0], "waiting": [0.5, 0.5]}
EVALUATIONS = [
    Evaluation(0.5, 3.0, {"val_loss": 3.0, "val_recall": 0.1}),
    Evaluation(2.0, 9.0, {"val_loss": 1.0, "val_recall": 0.5}),
]


@pytest.fixture
def history() -> History:
    ranks = [
        RankHistory(0, "a", "CPU", {"loss": [4.0, 2.0]}, [10, 10], SECONDS),
        RankHistory(1, "b", "CPU", {"loss": [1.0, 0.5]}, [20, 20], SECONDS),
    ]
    return History(ranks, training_time=12.0, rows=30)


@pytest.fixture
def full(history: History) -> History:
    """A history with all that an asynchronous training with a validated center leaves."""
    full = copy.deepcopy(history)
    full.center, full.restarts = EVALUATIONS, ["rank 1 on b was killed"]
    for rank in full.ranks:
        rank.learning_rate = [0.1, 0.05]
        rank.staleness = [1.0, 0.25 * rank.rank]
        rank.distance = [2.0, 1.0]
        rank.events = [("computation", 100.0 + rank.rank, 0.25), ("waiting", 100.25 + rank.rank, 0.5)]
    return full


def test_average_is_weighted_by_rows(history):
    assert history.averaged() == {"loss": [2.0, 1.0]}


def test_rows_seen_adds_up(history):
    assert history.rows_seen() == [30, 30]


def test_pandas_has_a_row_for_each_rank_and_epoch(history):
    table = history.to_pandas()
    assert table[["rank", "epoch", "rows", "loss"]].to_numpy().tolist() == [
        [0, 1, 10, 4.0],
        [0, 2, 10, 2.0],
        [1, 1, 20, 1.0],
        [1, 2, 20, 0.5],
    ]
    assert table["seconds_waiting"].sum() == 2.0
    assert table[["learning_rate", "staleness", "distance"]].isna().all(axis=None)


def test_pandas_has_what_the_ranks_measured(full):
    table = full.to_pandas()
    assert table[["learning_rate", "staleness", "distance"]].to_numpy().tolist() == [
        [0.1, 1.0, 2.0],
        [0.05, 0.0, 1.0],
        [0.1, 1.0, 2.0],
        [0.05, 0.25, 1.0],
    ]


def test_the_center_as_pandas(history, full):
    assert full.center_to_pandas().to_dict("records") == [
        {"member": 0, "epoch": 0.5, "seconds": 3.0, "val_loss": 3.0, "val_recall": 0.1},
        {"member": 0, "epoch": 2.0, "seconds": 9.0, "val_loss": 1.0, "val_recall": 0.5},
    ]
    assert history.center_to_pandas().columns.tolist() == ["member", "epoch", "seconds"]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_saved_history_is_the_same(history, full, scheme, tmp_path):
    path = f"{scheme}{tmp_path}/history.json"
    for saved in (history, full):
        saved.save(path)
        assert History.load(path) == saved


def test_a_diverged_history_is_saved_as_standard_json(full, tmp_path):
    full.ranks[1].metrics["loss"] = [math.inf, math.nan]
    full.ranks[1].distance[1] = -math.inf
    full.save(str(tmp_path / "history.json"))

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads((tmp_path / "history.json").read_text(), parse_constant=refuse)["hvdkeras_history"] == 1
    loaded = History.load(str(tmp_path / "history.json"))
    assert loaded.ranks[1].metrics["loss"][0] == math.inf
    assert math.isnan(loaded.ranks[1].metrics["loss"][1])
    assert loaded.ranks[1].distance == [2.0, -math.inf]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"ranks": []}'])
def test_what_is_no_saved_history_is_refused(text, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match="path must name a file that History.save wrote.*other.json"):
        History.load(str(tmp_path / "other.json"))


@pytest.mark.parametrize("change", [{"ranks": [{"code": "x"}]}, {"ranks": 3}, {"center": None}, {"more": 1}])
def test_a_history_that_was_changed_is_refused(history, change, tmp_path):
    path = tmp_path / "changed.json"
    history.save(str(path))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match="as History.save writes it.*changed.json' .TypeError"):
        History.load(str(path))


def test_a_history_of_another_version_is_refused(tmp_path):
    (tmp_path / "newer.json").write_text('{"hvdkeras_history": 2, "runs": []}')
    with pytest.raises(ValueError, match="format 1,.*newer.json' of the format 2"):
        History.load(str(tmp_path / "newer.json"))


def test_a_timeline_is_in_the_trace_event_format(full, tmp_path):
    full.timeline(str(tmp_path / "timeline.json"))
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {0: "rank 0 on a, CPU", 1: "rank 1 on b, CPU"}
    assert [event for event in events if event["ph"] == "X" and event["pid"] == 1] == [
        {"name": "computation", "cat": "training", "ph": "X", "pid": 1, "tid": 0, "ts": 1e6, "dur": 250e3},
        {"name": "waiting", "cat": "training", "ph": "X", "pid": 1, "tid": 0, "ts": 1.25e6, "dur": 500e3},
    ]
    assert len(events) == 6


def test_a_timeline_without_events_is_refused(history, tmp_path):
    with pytest.raises(ValueError, match="a trainer with the argument timeline"):
        history.timeline(str(tmp_path / "timeline.json"))


def test_picture_has_a_line_for_each_rank(history, tmp_path):
    figure = history.plot(str(tmp_path / "history.png"))
    loss, seconds = figure.axes
    assert [line.get_ydata().tolist() for line in loss.lines] == [[4.0, 2.0], [1.0, 0.5]]
    assert np.isclose(sum(bar.get_width() for bar in seconds.patches), 18.0)
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


def test_picture_has_panels_for_what_varies(full):
    for rank in full.ranks:
        rank.learning_rate = [0.1, 0.1]
    panels = {axes.get_title(): axes for axes in full.plot().axes}
    assert list(panels) == [
        "loss",
        "recall",
        "staleness (updates of other ranks)",
        "distance from the center (L2 norm)",
        "where the time went",
    ]
    *_, distance, _ = panels.values()
    assert [line.get_ydata().tolist() for line in distance.lines] == [[2.0, 1.0], [2.0, 1.0]]


def test_picture_has_the_center_in_the_panel_of_its_metric(full):
    loss, recall, *_ = full.plot().axes
    *ranks, center = loss.lines
    assert len(ranks) == 2
    assert (list(center.get_xdata()), list(center.get_ydata())) == ([0.5, 2.0], [3.0, 1.0])
    assert {line.get_linestyle() for line in ranks} == {"-"}
    assert center.get_linestyle() == "--"
    assert list(recall.lines[-1].get_ydata()) == [0.1, 0.5]


@pytest.mark.parametrize("count", [1, 2, 8, 24])
def test_picture_has_no_empty_panel_and_a_name_for_each_bar(count):
    ranks = [RankHistory(i, "a", "CPU", {"loss": [2.0, 1.0]}, [9, 9], SECONDS) for i in range(count)]
    figure = History(ranks, 1.0, 18).plot()
    assert all(axes.lines or axes.patches for axes in figure.axes)
    assert figure.axes[-1].get_yticklabels()[0].get_text() == "rank 0"
    (legend,) = figure.legends
    assert len(legend.get_texts()) == (count if count <= 10 else 2)


QUESTIONS = {
    "get_history": (),
    "get_averaged_history": (),
    "get_executor_history": (0,),
    "get_training_time": (),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_trainer_tells_nothing_before_it_has_trained(question):
    with pytest.raises(RuntimeError, match=f"train must be called before {question}"):
        getattr(SingleTrainer(None), question)(*QUESTIONS[question])


def test_a_trainer_tells_of_its_training_as_in_dist_keras(history):
    trainer = SingleTrainer(None)
    trainer.history = history
    assert trainer.get_history() == history.ranks
    assert trainer.get_averaged_history() == {"loss": [2.0, 1.0]}
    assert trainer.get_executor_history(1).host == "b"
    assert trainer.get_training_time() == 12.0
    for unknown in (2, -1, "1"):
        with pytest.raises(ValueError, match=f"executor_id must be from 0 to 1. Received: {unknown!r}"):
            trainer.get_executor_history(unknown)
