"""What decoding on the ranks costs: training from JPEG files over training from the arrays in them.

    python benchmarks/decode.py
    python benchmarks/decode.py --size 96 --rows 4000
    python benchmarks/decode.py --data images.parquet    # its column image: files of one size

Two ranks with one TensorFlow thread each, synchronous EASGD, the three convolutions of examples/cifar10.py,
batch 64. Each repetition measures both, one after the other; the table has the medians of the samples/s and
of the ratios. The first epoch of every run is left out: it compiles. Both read shards that were written
before.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

import hvdkeras
from hvdkeras.data.columns import Column
from hvdkeras.data.shards import Shards
from hvdkeras.data.writing import write_arrays

AIM = 0.8


def to_array(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def make_files(rows: int, size: int) -> list[bytes]:
    """JPEG files of smooth noise, which compresses about as photos do."""
    random, made = np.random.default_rng(0), []
    for _ in range(rows):
        file = io.BytesIO()
        pixels = random.integers(0, 256, (size // 4, size // 4, 3), np.uint8)
        Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


def cnn(shape: tuple[int, ...]):
    import keras
    from keras import layers

    model = keras.Sequential([keras.Input(shape), layers.Rescaling(1 / 255)])
    for filters in (32, 64, 128):
        model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(10, "softmax"))
    return model


def speed(shards: Shards, epochs: int, **decode) -> float:
    """Samples/s of both ranks together."""
    trainer = hvdkeras.EASGD(
        cnn(shards.columns[0].shape),
        loss="sparse_categorical_crossentropy",
        features_col="image",
        batch_size=64,
        num_epoch=epochs,
        threads=1,
        verbose=0,
        **decode,
    )
    trainer.train(shards)
    table = trainer.history.to_pandas().query("epoch > 1")
    table["speed"] = table["rows"] / table.filter(like="seconds_").sum(axis=1)
    return table.groupby("rank")["speed"].median().sum()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", metavar="FILE")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32, help="of the images that are made, in pixels")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    if options.data:
        files = pq.read_table(options.data, columns=["image"])["image"].slice(0, options.rows).to_pylist()
    else:
        files = make_files(options.rows, options.size)
    images = np.stack([to_array(file) for file in files])
    labels = np.arange(len(files)) % 10
    with tempfile.TemporaryDirectory() as store:
        before, ahead = (
            write_arrays(
                {"image": rows, "label": labels},
                (
                    Column("image", images.shape[1:], "float32", encoded=encoded),
                    Column("label", (), "int32", classes=10),
                ),
                store,
            )
            for rows, encoded in ((images, False), (files, True))
        )
        pairs = [
            (speed(before, options.epochs), speed(ahead, options.epochs, decode={"image": to_array}))
            for _ in range(options.repetitions)
        ]
    arrays, decoded = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = statistics.median(other / one for one, other in pairs)
    size = np.mean([len(file) for file in files]) / 1024
    print(f"{len(files)} images of shape {images.shape[1:]}, {size:.1f} KB a file")
    print(f"  from arrays    {arrays:8,.0f} samples/s")
    print(f"  from files     {decoded:8,.0f} samples/s")
    print(f"  ratio          {ratio:8.2f}   (target: >= {AIM})")


if __name__ == "__main__":
    main()
