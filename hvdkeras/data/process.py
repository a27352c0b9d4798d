"""A process by its name in a file: whether it has ended can be asked later, by another process."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_HIDDEN = f"hidden from {uuid.uuid4().hex}"


def this_process() -> dict[str, Any]:
    """This process as no other is: by the boot of its machine, its namespace of processes, and its start."""
    return {
        "host": socket.gethostname(),
        "boot": _read(lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip()),
        "namespace": _read(lambda: os.readlink("/proc/self/ns/pid")),
        "process": os.getpid(),
        "started": _started(os.getpid()),
    }


def has_ended(process: Mapping[str, Any]) -> bool | None:
    """Whether a process has certainly ended; None where it can't be asked: on another machine.

    A container with processes of its own counts as another machine.

    Args:
        process: what `this_process` returned there.

    Raises:
        KeyError: it is no such dict.
    """
    here = this_process()
    if any(process[name] != here[name] for name in ("boot", "namespace")):
        return None
    try:
        os.kill(process["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is another user's
    try:
        return _started(process["process"]) != process["started"]
    except OSError:  # it is hidden, or ends now
        return False


def _read(read: Callable[[], str]) -> str:
    """What a sandbox may hide: this process is then as one of another machine for all others."""
    try:
        return read()
    except OSError:
        return _HIDDEN


def _started(process: int) -> int | None:
    """When a process began, in the kernel's ticks; None for one that has ended and is still listed."""
    # The name, in parentheses, may hold anything.
    state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])
