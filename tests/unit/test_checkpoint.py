"""Checkpoints on disk: complete and intact or nothing, in open formats; a rank's state there and back."""

import json
import os

import keras
import numpy as np
import pytest

from hvdkeras.center.contents import Contents
from hvdkeras.checkpoint.folder import CheckpointFolder
from hvdkeras.checkpoint.ownership import NAME, Ownership
from hvdkeras.checkpoint.rank_state import RankState
from hvdkeras.checkpoint.writer import CheckpointWriter
from hvdkeras.driver.checkpoints import check_checkpoints, warn_of_changes
from hvdkeras.history import RankHistory
from hvdkeras.models.recipe import Recipe
from hvdkeras.models.structure import structures


def made_of(optimizer="sgd", learning_rate=None, **arguments):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    return structures(Recipe.with_copy(model, optimizer, learning_rate, **{"loss": "mse", **arguments})[0])


STRUCTURES = made_of()
ORDER = {"rows": 100, "batch_size": 32, "communication_window": 4, "seed": 0, "shuffle": True}
FACTS = {"algorithm": "EASGD", "structures": STRUCTURES, "order": ORDER, "num_workers": 2}


def write(folder: CheckpointFolder, number: int, complete: bool) -> None:
    folder.create(number)
    center = {"center": np.full((1, 3), number, np.float32)}
    files = [
        folder.write_arrays(number, "center.npz", center),
        folder.write_json(number, "rank-00000.json", {"epoch": number}),
    ]
    if complete:
        folder.complete(number, files, {**FACTS, "epochs": number / 2})


def test_only_complete_checkpoints_count(tmp_path):
    url = str(tmp_path / "run")
    folder = CheckpointFolder(url)
    check_checkpoints(url, "EASGD", STRUCTURES, resume=False)
    assert folder.newest_intact().number == 0
    write(folder, 1, complete=True)
    write(folder, 2, complete=False)
    assert folder.numbers() == [1, 2]
    assert folder.newest_intact().number == 1
    check_checkpoints(url, "EASGD", STRUCTURES, resume=True)
    with pytest.raises(ValueError, match="without checkpoints, unless resume=True. Received: .* of EASGD"):
        check_checkpoints(url, "EASGD", STRUCTURES, resume=False)
    with pytest.raises(ValueError, match="the same algorithm to resume from, ADAG. Received: .* of EASGD"):
        check_checkpoints(url, "ADAG", STRUCTURES, resume=True)
    assert folder.manifest(1)["epochs"] == 0.5
    np.testing.assert_array_equal(folder.read_arrays(1, "center.npz")["center"], [[1, 1, 1]])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("adam",), r"worker_optimizer must be .* worker_optimizer.class_name is 'Adam' instead of 'SGD'"),
        ((keras.optimizers.SGD(momentum=0.9),), r"worker_optimizer.config.momentum is 0.9 instead of 0.0"),
        (("sgd", 0.5), r"config.learning_rate is 0.5 instead of 0.00999.* model.keras in it to a new"),
        (("sgd", None, ["mae"]), r"metrics must be .* one of which metrics is \['mae'\] instead of None"),
        (("sgd", None, [keras.metrics.TopKCategoricalAccuracy(2)]), "metrics must be that of the checkpoint"),
    ],
)
def test_what_an_optimizer_or_a_metric_keeps_fits_no_other(tmp_path, changed, message):
    write(CheckpointFolder(str(tmp_path)), 1, complete=True)
    optimizer, rate, metrics = (*changed, None, None)[:3]
    with pytest.raises(ValueError, match=message):
        check_checkpoints(str(tmp_path), "EASGD", made_of(optimizer, rate, metrics=metrics), resume=True)


def test_a_loss_may_change_and_an_optimizer_may_have_another_name(tmp_path):
    write(CheckpointFolder(str(tmp_path)), 1, complete=True)
    again = made_of(keras.optimizers.SGD(name="another"), loss=keras.losses.Huber())
    check_checkpoints(str(tmp_path), "EASGD", again, resume=True)


def test_what_begins_an_epoch_anew_or_trains_nothing_is_a_warning(tmp_path, caplog):
    url = str(tmp_path)
    write(CheckpointFolder(url), 4, complete=True)
    warn_of_changes(url, ORDER, 2, num_epoch=3)
    assert caplog.text == ""
    warn_of_changes(url, {**ORDER, "batch_size": 16, "rows": 90}, 3, num_epoch=1)
    for text in ("batch_size is 16 instead of 32", "rows is 90 instead of 100", "num_workers is 3 instead"):
        assert f"training.{text}" in caplog.text
    assert "num_epoch should be more than the 2 epochs of the checkpoint" in caplog.text
    assert "Received: 1" in caplog.text


def empty(path):
    path.write_bytes(b"")


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["center.npz", "rank-00000.json", "training.json"])
@pytest.mark.parametrize("harm", [empty, half, flip, lambda path: path.unlink()])
def test_the_newest_intact_checkpoint_is_resumed_from(tmp_path, name, harm):
    folder = CheckpointFolder(str(tmp_path))
    for number in (1, 2, 3):
        write(folder, number, complete=True)
    harm(tmp_path / "00000003" / name)
    point = folder.newest_intact()
    assert point.number == 2
    if name == "training.json" and not (tmp_path / "00000003" / name).exists():
        assert point.skipped == ()  # without a manifest the checkpoint is incomplete, not damaged
    else:
        assert len(point.skipped) == 1
        assert name in point.skipped[0]
        assert "checkpoint 3" in point.skipped[0]
    check_checkpoints(str(tmp_path), "EASGD", STRUCTURES, resume=True)


def test_a_deleted_checkpoint_is_gone(tmp_path):
    folder = CheckpointFolder(str(tmp_path))
    write(folder, 1, complete=True)
    write(folder, 2, complete=True)
    folder.delete(1)
    assert folder.numbers() == [2]


def test_a_url_is_as_good_as_a_path(tmp_path):
    write(CheckpointFolder(f"file://{tmp_path}/run"), 3, complete=True)
    assert CheckpointFolder(str(tmp_path / "run")).newest_intact().number == 3


def test_the_files_are_open_formats(tmp_path):
    folder = CheckpointFolder(str(tmp_path))
    write(folder, 1, complete=True)
    assert json.loads((tmp_path / "00000001" / "training.json").read_text())["version"] == 1
    with np.load(tmp_path / "00000001" / "center.npz", allow_pickle=False) as arrays:
        assert arrays["center"].dtype == np.float32


def test_a_later_version_is_refused(tmp_path):
    folder = CheckpointFolder(str(tmp_path))
    write(folder, 1, complete=True)
    (tmp_path / "00000001" / "training.json").write_text('{"version": 99}')
    for read in (lambda: folder.manifest(1), folder.newest_intact):
        with pytest.raises(ValueError, match="version up to 1. Received: 99"):
            read()


def state(rule_state) -> RankState:
    variables = {"model": [np.arange(4, dtype=np.float32)], "optimizer": [np.int64(7)], "more": []}
    history = RankHistory(0, "a", "CPU", metrics={"loss": [float("nan")]}, events=[("waiting", 1.0, 2.0)])
    return RankState(2, 3, 11, variables, rule_state, history, 0.5, {"loss": 0.25})


def test_a_ranks_state_comes_back_as_it_was(tmp_path):
    folder = CheckpointFolder(str(tmp_path))
    folder.create(1)
    kept = {"velocity": np.arange(3, dtype=np.float32), "steps": 4, "rate": 0.5}
    files = state(kept).write(folder, 1, rank=0)
    assert [file.name for file in files] == ["rank-00000.npz", "rank-00000.json"]
    found = RankState.read(folder, 1, rank=0)
    np.testing.assert_array_equal(found.rule_state.pop("velocity"), [0, 1, 2])
    assert found.rule_state == {"steps": 4, "rate": 0.5}
    np.testing.assert_array_equal(found.variables["model"][0], [0, 1, 2, 3])
    assert found.variables["optimizer"][0] == 7
    assert (found.epoch, found.step, found.windows, found.learning_rate_factor) == (2, 3, 11, 0.5)
    assert found.running_logs == {"loss": 0.25}
    assert found.history.events == [("waiting", 1.0, 2.0)]
    state(None).write(folder, 1, rank=1)
    assert RankState.read(folder, 1, rank=1).rule_state is None


@pytest.mark.parametrize("kept", [[1, 2], {"a": object()}, {3: 1.0}, {"a": "text"}])
def test_a_state_of_something_else_is_refused(tmp_path, kept):
    folder = CheckpointFolder(str(tmp_path))
    folder.create(1)
    with pytest.raises(TypeError, match="must be a dict of arrays and numbers by name. Received"):
        state(kept).write(folder, 1, rank=0)


def test_a_folder_that_can_not_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="checkpoint must be a folder or URL that can be written"):
        check_checkpoints(str(tmp_path / "file" / "run"), "EASGD", STRUCTURES, resume=False)


def test_a_training_that_was_taken_for_lost_can_not_complete_a_checkpoint(tmp_path):
    folder = CheckpointFolder(str(tmp_path))
    center = Contents(np.zeros(3, np.float32), np.zeros((0, 3), np.float32))

    def complete(writer, number):
        writer.complete(number, center, np.zeros(0, np.float32), b"model", [], {"epochs": 1})

    first = CheckpointWriter(folder, 3, FACTS)
    complete(first, first.begin())
    late = first.begin()
    second = CheckpointWriter(folder, 3, FACTS)
    complete(second, second.begin())
    second.close()
    for write in (first.begin, lambda: complete(first, late)):
        with pytest.raises(RuntimeError, match=rf"one training writes into. Received: '{tmp_path}'"):
            write()
    assert folder.newest_intact().number == 3
    assert not folder.is_complete(late)


def test_a_folder_into_which_a_training_writes_is_refused(tmp_path):
    url = str(tmp_path)
    ownership = Ownership(url)
    with pytest.raises(
        ValueError, match=f"no other training writes into. Received: .* process {os.getpid()} of this machine"
    ):
        check_checkpoints(url, "EASGD", STRUCTURES, resume=True)
    ownership.release()
    check_checkpoints(url, "EASGD", STRUCTURES, resume=True)
    # Of another machine it is not known, and another process may have got the number of one that has ended.
    for change in ({"boot": "another"}, {"started": 0}, {"process": 2**22 + 1}):
        Ownership(url)
        owner = json.loads((tmp_path / NAME).read_text())
        (tmp_path / NAME).write_text(json.dumps({**owner, **change}))
        check_checkpoints(url, "EASGD", STRUCTURES, resume=True)


def test_a_folder_that_was_emptied_meanwhile_is_taken_again(tmp_path):
    ownership = Ownership(str(tmp_path))
    (tmp_path / NAME).unlink()
    ownership.check()
    assert (tmp_path / NAME).exists()
