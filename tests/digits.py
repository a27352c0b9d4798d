"""Scikit-learn's handwritten digits, and every algorithm with arguments at which it learns them."""

import numpy as np

FOUND = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], "verbose": 0}
LEARN = {**FOUND, "batch_size": 16, "num_epoch": 30, "learning_rate": 0.1}

ALGORITHMS: dict[str, dict] = {
    "SingleTrainer": {},
    "AveragingTrainer": {"communication_window": 8},
    "SynchronousSGD": {},
    "EASGD": {"rho": 1.25, "learning_rate": 0.2, "communication_window": 4},
    "SynchronousEAMSGD": {"rho": 2.5, "communication_window": 4, "momentum": 0.5},
    "DiLoCo": {"communication_window": 16, "outer_momentum": 0.5},
    "AsynchronousEASGD": {"rho": 1.25, "learning_rate": 0.2, "communication_window": 4},
    "EAMSGD": {"rho": 2.5, "communication_window": 4, "momentum": 0.5},
    "DOWNPOUR": {},
    "AdaptiveDOWNPOUR": {"server_learning_rate": 0.02},
    "DynSGD": {"learning_rate": 0.2},
    "ADAG": {"communication_window": 4, "learning_rate": 0.2},
    "EnsembleTrainer": {"merge_models": True, "partition": False},
}


def data() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns 1,437 rows to train on and 360 held-out ones."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    features, labels = (digits.data[order] / 16).astype("float32"), digits.target[order].astype("int32")
    return (
        {"features": features[:1437], "label": labels[:1437]},
        {"features": features[1437:], "label": labels[1437:]},
    )


def model():
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10, "softmax")]
    )


def trainer(algorithm: str, num_workers: int):
    import hvdkeras

    workers = {} if algorithm == "SingleTrainer" else {"num_workers": num_workers}
    if algorithm == "EnsembleTrainer":
        workers["num_models"] = max(2, num_workers)
    return getattr(hvdkeras, algorithm)(model(), **{**LEARN, **workers, **ALGORITHMS[algorithm]})


def accuracy(trained, held_out: dict[str, np.ndarray]) -> float:
    predicted = trained.predict(held_out["features"], verbose=0).argmax(axis=-1)
    return float(np.mean(predicted == held_out["label"]))


def train_all(algorithms: list[str], size: int) -> dict[str, tuple[float, list[int]]]:
    """What a rank of a running job does: trains by each algorithm; accuracy, and rows of each epoch."""
    learn, held_out = data()
    results = {}
    for algorithm in algorithms:
        used = trainer(algorithm, size)
        results[algorithm] = accuracy(used.train(learn), held_out), used.history.rows_seen()
    return results


def train_on_spark(
    session,
    algorithms: dict[str, str | None],
    num_workers: int,
    store: str,
    num_epoch: int = LEARN["num_epoch"],
) -> dict[str, tuple]:
    """Trains by algorithms with their `exchange_dtype`: accuracy, hosts, and rows of each epoch of each."""
    learn, held_out = data()
    rows = [(f.tolist(), int(label)) for f, label in zip(learn["features"], learn["label"], strict=True)]
    frame = session.createDataFrame(rows, "features array<float>, label int").repartition(5)
    results = {}
    for algorithm, exchange_dtype in algorithms.items():
        used = trainer(algorithm, num_workers)
        used.store, used.num_epoch, used.exchange_dtype = store, num_epoch, exchange_dtype
        value = accuracy(used.train(frame), held_out)
        results[algorithm] = value, [rank.host for rank in used.history.ranks], used.history.rows_seen()
    return results
