"""Exchanges of two ranks, bit by bit the same on the centers of the simulator, staleness included."""

import numpy as np
import pytest

pytestmark = pytest.mark.mpi

# Not a whole block, to have two; the ranks' turns where they exchange one after the other.
LENGTH, TURNS = 70_001, [0, 1, 1, 0, 1, 0, 0, 0, 1]


def initial():
    return np.random.default_rng(0).normal(size=LENGTH).astype(np.float32)


def change(rank, turn):
    return np.random.default_rng((1, rank, turn)).normal(scale=0.1, size=LENGTH).astype(np.float32)


def on_real_centers(trainers):
    """By algorithm: what each of this rank's exchanges returned, what the center held then, and telemetry."""
    from mpi4py import MPI

    import hvdkeras
    from hvdkeras.center.replicated import ReplicatedCenter
    from hvdkeras.center.window import WindowCenter

    comm, results = MPI.COMM_WORLD, {}
    for name, trainer in trainers.items():
        together = trainer.mode is hvdkeras.Mode.SYNCHRONOUS
        center = (
            ReplicatedCenter(comm, initial(), timeout=60)
            if together
            else WindowCenter(comm, initial(), slots=trainer.center_slots, timeout=60)
        )
        local = center.pull()
        state, kept = trainer.begin(local), []
        comm.Barrier()
        for number, turn in enumerate(TURNS):
            if together or turn == comm.rank:
                local = local + change(comm.rank, number)
                local, state = trainer.exchange(local, center, state, 5)
                kept.append(local.tobytes())
            comm.Barrier()
        telemetry = {
            key: center.telemetry.get(key, 0) for key in ("exchanges", "staleness_sum", "staleness_max")
        }
        results[name] = kept, center.pull().tobytes(), list(telemetry.values())
        comm.Barrier()
        center.free()
    return results


def on_simulated_centers(trainer):
    """The same for both workers in this process."""
    import hvdkeras
    from hvdkeras.simulation.centers import AsynchronousCenter, SynchronousCenter

    kept = [[], []]
    locals_ = [initial(), initial()]
    if trainer.mode is hvdkeras.Mode.SYNCHRONOUS:
        center = SynchronousCenter(initial(), 2)
        states = [trainer.begin(initial()) for _ in range(2)]
        for number in range(len(TURNS)):

            def exchange(center, rank, number=number):
                return trainer.exchange(locals_[rank] + change(rank, number), center, states[rank], 5)

            exchanges = [lambda each, rank=rank, do=exchange: do(each, rank) for rank in range(2)]
            results, *_ = center.together(exchanges)
            for rank, (local, state) in enumerate(results):
                locals_[rank], states[rank] = local, state
                kept[rank].append(local.tobytes())
        return [(each, center.value.tobytes(), [len(TURNS), 0, 0]) for each in kept]
    center = AsynchronousCenter(initial(), trainer.center_slots, 2)
    states = [trainer.begin(worker.pull()) for worker in center.workers]
    for number, rank in enumerate(TURNS):
        local = locals_[rank] + change(rank, number)
        locals_[rank], states[rank] = trainer.exchange(local, center.workers[rank], states[rank], 5)
        kept[rank].append(locals_[rank].tobytes())
    value = center.local.pull().tobytes()
    return [
        (each, value, [worker.exchanges, worker.staleness_sum, worker.staleness_max])
        for each, worker in zip(kept, center.workers, strict=True)
    ]


def test_exchanges_equal_those_of_two_ranks(on_ranks):
    import keras

    from hvdkeras import trainers as public

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    kinds = [getattr(public, name) for name in public.__all__]
    trainers = {
        kind.__name__: kind(model, loss="mse", learning_rate=0.03).algorithm()
        for kind in kinds
        if kind.mode.has_center
    }
    assert len(trainers) >= 10
    results = on_ranks(2, on_real_centers, trainers)
    for name, trainer in trainers.items():
        assert [each[name] for each in results] == on_simulated_centers(trainer), name
    assert results[0]["DynSGD"][2][1] > 0
