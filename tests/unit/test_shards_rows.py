"""Every row exactly once an epoch, on any number of ranks and parts, in batches of any size."""

import itertools
import os

import numpy as np
import pytest

from hvdkeras.data import rows as rows_module
from hvdkeras.data.columns import Column
from hvdkeras.data.parts import write_part
from hvdkeras.data.rows import Rows, read_column
from hvdkeras.data.shards import Shards
from hvdkeras.data.split import Split
from hvdkeras.data.writing import write_arrays

from batching import batches_of

COLUMNS = (Column("x", (3,), "float32"), Column("y", (), "int32"))


def in_parts(folder, part_rows):
    """Shards with parts of these numbers of rows; row r holds r."""
    parts, start = [], 0
    for number, rows in enumerate(part_rows):
        values = np.arange(start, start + rows)
        blocks = [[np.repeat(values, 3).reshape(rows, 3), values]] if rows else []
        parts.append(write_part(str(folder), f"part-{number}", COLUMNS, blocks).part)
        start += rows
    return Shards(str(folder), COLUMNS, tuple(part for part in parts if part.rows))


def epoch_of(rows, epoch=0):
    """The rows' numbers in each batch of an epoch."""
    batches = []
    for x, y in batches_of(rows, epoch):
        np.testing.assert_array_equal(x, np.repeat(y, 3).reshape(-1, 3))
        assert (x.dtype, y.dtype) == (np.float32, np.int32)
        batches.append(y.tolist())
    return batches


def flat(batches):
    """All rows' numbers, in their order."""
    return sorted(itertools.chain.from_iterable(batches))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_row_exactly_once(tmp_path, size, shuffle):
    for total in range(size, 41):
        folder = tmp_path / str(total)
        folder.mkdir()
        third = total // 3
        shards = in_parts(folder, [total % 3, 0, third, total - total % 3 - third])
        for batch_size in range(1, 8):
            ranks = [Rows(shards, rank, size, batch_size, seed=7, shuffle=shuffle) for rank in range(size)]
            batches = [epoch_of(rank, epoch=total) for rank in ranks]
            assert flat(batch for rank in batches for batch in rank) == list(range(total))
            assert {len(rank) for rank in batches} == {ranks[0].steps}
            assert {rank.steps for rank in ranks} == {ranks[0].steps}
            assert [rank.batch_sizes.tolist() for rank in ranks] == [list(map(len, rank)) for rank in batches]
            counts = [sum(map(len, rank)) for rank in batches]
            assert counts == [rank.rows for rank in ranks]
            assert max(counts) - min(counts) <= 1
            lengths = [len(batch) for rank in batches for batch in rank]
            assert min(lengths) >= 1
            assert max(lengths) <= max(batch_size, 2)


def test_only_the_last_batches_are_short(tmp_path):
    shards = in_parts(tmp_path, [257])
    assert [len(batch) for batch in epoch_of(Rows(shards, 0, 2, 128, seed=0))] == [127, 1]
    assert [len(batch) for batch in epoch_of(Rows(shards, 1, 2, 128, seed=0))] == [128, 1]
    assert [len(batch) for batch in epoch_of(Rows(shards, 0, 1, 100, seed=0))] == [100, 100, 57]


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_order_is_new_each_epoch_and_follows_the_seed(tmp_path, shuffle):
    shards = in_parts(tmp_path, [20, 30])

    def order(seed, epoch):
        return epoch_of(Rows(shards, 1, 2, 8, seed, shuffle), epoch)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_ranks_keep_their_rows_unless_shuffled(tmp_path):
    shards = in_parts(tmp_path, [20, 30])
    for rank, share in ((0, range(25)), (1, range(25, 50))):
        kept = Rows(shards, rank, 2, 8, seed=3)
        dealt = Rows(shards, rank, 2, 8, seed=3, shuffle=True)
        assert flat(epoch_of(kept, 5)) == list(share)
        assert flat(epoch_of(dealt, 5)) != list(share)


def test_an_empty_part_leaves_no_file_and_does_not_list_those_of_others(tmp_path, monkeypatch):
    columns = [Column("x", (), "float32"), Column("text", (), "string"), Column("y", (2,), "float32")]
    listings = []
    for name in ("listdir", "scandir"):
        list_all = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *path, of=list_all: listings.append(path) or of(*path))
    outcome = write_part(str(tmp_path), "empty", columns, [])
    assert (outcome.part.rows, outcome.part.files, listings) == (0, (), [])
    assert os.listdir(tmp_path) == []


def test_a_rank_maps_only_parts_with_its_rows(tmp_path):
    shards = in_parts(tmp_path, [10, 10, 10])
    for part in (shards.parts[0], shards.parts[1]):
        for file in part.files:
            os.unlink(tmp_path / file)
    assert flat(epoch_of(Rows(shards, 2, 3, 4, seed=0))) == list(range(20, 30))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_only_the_chosen_rows_are_dealt_out(tmp_path, size, shuffle):
    shards = in_parts(tmp_path, [9, 0, 30, 1])
    for chosen in (np.array([0, 8, 9, 38, 39]), np.arange(3), np.arange(40), np.arange(5, 40, 2)):
        ranks = [Rows(shards, rank, size, 2, 7, shuffle, chosen) for rank in range(size)]
        batches = [epoch_of(rank) for rank in ranks]
        assert flat(batch for rank in batches for batch in rank) == chosen.tolist()
        assert {len(rank) for rank in batches} == {ranks[0].steps}
        counts = [sum(map(len, rank)) for rank in batches]
        assert counts == [rank.rows for rank in ranks]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("shuffle", [False, True])
def test_all_rows_chosen_is_as_none_chosen(tmp_path, shuffle):
    shards = in_parts(tmp_path, [13, 24])
    without = Rows(shards, 1, 2, 4, 7, shuffle)
    assert epoch_of(Rows(shards, 1, 2, 4, 7, shuffle, np.arange(37)), 3) == epoch_of(without, 3)


def test_split_by_hand():
    split = Split(10, 0.25, seed=0)
    training, validation = split.indices()
    assert (len(training), len(validation)) == (split.training_rows, split.validation_rows) == (8, 2)
    assert sorted([*training, *validation]) == list(range(10))
    assert (training[:-1] < training[1:]).all()
    assert (validation[:-1] < validation[1:]).all()


@pytest.mark.parametrize(
    ("rows", "fraction", "count"), [(2, 0.01, 1), (2, 0.99, 1), (9, 0.99, 8), (100, 0.3, 30)]
)
def test_split_leaves_rows_on_both_sides(rows, fraction, count):
    split = Split(rows, fraction, seed=1)
    assert (split.training_rows, split.validation_rows) == (rows - count, count)
    assert [len(side) for side in split.indices()] == [rows - count, count]


def test_split_follows_the_seed():
    first, again, other = (Split(100, 0.5, seed).indices()[1].tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_split_keeps_its_rows():
    # A training that resumes with a later version must hold out the same rows.
    _, validation = Split(12, 0.25, seed=7).indices()
    assert validation.tolist() == [2, 4, 9]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_needs_a_fraction(fraction):
    with pytest.raises(ValueError, match=f"fraction must lie between 0 and 1. Received: {fraction}"):
        Split(10, fraction, seed=0)


def test_split_needs_two_rows():
    with pytest.raises(ValueError, match="rows must be at least 2 for a split. Received: 1"):
        Split(1, 0.5, seed=0)


@pytest.mark.parametrize("memory", [32 << 20, 1000, 1])
@pytest.mark.parametrize("first_step", [0, 1, 6, 14, 15])
def test_an_epoch_from_its_middle_is_the_tail_of_it(tmp_path, monkeypatch, memory, first_step):
    monkeypatch.setattr(rows_module, "_BLOCK_BYTES", memory)
    rows = Rows(in_parts(tmp_path, [40, 61]), 0, 1, 7, seed=0)
    assert rows.steps == 15
    tail = [y.tolist() for _, y in batches_of(rows, 4, first_step)]
    assert tail == epoch_of(rows, 4)[first_step:]


def test_blocks_are_memory_that_tensorflow_takes_over(tmp_path):
    rows = Rows(in_parts(tmp_path, [40, 61]), 0, 1, 7, seed=0)
    columns, sizes = rows.block(0, 12)
    assert sizes.tolist() == [7, 7, 3]
    assert sizes.dtype == np.int64
    assert [len(column) for column in columns] == [17, 17]
    assert [column.ctypes.data % 64 for column in columns] == [0, 0]


@pytest.mark.parametrize("memory", [32 << 20, 1000, 1])
def test_many_parts_are_gathered_in_blocks(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(rows_module, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(rows_module, "_MOST_BYTES", memory)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    one = Rows(in_parts(whole, [101]), 0, 1, 7, seed=0)
    many = Rows(in_parts(cut, [1] * 50 + [0, 51]), 0, 1, 7, seed=0)
    assert epoch_of(one, 3) == epoch_of(many, 3)


def test_batches_are_the_callers_own(tmp_path):
    rows = Rows(in_parts(tmp_path, [10]), 0, 1, 4, seed=0)
    for x, _ in batches_of(rows, 0):
        x[:] = -1
    epoch_of(rows, 0)


def test_a_rank_that_does_not_see_the_store(tmp_path):
    shards = write_arrays({"x": np.ones((4, 3)), "y": np.arange(4)}, COLUMNS, tmp_path)
    shards.remove()
    with pytest.raises(
        FileNotFoundError, match=rf"rank 1 on .* does not find the shards in {shards.url}.*store"
    ):
        Rows(shards, 1, 2, 2, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 2}, "rank must be from 0 to size - 1. Received: rank=2, size=2"),
        ({"batch_size": 0}, "batch_size must be positive. Received: 0"),
        ({"size": 5}, "num_workers must be at most the number of rows, 4. Received: 5"),
        ({"chosen": np.array([3])}, "num_workers must be at most the number of rows, 1. Received: 2"),
        ({"chosen": np.array([3, 4])}, "chosen must be ascending numbers of the 4 rows. Received"),
        ({"chosen": np.array([2, 1])}, "chosen must be ascending numbers"),
        ({"chosen": np.array([1, 1])}, "chosen must be ascending numbers"),
        ({"chosen": np.array([-1, 1])}, "chosen must be ascending numbers"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    shards = in_parts(tmp_path, [4])
    with pytest.raises(ValueError, match=message):
        Rows(**{"shards": shards, "rank": 0, "size": 2, "batch_size": 1, "seed": 0, **arguments})


def test_an_epoch_of_a_thousand_partitions_has_every_row_once(tmp_path):
    # More files than a process may have open.
    column = Column("id", (), "int64")
    numbers = np.arange(3000)
    parts = [
        write_part(str(tmp_path), f"part-{number}", [column], [[ids]]).part
        for number, ids in enumerate(np.split(numbers, 1500))
    ]
    shards = Shards(str(tmp_path), (column,), tuple(parts))
    assert read_column(shards, column).tolist() == numbers.tolist()
    for shuffle in (False, True):
        ranks = [Rows(shards, rank, 3, 64, seed=0, shuffle=shuffle) for rank in range(3)]
        seen = np.concatenate([batch[0] for rows in ranks for batch in batches_of(rows, 1)])
        assert sorted(seen.tolist()) == numbers.tolist()
