"""A small CNN on images that stay JPEG or PNG files in the DataFrame: two ranks decode them as they train.

Run with `python examples/cifar10.py --data FOLDER`. The folder has cifar10-train.parquet and
cifar10-test.parquet, with the columns image (a file's bytes) and label. It takes a minute with
`--rows 10000 --epochs 2`.
"""

import argparse
import io
import os
import sys

import keras
import numpy as np
from keras import layers
from PIL import Image
from pyspark.sql import SparkSession

from hvdkeras import SynchronousSGD

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", required=True, metavar="FOLDER")
parser.add_argument("--rows", type=int, default=50_000)
parser.add_argument("--epochs", type=int, default=10)
options = parser.parse_args()


def to_array(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
spark = SparkSession.builder.master("local[2]").appName("CIFAR-10").getOrCreate()
train = spark.read.parquet(f"{options.data}/cifar10-train.parquet").limit(options.rows)
test = spark.read.parquet(f"{options.data}/cifar10-test.parquet").toPandas()

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((32, 32, 3)), layers.Rescaling(1 / 255)])
for filters in (32, 64, 128):
    model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
    model.add(layers.MaxPooling2D())
model.add(layers.Flatten())
model.add(layers.Dense(10, "softmax"))
trainer = SynchronousSGD(
    model,
    worker_optimizer=keras.optimizers.Adam(2e-3),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
    features_col="image",
    decode={"image": to_array},
    batch_size=64,
    num_epoch=options.epochs,
)
model = trainer.train(train)
spark.stop()

images = np.stack([to_array(file) for file in test.image])
accuracy = model.evaluate(images, test.label, verbose=0, return_dict=True)["accuracy"]
print(f"accuracy on {len(images)} held-out rows: {accuracy:.4f}")
