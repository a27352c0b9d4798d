"""What does a further candidate cost beside its training?

    python benchmarks/tuning.py

`fitMultiple` on 2 ranks of this machine: the seconds from one candidate's end to the next one's, less those
that the ranks spent in epochs, by their histories. The first candidate pays for the shards, the launch and
the import of TensorFlow. Target: at most 1 s for a further one.
"""

import argparse
import statistics
import time

import numpy as np

import hvdkeras
from hvdkeras.driver import training

LOSS = "sparse_categorical_crossentropy"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidates", type=int, default=8)
    candidates = parser.parse_args().candidates
    import keras

    random = np.random.default_rng(0)
    rows = {"features": random.normal(size=(2048, 64)), "label": random.integers(0, 10, 2048)}
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)])
    model.compile("sgd", LOSS)
    trainer = hvdkeras.EASGD(model, num_workers=2, num_epoch=3, communication_window=8, verbose=0)

    moments, trained, train = [time.monotonic()], [], training.train

    def timed(*arguments):
        outcome = train(*arguments)
        moments.append(time.monotonic())
        trained.append(max(sum(map(sum, each.seconds.values())) for each in outcome.history.ranks))
        return outcome

    training.train = timed
    grid = [{trainer.rho_param: rho} for rho in np.linspace(1, 4, candidates)]
    for _ in trainer.fitMultiple(rows, grid):
        pass
    costs = [each - seconds for each, seconds in zip(np.diff(moments), trained, strict=True)]
    print(f"first candidate: {costs[0]:.2f} s beside its training of {trained[0]:.2f} s")
    further, spent = statistics.median(costs[1:]), statistics.median(trained[1:])
    print(f"further candidates, median: {further:.2f} s beside a training of {spent:.2f} s")


if __name__ == "__main__":
    main()
