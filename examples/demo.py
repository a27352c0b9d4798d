"""Trains on handwritten digits through Spark: one rank, then two with synchronous EASGD.

Run with `make demo`. It prints both accuracies on held-out rows, and draws the second in demo-history.png.
"""

import os
import sys

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # and with it a note at every start
os.environ.setdefault("SPARK_CONF_DIR", os.path.join(os.path.dirname(os.path.abspath(__file__)), "conf"))

import keras
import numpy as np
from pyspark.sql import SparkSession
from sklearn.datasets import load_digits

from hvdkeras import EASGD, SingleTrainer

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images, labels = (digits.data[order] / 16).astype("float32"), digits.target[order]
train, test = slice(0, 1437), slice(1437, None)

spark = SparkSession.builder.master("local[2]").appName("hvdkeras demo").getOrCreate()
spark.sparkContext.setLogLevel("ERROR")
rows = [(image.tolist(), int(label)) for image, label in zip(images[train], labels[train], strict=True)]
dataframe = spark.createDataFrame(rows, "features array<float>, label int")

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10, "softmax")]
)
arguments = {
    "loss": "sparse_categorical_crossentropy",
    "metrics": ["accuracy"],
    "batch_size": 16,
    "num_epoch": 20,
    "learning_rate": 0.1,
}
trainers = {
    "SingleTrainer, 1 rank": SingleTrainer(model, **arguments),
    "EASGD, 2 ranks": EASGD(model, num_workers=2, rho=4.0, communication_window=8, **arguments),
}
accuracies = {}
for name, trainer in trainers.items():
    trained = trainer.train(dataframe)
    accuracies[name] = trained.evaluate(images[test], labels[test], verbose=0, return_dict=True)["accuracy"]
spark.stop()

for (name, accuracy), trainer in zip(accuracies.items(), trainers.values(), strict=True):
    print(
        f"{name:24} accuracy on {len(labels[test])} held-out rows {accuracy:.4f}"
        f"   {trainer.get_training_time():.1f} s with its launch"
    )
trainers["EASGD, 2 ranks"].history.plot("demo-history.png")
print("The training of the second is drawn in demo-history.png")
if min(accuracies.values()) < 0.95:
    sys.exit("The demo expects an accuracy of at least 0.95 from both.")
