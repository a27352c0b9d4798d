import numpy as np
import pytest

from hvdkeras.history import History, RankHistory


@pytest.fixture
def history() -> History:
    seconds = {"computation": [3.0, 3.0], "communication": [1.0, 1.0], "waiting": [0.5, 0.5]}
    ranks = [
        RankHistory(0, "a", "CPU", {"loss": [4.0, 2.0]}, [10, 10], seconds),
        RankHistory(1, "b", "CPU", {"loss": [1.0, 0.5]}, [20, 20], seconds),
    ]
    return History(ranks, training_time=12.0, rows=30)


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


def test_picture_has_a_line_for_each_rank(history, tmp_path):
    figure = history.plot(str(tmp_path / "history.png"))
    loss, seconds = figure.axes
    assert [line.get_ydata().tolist() for line in loss.lines] == [[4.0, 2.0], [1.0, 0.5]]
    assert np.isclose(sum(bar.get_width() for bar in seconds.patches), 18.0)
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
