"""Hosts on one machine, from namespaces: each has its network, name, processes, IPC and /dev/shm.

With a name or a /dev/shm in common, ranks of two hosts would take each other for neighbours. The files
are common, as on a cluster with a network file system. Needs root and iproute2.
"""

import itertools
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hvdkeras.launch import environment

import archives
import ranks

NAMES = ("alpha", "beta", "gamma")
ADDRESSES = ("10.77.0.1", "10.77.0.2", "10.77.0.3")
DOOR = Path(__file__).with_name("door.py")
LINK = Path(__file__).with_name("link.py")
DRIVE = Path(__file__).with_name("drive.py")

# What the first process of a host does; $1 is the folder of the hosts. The shell stays, to bury the orphans.
FIRST = """
set -e
hostname "$2"
mount --make-rprivate /
mount -t tmpfs -o size="$3" tmpfs /dev/shm
mount --bind "$1/hosts" /etc/hosts
"$4" "$5" serve
"""


def missing() -> str | None:
    """Says what this machine lacks to build two hosts; None if nothing."""
    if os.getuid() != 0:
        return "two hosts need root: namespaces, mounts, a virtual network"
    absent = [name for name in ("ip", "unshare", "nsenter") if which(name) is None]
    if absent:
        return f"two hosts need the commands {', '.join(absent)} (Debian: iproute2, util-linux)"
    trial = subprocess.run(
        ["unshare", "-n", "-u", "-i", "-m", "-p", "-f", "--mount-proc", "true"], check=False
    )
    return None if trial.returncode == 0 else "this machine allows root no namespaces (a container?)"


def which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def ip(*words: str) -> bytes:
    return subprocess.run([which("ip"), *words], check=True, stdout=subprocess.PIPE).stdout


def wait_for(done: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.02)


def clear_away() -> None:
    """Removes the networks of test runs that were killed."""
    for name in re.findall(r"^hvdkeras-\d+-\w+", ip("netns", "list").decode(), re.MULTILINE):
        if not Path("/proc", name.split("-")[1]).exists():
            ip("netns", "delete", name)


class Hosts:
    """Running hosts, `alpha`, `beta` and `gamma`, at 10.77.0.1 to 3 on eth0. Use as a context manager.

    Args:
        shared_memory: Size of each /dev/shm; by default what a container has.
        delay: Seconds that the link takes, one way.
        loss: The part of the frames that the link loses, from 0 to 1.
        number: How many hosts there are, two or three. The link of three has no delay and no loss.
    """

    made = itertools.count()

    def __init__(self, shared_memory: str = "64m", delay: float = 0.0, loss: float = 0.0, number: int = 2):
        self.shared_memory, self.delay, self.loss = shared_memory, delay, loss
        self.names, made = NAMES[:number], next(self.made)
        self.networks = [f"hvdkeras-{os.getpid()}-{name}{made}" for name in self.names]
        self.roots: list[subprocess.Popen] = []
        self.services: list[subprocess.Popen] = []

    def __enter__(self) -> "Hosts":
        self.folder = Path(tempfile.mkdtemp(prefix="hvdkeras-hosts-"))
        lines = ["127.0.0.1 localhost", *map(" ".join, zip(ADDRESSES, self.names, strict=False))]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        try:
            clear_away()
            self._connect()
            self.pids = [self._start(index) for index in range(len(self.names))]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        # With a root the first process of its host is killed (--kill-child), and with that one all others.
        for process in [*self.roots, *self.services]:
            process.kill()
            process.wait()
        for network in self.networks:
            subprocess.run([which("ip"), "netns", "delete", network], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.folder)

    @property
    def environment(self) -> dict[str, str]:
        """Variables for what is started on the hosts."""
        return {"HVDKERAS_TEST_DOORS": str(self.folder), "PYSPARK_PYTHON": sys.executable}

    def start_spark(self) -> None:
        """Starts a Spark standalone master on alpha, and a worker of two cores on each host."""
        master = f"spark://{ADDRESSES[0]}:7077"
        self._start_service(0, "master", "--port", "7077")
        for index in range(len(self.names)):
            self._start_service(index, "worker", "--cores", "2", "--memory", "2g", master)

    def entered(self, index: int, command: Sequence[str]) -> list[str]:
        """The command that runs `command` on a host."""
        return ["nsenter", "-t", str(self.pids[index]), "-m", "-u", "-i", "-n", "-p", "--", *command]

    def mpi_args(self, ranks_each: int) -> list[str]:
        """Arguments of an mpirun on alpha that starts as many ranks on each host."""
        slots = ",".join(f"{name}:{ranks_each}" for name in self.names)
        # The options that Horovod gives; of the interfaces, the one that all hosts have.
        options = {"pml": "ob1", "btl": "^openib", "btl_tcp_if_include": "eth0"}
        options["plm_rsh_agent"] = f"{sys.executable} {DOOR}"
        return ["--host", slots, *(word for option in options.items() for word in ("-mca", *option))]

    def _connect(self) -> None:
        for network in self.networks:
            ip("netns", "add", network)
        first, second, *_ = self.networks
        if len(self.networks) > 2:
            self._bridge()
        elif self.delay or self.loss:
            command = [sys.executable, str(LINK), first, second, str(self.delay), str(self.loss)]
            self.services.append(subprocess.Popen(command))
            for network in self.networks:
                wait_for(lambda n=network: b"eth0" in ip("-n", n, "link", "show"), "the link", 10)
        else:
            ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)
        for network, address in zip(self.networks, ADDRESSES, strict=False):
            ip("-n", network, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", network, "link", "set", device, "up")
        # Linux takes a second to call a new link running; until then UCX finds the other host unreachable.
        for network in self.networks[: len(self.names)]:
            wait_for(lambda n=network: b"LOWER_UP" in ip("-n", n, "link", "show", "eth0"), "the network", 10)

    def _bridge(self) -> None:
        """Connects the eth0 of each host to a switch in a network of its own.

        With the switch's ports among a host's devices, UCX would crash where a window is made.
        """
        switch = self.networks[0].replace(self.names[0], "switch")
        ip("netns", "add", switch)
        self.networks.append(switch)
        ip("-n", switch, "link", "add", "switch", "type", "bridge")
        ip("-n", switch, "link", "set", "switch", "up")
        for name, network in zip(self.names, self.networks, strict=False):
            ip("link", "add", name, "netns", switch, "type", "veth", "peer", "name", "eth0", "netns", network)
            ip("-n", switch, "link", "set", name, "master", "switch", "up")

    def _start(self, index: int) -> int:
        """Starts a host and returns the process number, here, of its first process."""
        name = self.names[index]
        unshare = ["unshare", "-u", "-i", "-m", "-p", "-f", "--mount-proc", "--kill-child"]
        parameters = [str(self.folder), name, self.shared_memory, sys.executable, str(DOOR)]
        first = ["sh", "-c", FIRST, "sh", *parameters]
        command = [which("ip"), "netns", "exec", self.networks[index], *unshare, *first]
        root = subprocess.Popen(command, env={**os.environ, **environment.variables(), **self.environment})
        self.roots.append(root)
        wait_for((self.folder / name).exists, f"host {name} to start", 20)
        (child,) = Path(f"/proc/{root.pid}/task/{root.pid}/children").read_text().split()
        return int(child)

    def _start_service(self, index: int, name: str, *words: str) -> None:
        """Starts Spark's master or worker on a host; its log is in the hosts' folder."""
        program = [str(Path(sys.executable).with_name("spark-class"))]
        program += [f"org.apache.spark.deploy.{name}.{name.capitalize()}", "--host", ADDRESSES[index]]
        own = {"SPARK_LOCAL_IP": ADDRESSES[index], "SPARK_WORKER_DIR": str(self.folder / f"work-{index}")}
        with open(self.folder / f"{name}-{index}.log", "wb") as log:
            service = subprocess.Popen(
                self.entered(index, [*program, "--webui-port", "0", *words]),
                env={**os.environ, **environment.variables(), **self.environment, **own},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.services.append(service)
        wait_for(lambda: b"Starting Spark" in Path(log.name).read_bytes(), f"Spark's {name}", 180)


def call_on_driver(
    cluster: Hosts, folder: Path, fn: Callable[..., Any], args: tuple, timeout: float, unpack: bool = False
) -> Any:
    """Calls `fn(session, *args)` in a Spark driver on alpha, as the fixture `on_driver` does.

    Args:
        cluster: Hosts on which Spark runs.
        folder: An empty folder.
        fn: A function, also of the test's own module.
        args: Its further arguments.
        timeout: Seconds for all.
        unpack: Whether every executor unpacks an archive of this environment, and runs the Python in it.

    Raises:
        AssertionError: The function raised; it has the driver's output.
    """
    ranks.pack(folder / "call", fn, args)
    if unpack:
        archives.pack(folder / "environment.tar.gz")
    command = cluster.entered(0, [sys.executable, str(DRIVE), str(folder), ADDRESSES[0]])
    process = ranks.start(command, cluster.environment, folder / "output")
    returncode = ranks.finish(process, timeout)
    output = (folder / "output").read_text(errors="replace")
    if returncode != 0:
        error = folder / "error"
        told = error.read_text() if error.exists() else ""
        raise AssertionError(f"the driver ended with {returncode}\n{told}\n--- output\n{output[-6000:]}")
    return pickle.loads((folder / "result").read_bytes())
