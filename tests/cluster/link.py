"""A link between two network namespaces that delays and loses frames: `link.py FIRST SECOND DELAY LOSS`.

Either namespace gets a tap device `eth0`, and this process carries the frames from one to the other. The
kernel does that better (`tc ... netem`), where it has been built with it.
"""

import ctypes
import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress

NEW_NETWORK = 0x40000000  # CLONE_NEWNET of setns
SET_DEVICE = 0x400454CA  # TUNSETIFF of ioctl
TAP_OF_FRAMES = 0x1002  # IFF_TAP | IFF_NO_PI
FRAME_BYTES = 65536


def tap(namespace: str) -> int:
    """Makes the device in a namespace and returns its descriptor."""
    with open(f"/var/run/netns/{namespace}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"can't enter {namespace}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, SET_DEVICE, struct.pack("16sH22x", b"eth0", TAP_OF_FRAMES))
    return device


def main(first: str, second: str, delay: float, loss: float) -> None:
    """Carries frames, until this process is killed.

    Args:
        first: a namespace.
        second: the other one.
        delay: seconds in which a frame gets to the other end.
        loss: the part of the frames that don't, from 0 to 1.
    """
    devices = [tap(first), tap(second)]
    under_way: deque[tuple[float, int, bytes]] = deque()
    while True:
        pause = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        for device in select.select(devices, [], [], pause)[0]:
            with suppress(BlockingIOError):
                while frame := os.read(device, FRAME_BYTES):
                    if random.random() >= loss:
                        under_way.append((time.monotonic() + delay, device, frame))
        while under_way and under_way[0][0] <= time.monotonic():
            _, source, frame = under_way.popleft()
            with suppress(BlockingIOError, OSError):  # a full or closed end loses it
                os.write(devices[1 - devices.index(source)], frame)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
