"""One training of one way to have a Keras model from a Spark DataFrame; `peers.py` runs it in a process.

    python benchmarks/peer.py WAY MODEL FOLDER EPOCHS SEED

FOLDER has train.parquet and test.npz, as `peers.py` writes them. The environment is that of the way: of
hvdkeras, of Elephas, or of torch. SEED is that of the initial weights. The last line has the seconds until
the model is there, its accuracy on the test rows, and the peak memory of the driver's Python process in MB.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

BATCH_SIZE, RANKS, LOSS = 32, 2, "sparse_categorical_crossentropy"
OURS = ["EASGD", "DOWNPOUR", "SynchronousSGD"]
LEARNING_RATE = {"small": 0.05, "middle": 0.05, "large": 0.01}


def build(name: str, seed: int):
    import keras
    from keras import Input, Sequential, layers

    keras.utils.set_random_seed(seed)
    if name == "middle":
        blocks = [
            layer
            for filters in (16, 32, 64)
            for layer in (
                layers.Conv2D(filters, 3, padding="same", activation="relu"),
                layers.MaxPooling2D(),
            )
        ]
        return Sequential([Input((32, 32, 3)), *blocks, layers.Flatten(), layers.Dense(10, "softmax")])
    hidden = [layers.Dense(width, "relu") for width in ([128] if name == "small" else [9600, 9600])]
    return Sequential([Input((784,)), *hidden, layers.Dense(10, "softmax")])


def compiled(name: str, seed: int):
    import keras

    model = build(name, seed)
    model.compile(keras.optimizers.SGD(LEARNING_RATE[name]), LOSS)
    return model


def hvdkeras(way, name, frame, epochs, seed):
    import hvdkeras

    rate = LEARNING_RATE[name]
    # The paper's moving rate: alpha = rho * learning_rate = 0.9 / ranks.
    further = {"rho": 0.9 / RANKS / rate} if way == "EASGD" else {}
    trainer = getattr(hvdkeras, way)(
        build(name, seed),
        seed=seed,
        loss=LOSS,
        num_workers=RANKS,
        batch_size=BATCH_SIZE,
        num_epoch=epochs,
        learning_rate=rate,
        verbose=0,
        **further,
    )
    return lambda: trainer.train(frame)


def keras_alone(name, frame, epochs, seed):
    model = compiled(name, seed)
    shape = model.input_shape[1:]

    def train():
        rows = frame.toPandas()
        features = np.stack(rows["features"]).reshape(-1, *shape)
        model.fit(features, rows["label"].to_numpy(), batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
        return model

    return train


def elephas(way, name, frame, epochs, seed):
    import elephas.spark_model as spark_model

    model = compiled(name, seed)
    shape = model.input_shape[1:]

    def pair(row):
        return np.array(row.features, np.float32).reshape(shape), row.label

    def train():
        if way == "Elephas synchronous":
            trainer = spark_model.SparkModel(model, num_workers=RANKS)
        else:
            trainer = spark_model.AsynchronousSparkModel(model, num_workers=RANKS, frequency="epoch")
        trainer.fit(
            frame.rdd.map(pair), epochs=epochs, batch_size=BATCH_SIZE, verbose=0, validation_split=0.0
        )
        return trainer.master_network

    return train


def torch_rank(path, name, rate, epochs, seed):
    """What a process of TorchDistributor does: its share of the rows, and gradients averaged by DDP."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import pyarrow.parquet as pq
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    table = pq.read_table(path)
    model, loss = build(name, seed), keras.losses.get(LOSS)
    features = table["features"].combine_chunks().flatten().to_numpy()
    features = features.reshape(len(table), *model.input_shape[1:])[rank::size]
    labels = table["label"].to_numpy()[rank::size]
    length = len(table) // size
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch, rank)).permutation(length)
        for begin in range(0, length, BATCH_SIZE):
            chosen = order[begin : begin + BATCH_SIZE]
            optimizer.zero_grad()
            loss(
                torch.from_numpy(labels[chosen]), parallel(torch.from_numpy(features[chosen]))
            ).mean().backward()
            optimizer.step()
    distributed.destroy_process_group()
    return model.get_weights() if rank == 0 else None


def torch_distributor(name, frame, epochs, seed, folder):
    from pyspark.ml.torch.distributor import TorchDistributor

    model = build(name, seed)

    def train():
        # It has no way for a DataFrame's rows to its processes but files.
        path = f"{folder}/torch.parquet"
        frame.write.mode("overwrite").parquet(path)
        distributor = TorchDistributor(num_processes=RANKS, local_mode=True, use_gpu=False)
        model.set_weights(distributor.run(torch_rank, path, name, LEARNING_RATE[name], epochs, seed))
        return model

    return train


def peak_megabytes() -> float:
    """The most memory that this process had; `getrusage` also counts its parent's before the start."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def prepared(way, name, frame, epochs, seed, folder):
    """Returns the function to be timed; the model exists, and what it needs is imported."""
    if way in OURS:
        return hvdkeras(way, name, frame, epochs, seed)
    if way == "Keras":
        return keras_alone(name, frame, epochs, seed)
    if way.startswith("Elephas"):
        return elephas(way, name, frame, epochs, seed)
    return torch_distributor(name, frame, epochs, seed, folder)


def main():
    way, name, folder, epochs, seed = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if way == "TorchDistributor":
        os.environ["KERAS_BACKEND"] = "torch"
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(f"local[{RANKS}]").config("spark.driver.memory", "4g")
    builder = builder.config("spark.rpc.message.maxSize", 1024).config("spark.driver.maxResultSize", "8g")
    builder = builder.config("spark.sql.execution.arrow.pyspark.enabled", True)
    session = builder.config("spark.ui.showConsoleProgress", False).getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    frame = session.read.parquet(f"{folder}/train.parquet").repartition(RANKS).cache()
    frame.count()
    train = prepared(way, name, frame, epochs, seed, folder)
    begun = time.perf_counter()
    model = train()
    seconds = time.perf_counter() - begun
    memory = peak_megabytes()
    test = np.load(f"{folder}/test.npz")
    features = test["features"].reshape(-1, *model.input_shape[1:])
    predicted = model.predict(features, verbose=0).argmax(axis=-1)
    accuracy = float(np.mean(predicted == test["label"]))
    print("\n" + json.dumps([seconds, accuracy, memory]), flush=True)
    session.stop()


if __name__ == "__main__":
    main()
