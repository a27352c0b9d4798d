"""One script, three ways to start it, NumPy arrays and no Spark.

python examples/horovodrun_script.py                     starts two ranks on this machine
horovodrun -np 2 python examples/horovodrun_script.py    is itself the ranks: nothing more is started
hvdkeras run -np 2 examples/horovodrun_script.py         the same, with MPI's variables set for it
"""

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hvdkeras import EASGD
from hvdkeras.launch import environment

images, digits = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(images / 16, digits, test_size=0.2, random_state=0)

model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10, "softmax")]
)
trainer = EASGD(
    model,
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
    batch_size=16,
    num_epoch=20,
    communication_window=8,
    learning_rate=0.1,
    rho=4.0,
)
model = trainer.train({"features": x_train, "label": y_train})

# Inside a job every rank runs the whole script, and every rank has got the trained model.
job = environment.job()
if job is None or job.rank == 0:
    accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
    print(f"accuracy of {len(trainer.history.ranks)} ranks' center on held-out rows: {accuracy:.4f}")
