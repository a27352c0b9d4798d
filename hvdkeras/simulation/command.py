"""What `hvdkeras measure` becomes: times of a model on random rows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from hvdkeras.simulation.measuring import measure
from hvdkeras.simulation.times import Times

# Windows of an epoch: enough for a median that one disturbance does not move.
_WINDOWS = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and prints `Times` for `hvdkeras.simulate`. Returns the exit status."""
    options = parser().parse_args(arguments)
    import keras

    import hvdkeras

    model = keras.models.load_model(options.model)
    trainer = hvdkeras.AsynchronousEASGD(
        model, loss=options.loss, batch_size=options.batch_size, communication_window=options.window
    )
    if not isinstance(trainer.loss, str):
        raise SystemExit(f"--loss must be given for this model. Received: {trainer.loss!r}")
    rows = options.batch_size * options.window * _WINDOWS * options.num_proc
    times = measure(trainer, _random_rows(model, trainer.loss, rows), options.num_proc)
    size = int(sum(np.prod(variable.shape) for variable in model.trainable_variables))
    # The knee of what is printed.
    given = {name: float(f"{getattr(times, name):.3g}") for name in ("step", "exchange", "spread")}
    times = Times(**given)
    print(f"Times({', '.join(f'{name}={value}' for name, value in given.items())})")
    print(f"one center serves {times.knee(options.window, size):.0f} workers before it saturates")
    return 0


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's arguments."""
    result = argparse.ArgumentParser(prog="hvdkeras measure")
    result.add_argument("model", help="a .keras file, of a model with one input and one output")
    result.add_argument("--loss", help="default: the one that the model is compiled with")
    result.add_argument("--batch-size", type=int, default=32, metavar="ROWS", help="(default: 32)")
    result.add_argument(
        "--window",
        type=int,
        default=16,
        metavar="BATCHES",
        help="batches between two exchanges (default: 16)",
    )
    result.add_argument("-np", "--num-proc", type=int, default=1, metavar="N", help="ranks (default: 1)")
    return result


def _random_rows(model: Any, loss: str, rows: int) -> dict[str, np.ndarray]:
    """Features and labels of the shapes that a model has."""
    random = np.random.default_rng(0)
    features = random.normal(size=(rows, *model.input_shape[1:])).astype(np.float32)
    if loss.startswith("sparse"):
        return {"features": features, "label": random.integers(0, model.output_shape[-1], rows)}
    return {"features": features, "label": random.random((rows, *model.output_shape[1:]), np.float32)}


if __name__ == "__main__":
    raise SystemExit(main())
