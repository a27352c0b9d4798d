"""How fast is the center in windows beside what the memory, or the network, can do?

    python benchmarks/exchange.py                         starts its ranks on this machine
    python benchmarks/exchange.py --two-hosts             two hosts made of namespaces, as root
        --gigabits 1 --exchange-dtype float16             with a slower link, and half precision between them
    mpirun ... python -m mpi4py benchmarks/exchange.py    takes the ranks and hosts of this job

One rank alone: `pull` against np.copyto, `push` against np.add, over vectors of the same size, and the
elastic exchange against its arithmetic (two subtractions, a product, a sum) done by NumPy in place and block
by block, without locks and copies. Where ranks are on several hosts, pull and push are compared with Send and
Recv of the vector between rank 0 and the acting rank, the elastic exchange against one there and one back.
Then all ranks at once, the center at rank 0 or spread over them, and how evenly they exchange
(fewest over most exchanges of a rank). GB/s is the size of the vector over the median time of a call.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from hvdkeras.launch import environment, local

TARGETS = {"pull": 0.7, "push": 0.7, "elastic": 0.5}


ALPHA = np.float32(0.1)


def elastic(local_vector, center):
    difference = ALPHA * (local_vector - center)
    return local_vector - difference, difference


def medians(calls, repeats):
    """Median seconds of each call; they take turns, so that all meet the same noise.

    Each is called twice and the second call counts: all find their operands in the cache as far as these fit,
    whichever call came before.
    """
    times = {name: [] for name in calls}
    for _ in range(repeats + 2):
        for name, call in calls.items():
            call()
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    return {name: float(np.median(values[2:])) for name, values in times.items()}


def numpy_limits(length):
    from hvdkeras.center.vectors import blocks

    # The verbs' three arrays and no others: another would find in the cache what the call before left there.
    mine, out, center = (np.ones(length, np.float32) for _ in range(3))
    held = np.empty(length, np.float32)

    def floor():
        for block in blocks(0, length):
            difference = held[: block.stop - block.start]
            np.subtract(mine[block], center[block], out=difference)
            np.multiply(difference, ALPHA, out=difference)
            np.subtract(mine[block], difference, out=out[block])
            np.add(center[block], difference, out=center[block])

    return {
        "limit of pull": lambda: np.copyto(out, center),
        "limit of push": lambda: np.add(center, mine, out=center),
        "limit of elastic": floor,
    }


def network_limits(comm, length):
    """The acting rank is the last; rank 0 answers in answer()."""
    vector = np.zeros(length, np.float32)

    def there():
        comm.Send(vector, 0)
        comm.recv(source=0)

    def both():
        comm.Send(vector, 0)
        comm.Recv(vector, 0)

    def back():
        comm.send(None, 0)
        comm.Recv(vector, 0)

    return {"limit of pull": back, "limit of push": there, "limit of elastic": both}


def answer(comm, length, repeats):
    from hvdkeras.mpi.waiting import wait

    vector, source = np.zeros(length, np.float32), comm.size - 1
    wait(lambda: comm.Iprobe(source=source), 600, "the acting rank")
    for _ in range(repeats + 2):
        for _ in range(2):
            comm.recv(source=source)
            comm.Send(vector, source)
        for _ in range(2):
            comm.Recv(vector, source)
            comm.send(None, source)
        for _ in range(2):
            comm.Recv(vector, source)
            comm.Send(vector, source)


def act(comm, center, length, repeats, one_host):
    """Median seconds of the verbs, and of what they are measured against."""
    mine, out = np.ones(length, np.float32), np.empty(length, np.float32)
    ours = {
        "pull": lambda: center.pull(out=out),
        "push": lambda: center.push(mine),
        "elastic": lambda: center.exchange(elastic, mine, out=out),
    }
    if one_host:
        return medians({**numpy_limits(length), **ours}, repeats)
    return medians(ours, repeats) | medians(network_limits(comm, length), repeats)


def alone(comm, megabytes, repeats, one_host, dtype):
    """The last rank acts; the others are there, as they are in a training, but let it have the core."""
    from hvdkeras.center.window import WindowCenter
    from hvdkeras.mpi.waiting import wait

    rows = []
    for size in megabytes:
        length = size * 250_000
        center = WindowCenter(comm, np.zeros(length, np.float32), exchange_dtype=dtype)
        if comm.rank == comm.size - 1:
            rows.append((size, act(comm, center, length, repeats, one_host)))
        elif comm.rank == 0 and not one_host:
            answer(comm, length, repeats)
        wait(comm.Ibarrier().Test, 600, "the acting rank")
        center.free()
    return comm.bcast(rows, root=comm.size - 1)


def together(comm, megabytes, sharded, seconds, dtype):
    """All ranks exchange for some seconds. GB/s of all, and fewest over most exchanges of a rank."""
    from hvdkeras.center.window import WindowCenter

    length = megabytes * 250_000
    center = WindowCenter(comm, np.zeros(length, np.float32), sharded=sharded, exchange_dtype=dtype)
    mine, out = np.ones(length, np.float32), np.empty(length, np.float32)
    center.exchange(elastic, mine, out=out)
    comm.Barrier()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        center.exchange(elastic, mine, out=out)
        count += 1
    lasted = time.perf_counter() - begin
    center.finish()
    counts = comm.allgather(count)
    center.free()
    return sum(counts) * 4e-9 * length / lasted, counts


def measure(arguments, act_alone, act_together):
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    one_host = comm.Split_type(MPI.COMM_TYPE_SHARED).size == comm.size
    crowd, dtype = [], arguments.exchange_dtype
    rows = alone(comm, arguments.megabytes, arguments.repeats, one_host, dtype) if act_alone else []
    if act_together:
        for size in arguments.megabytes:
            for sharded in (False, True):
                crowd.append((size, sharded, *together(comm, size, sharded, arguments.seconds, dtype)))
    return rows, crowd, "NumPy" if one_host else "Send/Recv"


def report(rows, crowd, limit):
    if rows:
        print(f"{'MB':>5} {'verb':>8} {'GB/s':>7} {limit:>10} {'ratio':>6}  target")
    for size, times in rows:
        for verb, target in TARGETS.items():
            ours, best = times[verb], times[f"limit of {verb}"]
            speed, aim = size * 1e-3, f">= {target}" if limit == "NumPy" else "none"
            print(f"{size:5} {verb:>8} {speed / ours:7.2f} {speed / best:10.2f} {best / ours:6.2f}  {aim}")
    if crowd:
        print(f"\n{'MB':>5} {'center':>8} {'GB/s':>7} {'fairness':>9}  target   exchanges of each rank")
    for size, sharded, speed, counts in crowd:
        where, aim = "spread" if sharded else "rank 0", ">= 0.5" if limit == "NumPy" else "none"
        print(f"{size:5} {where:>8} {speed:7.2f} {min(counts) / max(counts):9.2f}  {aim:7}  {counts}")


def on_two_hosts(arguments):
    """Runs this file again, under an mpirun over the two hosts of the tests."""
    tests = Path(__file__).resolve().parents[1] / "tests"
    sys.path[:0] = [str(tests), str(tests / "cluster")]
    import hosts

    import ranks

    if hosts.missing():
        sys.exit(hosts.missing())
    with hosts.Hosts() as both:
        if arguments.gigabits:
            limit = ["tbf", "rate", f"{arguments.gigabits}gbit", "burst", "1m", "latency", "50ms"]
            for number in range(2):
                command = both.entered(number, ["tc", "qdisc", "add", "dev", "eth0", "root", *limit])
                subprocess.run(command, check=True)
        mpirun = both.entered(0, ranks.mpirun(arguments.ranks, both.mpi_args(arguments.ranks // 2)))
        sizes = ["--megabytes", *map(str, arguments.megabytes)]
        options = ["--repeats", str(arguments.repeats), "--seconds", str(arguments.seconds)]
        if arguments.exchange_dtype:
            options += ["--exchange-dtype", arguments.exchange_dtype]
        program = [
            sys.executable,
            "-m",
            "hvdkeras.launch.script",
            str(Path(__file__).resolve()),
            *sizes,
            *options,
        ]
        env = {**os.environ, **environment.variables(), **both.environment}
        sys.exit(subprocess.run([*mpirun, *program], env=env, check=False).returncode)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of each measurement with all ranks at once"
    )
    parser.add_argument("--ranks", type=int, default=4, help="ranks at once")
    parser.add_argument("--two-hosts", action="store_true")
    parser.add_argument("--gigabits", type=float, help="of the link between the two hosts in a second")
    parser.add_argument("--exchange-dtype", choices=["float16", "bfloat16"])
    arguments = parser.parse_args()
    job = environment.job()
    if job is not None:
        results = measure(arguments, True, True)
        if job.rank == 0:
            report(*results)
        return
    if arguments.two_hosts:
        on_two_hosts(arguments)
    report(*local.run(measure, (arguments, True, False), num_proc=2)[0])
    report(*local.run(measure, (arguments, False, True), num_proc=arguments.ranks)[0])


if __name__ == "__main__":
    main()
