"""The way from one host of the tests to the other, in the place of ssh.

`door.py serve` waits on its host for commands; `door.py HOST COMMAND...` has the server of HOST run one and
exits with its status, so that mpirun can take it for its rsh agent. The sockets are files, named by host, in
the folder $HVDKERAS_TEST_DOORS, which all hosts see.
"""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path


def door(host: str) -> str:
    return str(Path(os.environ["HVDKERAS_TEST_DOORS"], host))


def obey(connection: socket.socket) -> None:
    with connection, connection.makefile("rw") as stream:
        status = subprocess.call(["sh", "-c", stream.readline()], stdin=subprocess.DEVNULL)
        stream.write(f"{status}\n")


def serve() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(door(socket.gethostname()))
        listener.listen()
        while True:
            threading.Thread(target=obey, args=(listener.accept()[0],), daemon=True).start()


def call(host: str, words: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(door(host))
        with connection.makefile("rw") as stream:
            # What rsh gets is text for the remote shell; a newline would end the message.
            stream.write(" ".join(words).replace("\n", " ") + "\n")
            stream.flush()
            return int(stream.readline())


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    sys.exit(call(sys.argv[1], sys.argv[2:]))
