"""What ranks' messages come to, on a stream that is a terminal and on one that is not."""

import io
import re
import threading
import time

import pytest

from hvdkeras.history import Evaluation, progress
from hvdkeras.history.progress import Advance, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError("nobody reads this")


def lines(stream: io.StringIO) -> list[str]:
    """What was written, without speeds and times."""
    return [re.sub(r"  \d+ samples/s(  [\d:]+ left)?$", "", line) for line in stream.getvalue().splitlines()]


def last_bar(stream: io.StringIO) -> str:
    return stream.getvalue().rstrip().split("\r")[-1]


def wait_for(words: str, stream: io.StringIO) -> None:
    deadline = time.monotonic() + 20
    while words not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.01)


def test_a_line_for_each_epoch_that_all_ranks_have_ended():
    stream = io.StringIO()
    with Progress(2, 2, stream) as shown:
        shown.on_message(0, Advance(0, 10, {}))
        shown.on_message(0, Advance(10, 10, {"loss": 4.0}))
        shown.on_message(0, Advance(15, 10, {"loss": 9.0}))
        shown.on_message(1, Advance(0, 30, {}))
        shown.on_message(1, Advance(15, 30, {"loss": 9.0}))
        assert lines(stream) == []
        shown.on_message(1, Advance(30, 30, {"loss": 2.0}))
        assert lines(stream) == ["epoch 1/2  loss 2.5000"]
        assert re.search(r"  \d+ samples/s  \d\d:\d\d left$", stream.getvalue().rstrip())
        for rank, rows in ((0, 10), (1, 30)):
            shown.on_message(rank, Advance(2 * rows, rows, {"loss": 1.0}))
    assert lines(stream) == ["epoch 1/2  loss 2.5000", "epoch 2/2  loss 1.0000"]
    assert not stream.getvalue().rstrip().endswith("left")


def test_an_ensembles_epoch_ends_with_its_last_member():
    stream = io.StringIO()
    with Progress(3, 1, stream) as shown:
        for rank, model in ((0, 0), (1, 1), (0, 2)):
            assert lines(stream) == []
            shown.on_message(rank, Advance(0, 10, {}, model))
            shown.on_message(rank, Advance(10, 10, {"loss": float(model)}, model))
    assert lines(stream) == ["epoch 1/1  loss 1.0000"]


def test_the_newest_validation_stands_beside_the_metrics():
    stream = io.StringIO()
    with Progress(1, 2, stream) as shown:
        shown.on_message(0, Advance(0, 10, {}))
        for epoch in (1, 2):
            shown.on_message(0, Evaluation(epoch - 0.5, 1.0, {"val_loss": 3.0 / epoch}))
            shown.on_message(0, Advance(10 * epoch, 10, {"loss": 1.0}))
        shown.on_message(0, Evaluation(2.0, 1.0, {"val_loss": 0.5}))
    assert lines(stream) == [
        "epoch 1/2  loss 1.0000  val_loss 3.0000 (epoch 0.5)",
        "epoch 2/2  loss 1.0000  val_loss 1.5000 (epoch 1.5)",
        "validation  val_loss 0.5000 (epoch 2)",
    ]


def test_what_others_send_is_not_shown():
    stream = io.StringIO()
    with Progress(1, 1, stream) as shown:
        for message in (None, "hello", {"rows": 3}):
            shown.on_message(0, message)
    assert stream.getvalue() == ""


def test_a_long_silence_is_broken(monkeypatch):
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.05)
    stream = io.StringIO()
    with Progress(1, 4, stream) as shown:
        wait_for("starting, 0% of all", stream)
        shown.on_message(0, Advance(0, 10, {}))
        shown.on_message(0, Advance(15, 10, {"loss": 2.0}))
        wait_for("epoch 2/4, 38% of all  loss 2.0000", stream)


def test_a_terminal_has_one_bar():
    stream = Terminal()
    with Progress(2, 2, stream) as shown:
        assert "starting" in last_bar(stream)
        for rank in (0, 1):
            shown.on_message(rank, Advance(0, 10, {}))
        assert last_bar(stream).startswith("epoch 1/2   0%")
        shown.on_message(0, Evaluation(1.0, 1.0, {"val_loss": 0.25}))
        for rows in (10, 20):
            for rank in (0, 1):
                shown.on_message(rank, Advance(rows, 10, {"loss": 1.0 + rank}))
    assert last_bar(stream).startswith("epoch 2/2 100%")
    assert last_bar(stream).endswith("loss 1.5000  val_loss 0.2500 (epoch 1)")
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("\n")


def test_what_was_trained_before_a_restart_is_no_speed():
    stream = Terminal()
    with Progress(1, 4, stream) as shown:
        shown.on_message(0, Advance(10_000_000, 10_000_000, {}))
        assert last_bar(stream).startswith("epoch 2/4  25%")
        time.sleep(0.2)
        shown.on_message(0, Advance(10_000_100, 10_000_000, {"loss": 1.0}))
    speed = re.search(r"([\d.]+)(k?) samples/s", last_bar(stream))
    assert float(speed[1]) * (1000 if speed[2] else 1) <= 500


def test_a_failed_job_leaves_a_whole_line():
    stream = Terminal()

    def fail():
        with Progress(1, 2, stream) as shown:
            shown.on_message(0, Advance(0, 10, {}))
            shown.on_message(0, Advance(10, 10, {"loss": 1.0}))
            raise RuntimeError("rank 0 was killed")

    with pytest.raises(RuntimeError, match="rank 0 was killed"):
        fail()
    assert last_bar(stream).startswith("epoch 2/2  50%")
    assert stream.getvalue().endswith("\n")


def test_messages_come_on_many_threads():
    stream = Terminal()

    def train(shown: Progress, rank: int) -> None:
        for rows in range(0, 501):
            shown.on_message(rank, Advance(rows, 100, {"loss": 1.0} if rows else {}))

    with Progress(4, 5, stream) as shown:
        threads = [threading.Thread(target=train, args=(shown, rank)) for rank in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert last_bar(stream).startswith("epoch 5/5 100%")


def test_a_display_that_fails_is_given_up_with_one_warning(caplog):
    with Progress(1, 2, Closed()) as shown:
        for rows in (0, 10, 20):
            shown.on_message(0, Advance(rows, 10, {"loss": 1.0} if rows else {}))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "not shown any more" in record.message
    assert "nobody reads this" in caplog.text


@pytest.mark.parametrize(("verbose", "count"), [(0, 0), (1, 1), (2, 1)])
def test_silence_is_silent(verbose, count, capsys):
    with progress.shown(1, 1, 1, verbose) as receive:
        receive(0, Advance(0, 10, {}))
        receive(0, Advance(10, 10, {"loss": 1.0}))
    assert len(capsys.readouterr().err.splitlines()) == count


def test_an_evaluation_without_metrics_prints_nothing():
    stream = io.StringIO()
    with Progress(1, 1, stream) as shown:
        shown.on_message(0, Advance(0, 10, {}))
        shown.on_message(0, Advance(10, 10, {"loss": 1.0}))
        shown.on_message(0, Evaluation(1.0, 1.0, {}))
    assert len(stream.getvalue().splitlines()) == 1
    assert "validation" not in stream.getvalue()
    assert "(epoch" not in stream.getvalue()
