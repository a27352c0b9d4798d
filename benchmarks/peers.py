"""How fast is the center in windows beside the parameter server of dist-keras and Elephas?

    python benchmarks/peers.py

Those two keep the weights in one Python process, with a thread for each worker. A push is pickled into a TCP
socket, read piece by piece into a growing buffer, and added under one lock into a new array; a pull copies
the weights under that lock and pickles the copy. Below is such a server, written for this benchmark, with
workers that push and pull one vector as often as they can. Beside it, in the same run, as many ranks push and
pull through WindowCenter. All are on this machine. Target: 10 times as many round trips (a push and a pull of
the whole vector) a second at 10 MB.
"""

import argparse
import multiprocessing
import pickle
import socket
import struct
import threading
import time

import numpy as np

from hvdkeras.launch import local

TARGET = 10.0


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    arguments = parser.parse_args()
    print(
        f"{'workers':>7} {'MB':>4} {'socket+pickle':>14} {'windows':>9} {'ratio':>6}   round trips a second"
    )
    for workers in arguments.workers:
        for size in arguments.megabytes:
            length = size * 250_000
            theirs = through_socket(workers, length, arguments.seconds)
            ours = sum(local.run(through_windows, (length, arguments.seconds), num_proc=workers, verbose=0))
            target = f"target >= {TARGET:g}" if size == 10 else ""
            print(
                f"{workers:7} {size:4} {theirs:14.1f} {ours:9.1f} {ours / theirs:6.1f}   {target}", flush=True
            )


if __name__ == "__main__":
    main()
