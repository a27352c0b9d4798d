"""The first process of a box: runs a driver, breaks it, and looks at what is left. See `conftest.boxed`."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

GONE_SECONDS = 30


def command_line(pid: str) -> str:
    with suppress(OSError):
        return Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def others() -> dict[str, str]:
    """Command line by number of all processes here but this one; ended ones have none."""
    numbers = [entry for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid()]
    return {pid: words for pid in numbers if (words := command_line(pid))}


def bury() -> None:
    """Reaps the orphans, which are children of the first process."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def strike(folder: Path, name: str, number: int, driver: subprocess.Popen) -> None:
    while not (folder / "ready").exists():
        time.sleep(0.02)
    if name == "driver":
        driver.send_signal(number)
        return
    # A program by its name; anything else by a word of its command line. The keeper has mpirun's words, too.
    found = [pid for pid, words in others().items() if name == words.split(" ")[0].rpartition("/")[2]]
    found = found or [pid for pid, words in others().items() if name in words]
    os.kill(int(min(found, key=int)), number)


def main(folder: Path, name: str, number: int) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    temporary = folder / "tmp"
    temporary.mkdir()
    environ = {**os.environ, "TMPDIR": str(temporary), "READY": str(folder / "ready")}
    driver = subprocess.Popen([sys.executable, str(folder / "script.py")], env=environ, cwd=folder)
    if name:
        threading.Thread(target=strike, args=(folder, name, number, driver), daemon=True).start()
    status = driver.wait()
    began = time.monotonic()
    while others() and time.monotonic() - began < GONE_SECONDS:
        bury()
        time.sleep(0.1)
    found = {
        "status": status,
        "processes": others(),
        "shared": sorted(os.listdir("/dev/shm")),
        "temporary": sorted(os.listdir(temporary)),
    }
    (folder / "found").write_text(json.dumps(found))
    for pid in others():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
