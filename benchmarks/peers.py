"""What does hvdkeras cost beside what a user would take instead?

    python benchmarks/peers.py --only exchange
    python benchmarks/peers.py --only training --data FOLDER
    python benchmarks/peers.py --only training --data FOLDER --elephas PYTHON --torch PYTHON

Exchange: dist-keras and Elephas keep the weights in one Python process, with a thread for each worker. A
push is pickled into a TCP socket, read piece by piece into a growing buffer, and added under one lock into
a new array; a pull copies the weights under that lock and pickles the copy. Below is such a server, written
for this benchmark, with workers that push and pull one vector as often as they can. Beside it, in the same
run, as many ranks push and pull through WindowCenter. All are on this machine. Target: 10 times as many
round trips (a push and a pull of the whole vector) a second at 10 MB.

Training: one DataFrame, model and number of epochs, two workers, batches of 32; every way in a process of
its own with a warm Spark session; medians over initial weights. The seconds are those from the DataFrame to
the trained model in the driver, the memory is the largest of the driver's Python process. Models:

- small: an MLP 784-128-10 on MNIST;
- middle: three convolutions on CIFAR-10;
- large: an MLP of 100 million weights on 512 rows of MNIST.

FOLDER has the files that accuracy.py reads. Elephas (with a TensorFlow of its own) and torch are installed
aside, each beside pyspark, pyarrow, pandas and keras; without their Python they are left out. Target: at
most 0.6 of the seconds of Elephas at no lower accuracy, and 1.4 of those of Keras.
"""

import argparse
import json
import multiprocessing
import pickle
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from hvdkeras.launch import local

TARGET = 10.0
WAYS = {
    "Keras": "ours",
    "EASGD": "ours",
    "DOWNPOUR": "ours",
    "SynchronousSGD": "ours",
    "Elephas synchronous": "elephas",
    "Elephas asynchronous": "elephas",
    "TorchDistributor": "torch",
}
# Rows and epochs of each model.
MODELS = {"small": (8000, 5), "middle": (10_000, 3), "large": (512, 2)}


def receive(connection):
    (length,) = struct.unpack("!Q", receive_bytes(connection, 8))
    return pickle.loads(receive_bytes(connection, length))


def receive_bytes(connection, length):
    data = b""
    while len(data) < length:
        piece = connection.recv(length - len(data))
        if not piece:
            raise EOFError("the peer closed the connection")
        data += piece
    return data


def send(connection, value):
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    connection.sendall(struct.pack("!Q", len(data)))
    connection.sendall(data)


class Server:
    def __init__(self, length):
        self.center, self.lock = np.zeros(length, np.float32), threading.Lock()

    def attend(self, connection):
        while True:
            verb, update = receive(connection)
            if verb == "push":
                with self.lock:
                    self.center = self.center + update
            elif verb == "pull":
                with self.lock:
                    copy = self.center.copy()
                send(connection, copy)
            else:
                return

    def run(self, listener, workers):
        connections = [listener.accept()[0] for _ in range(workers)]
        threads = [threading.Thread(target=self.attend, args=(connection,)) for connection in connections]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def work(port, length, seconds, barrier, counts):
    update = np.ones(length, np.float32)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        barrier.wait()
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            send(connection, ("push", update))
            send(connection, ("pull", None))
            receive(connection)
            count += 1
        counts.put(count / (time.perf_counter() - begin))
        send(connection, ("end", None))


def through_socket(workers, length, seconds):
    context = multiprocessing.get_context("spawn")
    barrier, counts = context.Barrier(workers), context.Queue()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = multiprocessing.get_context("fork").Process(
            target=Server(length).run, args=(listener, workers)
        )
        server.start()
        arguments = (port, length, seconds, barrier, counts)
        processes = [context.Process(target=work, args=arguments) for _ in range(workers)]
        for process in processes:
            process.start()
        rate = sum(counts.get(timeout=seconds + 60) for _ in processes)
        for process in [*processes, server]:
            process.join()
    return rate


def through_windows(length, seconds):
    from mpi4py import MPI

    from hvdkeras.center.window import WindowCenter

    comm = MPI.COMM_WORLD
    center = WindowCenter(comm, np.zeros(length, np.float32))
    update, out = np.ones(length, np.float32), np.empty(length, np.float32)
    comm.Barrier()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        center.push(update)
        center.pull(out=out)
        count += 1
    rate = count / (time.perf_counter() - begin)
    center.finish()
    center.free()
    return rate


def write_rows(folder: Path, data: Path, name: str, rows: int) -> None:
    """Writes train.parquet and test.npz, features as float32."""
    import accuracy
    import pyarrow as pa
    import pyarrow.parquet as pq

    read = accuracy.cifar if name == "middle" else accuracy.mnist
    features, labels = (each[:rows] for each in read(data, "train"))
    flat = features.reshape(len(features), -1)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    pq.write_table(
        pa.table({"features": lists.cast(pa.list_(pa.float32())), "label": labels}), folder / "train.parquet"
    )
    features, labels = (each[:1000] for each in read(data, "test"))
    np.savez(folder / "test.npz", features=features, label=labels)


def trained(
    python: str, way: str, name: str, folder: str, epochs: int, seed: int, limit: float
) -> list[float] | str:
    """Trains in a process of its own; returns seconds, accuracy and megabytes, or why there are none."""
    command = [python, str(Path(__file__).with_name("peer.py")), way, name, folder, str(epochs), str(seed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"no model after {limit:.0f} s"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode != 0:
        return next((line[:120] for line in reversed(lines) if "Error" in line), "failed")
    return json.loads(lines[-1])


def train(options) -> None:
    pythons = {"ours": sys.executable, "elephas": options.elephas, "torch": options.torch}
    ways = [way for way in options.ways if pythons[WAYS[way]] is not None]
    print(f"\n{'model':7} {'':20} {'seconds':>8} {'of Keras':>9} {'accuracy':>9} {'driver MB':>10}")
    for name in options.models:
        rows, epochs = MODELS[name]
        epochs = options.epochs or epochs
        with tempfile.TemporaryDirectory(prefix="hvdkeras-benchmark-") as folder:
            write_rows(Path(folder), options.data, name, rows)
            # In turn, so that a machine that changes its speed changes that of all.
            found = [
                [trained(pythons[WAYS[way]], way, name, folder, epochs, seed, options.limit) for way in ways]
                for seed in range(options.repetitions)
            ]
        show_trained(name, dict(zip(ways, zip(*found, strict=True), strict=True)))


def show_trained(name: str, found: dict[str, tuple[list[float] | str, ...]]) -> None:
    alone = None
    for way, each in found.items():
        if failures := [one for one in each if isinstance(one, str)]:
            print(f"{name:7} {way:20} {failures[0]}", flush=True)
            continue
        seconds, accuracy, megabytes = np.median(each, axis=0)
        alone = seconds if way == "Keras" else alone
        ratio = "" if alone is None else f"{seconds / alone:9.2f}"
        print(f"{name:7} {way:20} {seconds:8.1f} {ratio:>9} {accuracy:9.3f} {megabytes:10.0f}", flush=True)


def exchange(options) -> None:
    print(
        f"{'workers':>7} {'MB':>4} {'socket+pickle':>14} {'windows':>9} {'ratio':>6}   round trips a second"
    )
    for workers in options.workers:
        for size in options.megabytes:
            length = size * 250_000
            theirs = through_socket(workers, length, options.seconds)
            ours = sum(local.run(through_windows, (length, options.seconds), num_proc=workers, verbose=0))
            target = f"target >= {TARGET:g}" if size == 10 else ""
            print(
                f"{workers:7} {size:4} {theirs:14.1f} {ours:9.1f} {ours / theirs:6.1f}   {target}", flush=True
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["exchange", "training"], default=["exchange"])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--elephas", help="Python of an environment with Elephas")
    parser.add_argument("--torch", help="Python of an environment with torch and keras")
    parser.add_argument("--epochs", type=int, help="of each training, by default those of its model")
    parser.add_argument("--repetitions", type=int, default=3, help="of each training, from other weights")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of a training")
    options = parser.parse_args()
    if "training" in options.only and options.data is None:
        parser.error("--data must be given for the trainings")
    if "exchange" in options.only:
        exchange(options)
    if "training" in options.only:
        train(options)


if __name__ == "__main__":
    main()
