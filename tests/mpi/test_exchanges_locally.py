"""Every algorithm's exchange, bit by bit the same on a LocalCenter and on the center of its training."""

import numpy as np
import pytest

pytestmark = pytest.mark.mpi

LENGTH, EXCHANGES = 70_001, 4


def exchanged(trainer, center):
    """Exchanges after random local steps, as a rank does; returns all that they changed, as bytes."""
    random = np.random.default_rng(1)
    local = center.pull()
    state = trainer.begin(local)
    kept = []
    for _ in range(EXCHANGES):
        local = local + random.normal(scale=0.1, size=LENGTH).astype(np.float32)
        local, state = trainer.exchange(local, center, state, steps=5)
        kept.append(local.tobytes())
    contents = center.contents()
    return kept, contents.center.tobytes(), contents.slots.tobytes()


def both(algorithms):
    import keras
    from mpi4py import MPI

    import hvdkeras
    from hvdkeras.center.local import LocalCenter
    from hvdkeras.center.replicated import ReplicatedCenter
    from hvdkeras.center.window import WindowCenter

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    initial = np.random.default_rng(0).normal(size=LENGTH).astype(np.float32)
    results = {}
    for algorithm in algorithms:
        trainer = getattr(hvdkeras, algorithm)(model, loss="mse", learning_rate=0.03)
        if trainer.mode is hvdkeras.Mode.SYNCHRONOUS:
            real = ReplicatedCenter(MPI.COMM_WORLD, initial)
        else:
            real = WindowCenter(MPI.COMM_WORLD, initial, slots=trainer.center_slots)
        local = LocalCenter(initial, slots=trainer.center_slots)
        results[algorithm] = exchanged(trainer, real), exchanged(trainer, local), initial.tobytes()
        real.free()
    return results


def test_exchanges_equal_those_of_the_real_centers(on_ranks):
    import hvdkeras

    algorithms = [
        name
        for name in hvdkeras.__all__
        if isinstance(kind := getattr(hvdkeras, name), type)
        and issubclass(kind, hvdkeras.Trainer)
        and kind.mode.has_center
    ]
    assert len(algorithms) == 11
    [results] = on_ranks(1, both, algorithms)
    for algorithm, (real, local, initial) in results.items():
        assert real == local, algorithm
        assert real[1] != initial, algorithm
