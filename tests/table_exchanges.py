"""What ranks do with a center of tables, on one host or on several: exchanges of rows, as whole ones."""

import numpy as np

ROWS, WIDTH, TURNS = 40, 3, 24
# Two tables, and other elements before, between and after them.
SIZE = 2 + ROWS * WIDTH + 1 + ROWS * WIDTH + 4


def trainers() -> list:
    import hvdkeras

    kinds = hvdkeras.DOWNPOUR, hvdkeras.AdaptiveDOWNPOUR, hvdkeras.ADAG, hvdkeras.DynSGD
    return [kind(None) for kind in kinds]


def layout():
    from hvdkeras.models.tables import Layout, Table

    return Layout(SIZE, (Table(2, ROWS, WIDTH), Table(3 + ROWS * WIDTH, ROWS, WIDTH)))


def trained(weights: np.ndarray, rows: list[np.ndarray], turn: int) -> np.ndarray:
    """The weights after steps that change few rows, and all elements that are in no table."""
    after = weights.copy()
    random = np.random.default_rng(turn)
    for run in layout().others:
        after[run] += random.normal(size=run.stop - run.start).astype(np.float32)
    for table, chosen in zip(layout().tables, rows, strict=True):
        values = after[table.elements].reshape(ROWS, WIDTH)
        values[chosen] += random.normal(size=(chosen.size, WIDTH)).astype(np.float32)
    return after


def touched(turn: int) -> list[np.ndarray]:
    """The rows of each table that a turn changes: a few, or none, or most of them."""
    random = np.random.default_rng(1000 + turn)
    counts = (30, 2) if turn == 20 else (3, turn % 2)
    return [np.sort(random.choice(ROWS, count, replace=False)) for count in counts]


class Counted:
    """A LocalCenter that knows its staleness: in turns, the pushes of the ranks in between."""

    def __init__(self, center, size: int, stale: int):
        self._center, self.size, self._stale = center, size, stale

    def exchange(self, *arguments):
        return self._center.exchange(*arguments)

    def staleness(self) -> int:
        return self._stale


def densely(trainer, initial: np.ndarray, size: int) -> tuple[list, np.ndarray]:
    """The ranks' weights and states and the center's contents, in one process and without tables."""
    from hvdkeras.center.local import LocalCenter

    center = LocalCenter(initial, trainer.center_slots)
    ranks = [(initial, trainer.begin(initial)) for _ in range(size)]
    for turn in range(TURNS):
        rank = turn % size
        local, state = ranks[rank]
        seen = Counted(center, size, min(turn, size - 1))
        ranks[rank] = trainer.exchange(trained(local, touched(turn), turn), seen, state, 2)
    contents = center.contents()
    return ranks, np.vstack([contents.center, contents.slots])


def by_rows(comm, trainer, initial: np.ndarray) -> tuple[np.ndarray, dict, np.ndarray, int]:
    """This rank's weights and state, the center's contents, and the most elements of the later exchanges."""
    from hvdkeras.center.chunks import on_one_host
    from hvdkeras.center.tables import TableCenter
    from hvdkeras.models.tables import Selection

    center = TableCenter(comm, initial, layout(), trainer.center_slots)
    # Between hosts so small a table is exchanged whole, but for this test.
    assert center.row_limit(0) == (ROWS if on_one_host(comm) else 0)
    local, state, most = initial.copy(), trainer.begin(center.pull()), 0
    state = {name: value.copy() for name, value in state.items()}
    for turn in range(TURNS):
        comm.Barrier()
        if turn % comm.size != comm.rank:
            continue
        rows = touched(turn)
        local = trained(local, rows, turn)
        chosen = []
        for number in range(2):
            flags = center.changed(number).copy()
            flags[rows[number]] = True
            chosen.append(np.flatnonzero(flags))
        selection = Selection(layout(), chosen)
        if comm.size <= turn < 20:
            most = max(most, selection.size)
        before = {name: selection.gathered(value) for name, value in state.items()}
        kept, after = trainer.exchange(selection.gathered(local), center.at(selection), before, 2)
        selection.scatter(kept, local)
        for name, value in after.items():
            selection.scatter(value, state[name])
    center.finish()
    contents, pulled = center.contents(), center.pull()
    assert (pulled == contents.center).all()
    assert center.telemetry["exchanges"] == TURNS // comm.size
    assert center.telemetry["staleness_max"] == comm.size - 1
    center.free()
    return local, state, np.vstack([contents.center, contents.slots]), most


def every_algorithm_is_as_the_dense_way() -> list[int]:
    from mpi4py import MPI

    comm, sizes = MPI.COMM_WORLD, []
    initial = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    for trainer in trainers():
        local, state, contents, most = by_rows(comm, trainer, initial)
        ranks, expected = densely(trainer, initial, comm.size)
        name = type(trainer).__name__
        assert (contents == expected).all(), name
        assert (local == ranks[comm.rank][0]).all(), name
        assert all((state[key] == value).all() for key, value in ranks[comm.rank][1].items()), name
        sizes.append(most)
    return sizes


WORDS, BATCH, SAMPLES = 1 << 15, 8, 44


def embedding(optimizer):
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Embedding(WORDS, 32), keras.layers.Flatten(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((1,), dtype="int32"), *layers])
    model.compile(optimizer(), "mse")
    return model


def samples(distinct: bool) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    words = random.permutation(WORDS)[:SAMPLES] if distinct else random.integers(0, 20, SAMPLES)
    return {"features": words[:, np.newaxis], "label": random.normal(size=(SAMPLES, 1))}


def two_ranks_train_as_keras_does() -> None:
    """One step of each of two ranks, which touch rows of their own, against Keras."""
    import keras

    import hvdkeras

    def model():
        return embedding(lambda: keras.optimizers.SGD(0.1))

    data = samples(distinct=True)
    alone = model()
    first = alone.get_weights()
    alone.fit(data["features"], data["label"], batch_size=SAMPLES, epochs=1, verbose=0)
    # One step of each rank: it does not matter which of them exchanges first.
    trainer = hvdkeras.DOWNPOUR(
        model(), communication_window=1, batch_size=SAMPLES // 2, num_epoch=1, num_workers=2, verbose=0
    )
    trained = trainer.train(data).get_weights()
    # Of its own rows each rank's mean has half as many: its gradient is twice as large.
    moved, wanted = trained[0] - first[0], 2 * (alone.get_weights()[0] - first[0])
    assert (wanted != 0).any(axis=1).sum() == SAMPLES
    np.testing.assert_allclose(moved, wanted, atol=1e-6)
    assert trainer.history.to_pandas()["seconds_communication"].gt(0).all()
